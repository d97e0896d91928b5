"""The command line as a person meets it, on the bundled model."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolitefocus import LiteFocus, cli
from audiolitefocus.config import demo_folder
from audiolitefocus.options import parse_attention

QUICK = ("--model", "demo", "--device", "cpu", "--steps", "2", "--duration", "0.64", "--seed", "7")


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str | Path, cwd: Path) -> Result:
    """audiolitefocus ARGUMENTS in `cwd`. In this process: importing torch anew takes seconds."""
    out, err, shown = io.StringIO(), io.StringIO(), warnings.showwarning
    before, sys.argv = sys.argv, ["audiolitefocus", *map(str, arguments)]
    try:
        with contextlib.chdir(cwd), redirect_stdout(out), redirect_stderr(err):
            warnings.simplefilter("always")
            cli.main()
    except SystemExit as stop:
        return Result(int(stop.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv, warnings.showwarning = before, shown
    raise AssertionError("main() returned without an exit status")


def assert_refused(result: Result, message: str, folder: Path) -> None:
    """One line that names the fault, a non-zero exit, no traceback, and nothing written."""
    assert result.returncode != 0, result.stdout
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert message in errors[0]
    assert not [path for path in folder.rglob("*") if path.suffix in (".wav", ".part", ".json")]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A clip made with default naming, for the tests that only look."""
    folder = tmp_path_factory.mktemp("made")
    result = run("generate", "A Bell, over rain!", *QUICK, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_a_clip_and_its_recipe(made):
    path = made / "a-bell-over-rain-7.wav"
    samples, rate = soundfile.read(path)
    assert (rate, len(samples)) == (16000, 10240)
    assert np.abs(samples).max() > 0.01
    recipe = json.loads(path.with_suffix(".json").read_text())
    assert recipe["prompt"] == "A Bell, over rain!"
    assert (recipe["seed"], recipe["steps"], recipe["duration"]) == (7, 2, 0.64)
    assert recipe["model"] == "demo" and recipe["attention_ran"] == {"name": "dense"}
    assert set(recipe["versions"]) == {"audiolitefocus", "torch", "transformers"}
    assert sorted(p.name for p in made.iterdir()) == ["a-bell-over-rain-7.json", path.name]


def test_the_same_seed_makes_the_same_clip(made, tmp_path):
    result = run("generate", "A Bell, over rain!", *QUICK, "-o", "again.flac", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first, _ = soundfile.read(made / "a-bell-over-rain-7.wav", dtype="int16")
    again, _ = soundfile.read(tmp_path / "again.flac", dtype="int16")
    np.testing.assert_array_equal(first, again)


def test_progress_has_a_rate(made, tmp_path):
    result = run("generate", "rain", *QUICK, "-o", "x.ogg", cwd=tmp_path)
    assert "2/2" in result.stderr and "step" in result.stderr
    assert "x.ogg (seed 7)" in result.stdout


def test_a_file_that_exists_is_kept_unless_forced(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"precious")
    result = run("generate", "rain", *QUICK, "-o", "x.wav", cwd=tmp_path)
    assert result.returncode == 1 and "--force" in result.stderr
    assert (tmp_path / "x.wav").read_bytes() == b"precious"
    assert run("generate", "rain", *QUICK, "-o", "x.wav", "--force", cwd=tmp_path).returncode == 0
    assert soundfile.read(tmp_path / "x.wav")[1] == 16000


def test_a_file_of_prompts_and_candidates(tmp_path):
    (tmp_path / "prompts.txt").write_text("rain|Wet roof\n\n# a comment\nwind in trees\n")
    options = (*QUICK, "--candidates", "2", "--sampler", "dpm++", "--negative-prompt", "noise")
    result = run("generate", "--prompts", "prompts.txt", "-o", "clips", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    names = sorted(path.name for path in (tmp_path / "clips").iterdir())
    stems = ["wet-roof", "wind-in-trees-7"]
    assert names == sorted(f"{stem}.{end}" for stem in stems for end in ("json", "wav"))
    recipe = json.loads((tmp_path / "clips" / "wet-roof.json").read_text())
    assert len(recipe["scores"]) == 2 and recipe["scores"][0] >= recipe["scores"][1]
    assert "best of 2" in result.stdout


BAD_OPTIONS = {
    "empty prompt": (["generate", "  "], "empty"),
    "no prompt": (["generate"], "prompt"),
    "duration 0": (["generate", "x", "--duration", "0"], "duration 0"),
    "duration -1": (["generate", "x", "--duration", "-1"], "duration -1"),
    "duration nan": (["generate", "x", "--duration", "nan"], "duration nan"),
    "duration 1e9": (["generate", "x", "--duration", "1e9"], "duration 1000000000.0"),
    "duration text": (["generate", "x", "--duration", "long"], "--duration"),
    "steps 0": (["generate", "x", "--steps", "0"], "steps 0"),
    "steps 2000": (["generate", "x", "--steps", "2000"], "steps 2000"),
    "guidance nan": (["generate", "x", "--guidance-scale", "nan"], "guidance_scale nan"),
    "candidates 0": (["generate", "x", "--candidates", "0"], "candidates 0"),
    "eta 2": (["generate", "x", "--eta", "2"], "eta 2"),
    "seed -1": (["generate", "x", "--seed", "-1"], "seed -1"),
    "model": (["generate", "x", "--model", "nonesuch"], "nonesuch"),
    "model path": (["generate", "x", "--model", "./no/such/folder"], "no such folder"),
    "sampler": (["generate", "x", "--sampler", "euler"], "ddim, dpm++"),
    "attention": (["generate", "x", "--attention", "flash"], "litefocus"),
    "attention ratio": (["generate", "x", "--attention", "litefocus:2"], "sparse_ratio 2"),
    "attention level": (["generate", "x", "--attention", "litefocus:0:4"], "deepest level '4'"),
    "attention numbers": (["generate", "x", "--attention", "litefocus:0:2:1"], "DEEPEST"),
    "device": (["generate", "x", "--device", "tpu"], "tpu"),
    "device absent": (["generate", "x", "--device", "cuda:63"], "cuda:63"),
    "dtype": (["generate", "x", "--dtype", "int8"], "int8"),
    "ending": (["generate", "x", "-o", "x.mp3"], ".flac"),
    "folder absent": (["generate", "x", "-o", "no/x.wav"], "not a folder"),
    "prompts absent": (["generate", "--prompts", "none.txt"], "none.txt"),
    "unknown option": (["generate", "x", "--sped", "2"], "--sped"),
    "info of nothing": (["info", "nothing"], "no such folder"),
    "convert nothing": (["convert", "nothing", "out"], "nothing"),
    "convert heads": (["convert", "nothing", "out", "--heads", "8"], "heads"),
    "unknown command": (["sing"], "sing"),
}


def test_attention_by_its_name():
    assert parse_attention("dense") == "dense"
    assert parse_attention("litefocus") == LiteFocus(sparse_ratio=0.1)
    assert parse_attention("litefocus:0.2:3") == LiteFocus(sparse_ratio=0.2, levels=(1, 2, 3))
    only_sampled = LiteFocus(same_frequency=False, sparse_ratio=0.5)
    assert parse_attention("cross-frequency:0.5") == only_sampled


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_refused_in_one_line(case, tmp_path):
    arguments, message = BAD_OPTIONS[case]
    if arguments[0] == "generate":
        defaults = ["--model", "demo"] if "--model" not in arguments else []
        arguments = [*arguments, *defaults]
    assert_refused(run(*arguments, cwd=tmp_path), message, tmp_path)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if os.access(locked, os.W_OK):
        pytest.skip("this user may write anywhere")
    assert_refused(
        run("generate", "x", *QUICK, "-o", "locked/x.wav", cwd=tmp_path), "locked", tmp_path
    )


def damaged(tmp_path: Path, name: str, change) -> Path:
    """A copy of the demo bundle in which `change` has been made to the bytes of one file."""
    folder = tmp_path / "bundle"
    shutil.copytree(demo_folder(), folder)
    path = folder / name
    contents = change(path.read_bytes())
    path.unlink() if contents is None else path.write_bytes(contents)
    return folder


def flip(position: float):
    """One bit turned, at a share of the file."""

    def change(contents: bytes) -> bytes:
        flipped = bytearray(contents)
        flipped[int(position * len(contents))] ^= 1
        return bytes(flipped)

    return change


DAMAGES = {
    "missing": (lambda contents: None, "no such file"),
    "truncated": (lambda contents: contents[: len(contents) // 2], "damaged"),
    "empty": (lambda contents: b"", "damaged"),
    "flipped in the header": (flip(0.0), "damaged"),
    "flipped in the weights": (flip(0.9), "sha256"),
    "a pickle": (lambda contents: b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.", "damaged"),
}


@pytest.mark.parametrize(
    "name", ["unet.safetensors", "vocoder.safetensors", "t5/model.safetensors"]
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused(name, damage, tmp_path):
    change, message = DAMAGES[damage]
    folder = damaged(tmp_path, name, change)
    work = tmp_path / "work"
    work.mkdir()
    result = run("generate", "x", *QUICK, "--model", folder, cwd=work)
    assert_refused(result, Path(name).parts[0], work)
    if "/" not in name:
        assert message in result.stderr
    assert not list(tmp_path.rglob("pwned"))


def test_a_long_strange_prompt_gets_a_safe_name_and_a_warning(tmp_path):
    prompt = "../../etc/passwd\n🎸 " + "a dog barks at the moon " * 200
    result = run("generate", prompt, *QUICK, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert any("T5 reads the first 128 tokens" in line for line in said)
    (sound,) = tmp_path.glob("*.wav")
    assert sound.name.startswith("etc-passwd-a-dog-barks") and len(sound.name) < 80
    assert json.loads(sound.with_suffix(".json").read_text())["prompt"] == prompt


def test_help_is_readable(tmp_path):
    result = run("generate", "--help", cwd=tmp_path)
    assert result.returncode == 0
    for option in ("--duration", "--prompts", "--candidates", "--attention", "--negative-prompt"):
        assert option in result.stdout


def test_a_process_of_its_own_ends_the_same_way(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "audiolitefocus", "generate", "x", "--steps", "0"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: steps 0: must be a whole number from 1 to 1000"


def test_info_tells_what_the_bundle_is(tmp_path):
    result = run("info", "demo", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for word in ("demo", "16000 Hz", "unet", "parameters", "trained on synthetic sounds"):
        assert word in result.stdout
