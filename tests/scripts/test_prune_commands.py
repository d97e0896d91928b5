"""scripts/prune: the commands that learn, cut and recover."""

import csv
import json

import numpy as np
import pytest
import soundfile
import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.checkpoints.bundle import load_config
from scripts.prune import learn, recover

pytestmark = pytest.mark.slow  # the demo is loaded and trained several times

pytest.importorskip("peft")
pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A folder of sounds with captions."""
    folder = tmp_path_factory.mktemp("sounds")
    time = np.arange(8000) / 16000
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        for number in range(3):
            soundfile.write(folder / f"{number}.wav", 0.3 * np.sin(1000 * number * time), 16000)
            writer.writerow([f"{number}.wav", f"tone number {number}"])
    return folder


def run(monkeypatch, program, *options) -> None:
    monkeypatch.setattr("sys.argv", [program.__name__, *map(str, options)])
    program.main()


QUICK = ("--seconds", 0.32, "--batch-size", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def pruned(sounds, tmp_path_factory):
    """A folder in which choices have been learnt. Read only."""
    folder = tmp_path_factory.mktemp("pruned") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        options = ("--model", "demo", "--budget", 0.7, "--steps", 3, "--out", folder)
        run(patch, learn, sounds, *QUICK, *options)
    return folder


def test_a_choice_keeps_to_its_budget_and_its_bundle_generates(pruned):
    found, config = json.loads((pruned / "choice.json").read_text()), load_config(pruned / "bundle")
    assert found["operations"] <= 0.7 and config.unet.absent == tuple(found["absent"])
    assert len(found["losses"]) == 3
    stays = {f"{p['place']}:{c}" for p in found["places"] for c in p["stays"]}
    assert len(stays) == len(config.unet.transformers) == 30 - len(config.unet.absent)
    assert all(abs(sum(p["probabilities"].values()) - 1) < 1e-3 for p in found["places"])
    pipe = AudioLDM2Pipeline.from_pretrained(pruned / "bundle", device="cpu")
    made = pipe("rain", audio_length_in_s=0.64, num_inference_steps=2, sampler="dpm++", seed=0)
    assert np.isfinite(np.asarray(made.audios)).all()
    demo = AudioLDM2Pipeline.from_pretrained("demo", device="cpu").unet.state_dict()
    for name, weight in pipe.unet.state_dict().items():
        assert torch.equal(weight, demo[name])  # the adapters leave no trace


def recovered(monkeypatch, sounds, pruned, folder, steps: int):
    options = ("--model", pruned / "bundle", "--teacher", "demo", "--save-every", 1)
    run(monkeypatch, recover, sounds, *QUICK, *options, "--out", folder, "--steps", steps)
    return AudioLDM2Pipeline.from_pretrained(folder / "bundle", device="cpu")


def test_recovery_goes_on_and_ends_as_a_bundle(sounds, pruned, tmp_path, monkeypatch, capsys):
    whole = recovered(monkeypatch, sounds, pruned, tmp_path / "whole", 2)
    recovered(monkeypatch, sounds, pruned, tmp_path / "parts", 1)
    parts = recovered(monkeypatch, sounds, pruned, tmp_path / "parts", 2)
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "parts" / "bundle")
    before = AudioLDM2Pipeline.from_pretrained(pruned / "bundle", device="cpu").unet.state_dict()
    for name, weight in whole.unet.state_dict().items():
        assert torch.equal(weight, parts.unet.state_dict()[name])
        assert not torch.equal(weight, before[name]) or not weight.any()
    config = load_config(tmp_path / "parts" / "bundle")
    assert config.provenance["recovered"] == "2 updates of distillation from demo"
    assert config.unet == load_config(pruned / "bundle").unet


def test_a_teacher_that_the_model_was_not_made_of_is_refused(
    sounds, pruned, tiny_bundle, tmp_path, monkeypatch
):
    for teacher, match in ((tiny_bundle, "UNets differ"), (pruned / "bundle", "prune it first")):
        options = ("--model", pruned / "bundle", "--teacher", teacher, "--out", tmp_path / "out")
        with pytest.raises(SystemExit, match=f"^error: demo-pruned .*{match}"):
            run(monkeypatch, recover, sounds, *QUICK, *options)
    assert not list(tmp_path.iterdir())
