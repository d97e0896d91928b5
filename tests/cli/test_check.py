"""`audiolitefocus check`: on the demo, random weights, broken ones, and a repository on the hub."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from safetensors.torch import load_file, save_file

from audiolitefocus.check import model, speed
from tests.support.command import Result, assert_failed, run
from tests.support.hub_server import REPO, FakeHub, files_of, set_endpoint

TITLES = ("Environment", "Model", "Stages", "Clip", "Parity", "Speed", "What to set here")


@pytest.fixture
def quick(monkeypatch):
    """Shorter measurements: the checks themselves stay."""
    monkeypatch.setattr(speed, "LENGTHS", (1, 2))
    monkeypatch.setattr(model, "STEPS", 2)


@pytest.fixture
def short_bundle(tiny_bundle, tmp_path) -> Path:
    """A copy of the random bundle whose clips are short."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "weights" / "random")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "trained_seconds": 1.28}))
    return folder


def check(source: object, cwd: Path) -> tuple[Result, dict]:
    """Run the command, and read its JSON; the text names no folder of this machine."""
    result = run("check", source, "--device", "cpu", "--json", "report.json", cwd=cwd)
    assert "Traceback" not in result.stderr, result.stderr
    text = (cwd / "report.json").read_text()
    for place in (cwd, cwd.parent, Path.home()):
        if place != Path("/"):
            assert str(place) not in result.stdout and str(place) not in text
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["passed"] is (result.returncode == 0)
    return result, found


def rows(report: dict) -> dict[str, dict]:
    return {
        f"{section['title']}/{row['name']}": row
        for section in report["sections"]
        for row in section["rows"]
    }


def test_the_demo_passes(tmp_path):
    result, report = check("demo", tmp_path)
    assert result.returncode == 0, result.stdout
    assert [line for line in result.stdout.splitlines() if line.startswith(TITLES)]
    found = rows(report)
    assert found["Clip/CLAP"]["values"]["clip"] > 0.5 > found["Clip/CLAP"]["values"]["noise"]
    assert found["Parity/unet"]["values"]["difference"] < 1e-5
    assert found["Stages/vocoder"]["values"]["shape"] == [1, 40960]
    times = found["Speed/10.24 s"]["values"]
    assert times["dense"] > 0 and times["litefocus"] > 0
    assert "math" in found["Environment/attention"]["text"]
    assert found["What to set here/settings"]["text"].startswith("--device cpu --dtype ")
    assert result.stdout.isascii() and result.stdout.endswith("all checks passed\n")


def test_random_weights_are_sound_but_for_what_can_be_heard(short_bundle, quick, tmp_path):
    result, report = check(short_bundle, tmp_path)
    found = rows(report)
    clap = found["Clip/CLAP"]["values"]
    assert found["Clip/CLAP"]["ok"] is (clap["clip"] > clap["noise"])
    others = [name for name, row in found.items() if row["ok"] is False and name != "Clip/CLAP"]
    assert not others and found["Model/from"]["text"] == "a bundle's folder"
    assert found["Parity/unet"]["values"]["difference"] < 1e-5
    assert report["model"] == "random" and "check random" in result.stdout


def test_a_weight_that_is_nan_is_found_and_named(short_bundle, quick, tmp_path):
    path = short_bundle / "unet.safetensors"
    weights = load_file(path)
    weights["conv_out.weight"][0, 0, 0, 0] = torch.nan
    save_file(weights, path, metadata={"format": "pt"})
    config = json.loads((short_bundle / "config.json").read_text())
    (short_bundle / "config.json").write_text(json.dumps({**config, "files": {}}))
    result, report = check(short_bundle, tmp_path)
    assert result.returncode == 1
    found = rows(report)
    assert "NaN or infinite: conv_out.weight" in found["Model/unet"]["text"]
    failed = {name for name, row in found.items() if row["ok"] is False}
    assert failed >= {"Model/unet", "Stages/unet", "Clip/sound", "Parity/unet"}
    assert found["Stages/vae"]["ok"] and found["Stages/vocoder"]["ok"]
    assert found["Speed/step"]["ok"] is None
    assert (
        "4 checks failed: unet (model), unet (stages), sound (clip), unet (parity)" in result.stdout
    )


def test_what_was_too_slow_at_one_length_is_not_measured_at_a_longer_one(monkeypatch):
    measured = []

    def step(stages, seconds, attention):
        measured.append((seconds, attention == "dense"))
        return 5.0 * seconds if attention == "dense" else 0.2 * seconds

    monkeypatch.setattr(speed, "step_seconds", step)
    config = SimpleNamespace(trained_seconds=2.56)
    stages = SimpleNamespace(works=True, pipe=SimpleNamespace(config=config))
    rows = speed.check_speed(stages).rows
    assert measured == [(2.56, True), (10.24, False), (20.48, False)]
    assert [row.text.count("too slow") for row in rows] == [0, 1, 1]


def test_weights_that_cannot_be_loaded_are_a_failed_check(short_bundle, tmp_path):
    path = short_bundle / "vae.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    result, report = check(short_bundle, tmp_path)
    assert result.returncode == 1
    loading = rows(report)["Model/loading"]
    assert "vae.safetensors has changed since it was written" in loading["text"]
    assert len(report["sections"]) == 2 and "1 check failed: loading (model)" in result.stdout


def test_a_bundle_without_tokenizers_fails_at_the_text(short_bundle, quick, tmp_path):
    (short_bundle / "t5" / "tokenizer_config.json").unlink()
    result, report = check(short_bundle, tmp_path)
    found = rows(report)
    assert result.returncode == 1 and "has no tokenizer" in found["Stages/text"]["text"]
    assert found["Stages/unet"]["text"].startswith("not reached")
    assert found["Stages/vocoder"]["ok"] and found["Parity/unet"]["ok"] is None


def test_a_repository_on_the_hub(diffusers_folder, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(model, "STEPS", 1)
    monkeypatch.setattr(speed, "LENGTHS", (1,))
    with FakeHub(files_of(diffusers_folder)) as server:
        set_endpoint(monkeypatch, server.endpoint)
        close_session()
        result, report = check(REPO, tmp_path)
        close_session()
        server.shutdown()
    found = rows(report)
    assert found["Model/from"]["text"] == "the hub, converted into the cache"
    assert found["Model/source"]["text"] == found["Model/name"]["text"] == REPO
    assert found["Stages/unet"]["ok"] and found["Parity/unet"]["ok"]
    assert f"check {REPO}" in result.stdout


def test_without_diffusers_parity_is_left_out(short_bundle, quick, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "diffusers" else find(name)
    )
    monkeypatch.setattr(speed, "LENGTHS", (1,))
    _, report = check(short_bundle, tmp_path)
    parity = rows(report)["Parity/unet"]
    assert parity["ok"] is None and "pip install diffusers" in parity["text"]


def test_what_is_slow_is_not_measured(short_bundle, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "PATIENCE", 0.0)
    _, report = check(short_bundle, tmp_path)
    times = rows(report)["Speed/2.56 s"]
    assert times["values"]["dense"] is None and "too slow here" in times["text"]


def test_bad_arguments_are_refused_before_any_check(tmp_path):
    assert_failed(run("check", "demo", "--device", "tpu", cwd=tmp_path), "tpu")
    assert_failed(run("check", "demo", "--dtype", "int8", cwd=tmp_path), "int8")
    result = run("check", "demo", "--json", "no/report.json", cwd=tmp_path)
    assert_failed(result, "no is not a folder")
    assert "Environment" not in result.stdout
