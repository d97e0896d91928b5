"""What the command line refuses: in one line, before anything is written."""

import os
import shutil
from pathlib import Path

import pytest

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.config import demo_folder
from tests.support.command import QUICK, assert_refused, run

BAD_OPTIONS = {
    "empty prompt": (["generate", "  "], "empty"),
    "no prompt": (["generate"], "prompt"),
    "duration 0": (
        ["generate", "x", "--duration", "0"],
        "duration 0.0: must be a number from 0.04 to 3600",
    ),
    "duration -1": (["generate", "x", "--duration", "-1"], "duration -1"),
    "duration nan": (["generate", "x", "--duration", "nan"], "duration nan"),
    "duration 1e9": (["generate", "x", "--duration", "1e9"], "duration 1000000000.0"),
    "duration text": (["generate", "x", "--duration", "long"], "--duration"),
    "steps 0": (
        ["generate", "x", "--steps", "0"],
        "steps 0: must be a whole number from 1 to 1000",
    ),
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
    "attention level": (["generate", "x", "--attention", "litefocus:0:levels=x"], "levels 'x'"),
    "attention field": (["generate", "x", "--attention", "litefocus:0:2"], "KEY=VALUE"),
    "decode": (["generate", "x", "--decode", "windows"], "decode 'windows': must be one of auto"),
    "device": (["generate", "x", "--device", "tpu"], "tpu"),
    "device absent": (["generate", "x", "--device", "cuda:63"], "cuda:63"),
    "dtype": (["generate", "x", "--dtype", "int8"], "int8"),
    "ending": (["generate", "x", "-o", "x.aiff"], ".flac"),
    "folder absent": (["generate", "x", "-o", "no/x.wav"], "not a folder"),
    "prompts absent": (["generate", "--prompts", "none.txt"], "none.txt"),
    "bits of flac": (["generate", "x", "-o", "x.flac", "--bits", "32"], "bits 32: .flac has 16 or"),
    "bits of mp3": (["generate", "x", "-o", "x.mp3", "--bits", "16"], ".mp3 has no choice of bits"),
    "bits": (["generate", "x", "--bits", "17"], "bits 17: .wav has 16 or 24 or 32"),
    "ray without prompts": (["generate", "x", "--ray", "local"], "--ray needs --prompts FILE"),
    "workers without ray": (["generate", "x", "--workers", "2"], "--workers, and URLs as --out,"),
    "url without ray": (["generate", "x", "-o", "s3://a/b.wav"], "need --ray local, auto or HOST"),
    "like nothing": (["generate", "--like", "none.flac"], "none.flac: no such file"),
    "like and prompts": (["generate", "--like", "x.wav", "--prompts", "y"], "--like CLIP without"),
    "unknown option": (["generate", "x", "--sped", "2"], "--sped"),
    "info of nothing": (["info", "nothing"], "no such folder"),
    "convert nothing": (["convert", "nothing", "out"], "nothing"),
    "convert heads": (["convert", "nothing", "out", "--heads", "8"], "heads"),
    "unknown command": (["sing"], "sing"),
}


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


def test_options_are_checked_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(
        AudioLDM2Pipeline, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded")
    )
    (tmp_path / "prompts").write_text('{"prompt": "x", "steps": 0}')
    for arguments in (("x", "--steps", "0"), ("--prompts", "prompts"), ("x", "-o", "x.aiff")):
        assert run("generate", *arguments, cwd=tmp_path).returncode == 1


def test_both_kinds_of_prompts_are_refused(tmp_path):
    message = "give either a prompt or --prompts FILE"
    assert_refused(run("generate", "x", "--prompts", "y", cwd=tmp_path), message, tmp_path)
