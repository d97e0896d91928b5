"""What an adapter changes, with a simple judge and few steps."""

import argparse
import json

import numpy as np
import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.audio.files import write_sound
from audiolitefocus.checkpoints.adapters import write_adapter
from scripts.demo.world.sounds import RATE, sound
from scripts.evaluate import adapter


class Spectrum:
    """Embeds a sound by the shares of power in four bands."""

    name, rate = "spectrum", RATE

    def embed(self, waveform) -> np.ndarray:
        power = torch.fft.rfft(waveform).abs().square()
        return np.array([float(band.sum() / power.sum()) for band in power.chunk(4)])


@pytest.fixture
def chosen(tmp_path, monkeypatch):
    """An adapter that silences the way out of every transformer, and two families."""
    monkeypatch.setattr(adapter, "Aisfx", Spectrum)
    monkeypatch.setattr(adapter, "SEEDS", 1)
    monkeypatch.setattr(adapter, "VERDICTS", {"white noise": lambda waveform: True})
    for family in ("white noise", "tone"):
        (tmp_path / "sounds" / family).mkdir(parents=True)
        for seed in range(2):
            path = tmp_path / "sounds" / family / f"{seed}.wav"
            write_sound(path, sound(family, seed=seed).render(0.64), RATE)
    unet = AudioLDM2Pipeline.from_pretrained("demo", device="cpu").unet
    layer = "middle.stage.transformers.0.proj_out"
    weight = unet.get_parameter(f"{layer}.weight").detach().float()
    (tmp_path / "mine").mkdir()
    factors = {f"{layer}.lora_A.weight": -weight, f"{layer}.lora_B.weight": torch.eye(len(weight))}
    write_adapter(tmp_path / "mine", "demo", len(weight), factors)
    return argparse.Namespace(
        adapter=tmp_path / "mine",
        prompt="white noise",
        family="white noise",
        sounds=tmp_path / "sounds",
        clips=2,
        others=2,
        guidance_scale=[1.0],
        steps=2,
        batch_size=2,
        out=tmp_path / "out",
        results=tmp_path / "results.json",
    )


def test_before_and_after_are_made_and_judged(chosen):
    found = adapter.run(chosen)
    assert json.loads(chosen.results.read_text()) == found
    own = found["own"]
    assert own["real sounds"]["real"]["of_family"]["value"] == 1
    assert own["before, guidance 1"]["clips"] == own["after, guidance 1"]["clips"] == 2
    assert set(found["figures"]) == {"fad", "fad_judge", "kl", "clap"}
    row = found["figures"]["fad_judge"]
    change = row["after"]["value"] - row["before"]["value"]
    assert row["difference"]["value"] == pytest.approx(change) and change != 0
    for label in ("own-{}-1", "others-{}", "recognised-{}"):
        folders = [chosen.out / label.format(when) for when in ("before", "after")]
        before, after = (folder / "0000.wav" for folder in folders)
        assert before.read_bytes() != after.read_bytes()
        recipe = json.loads(after.with_suffix(".json").read_text())
        assert any(name.startswith("lora/mine") for name in recipe["model_files"])
    assert "| 2 before, guidance 1 | " in adapter.markdown(found)


def test_a_family_without_sounds_is_refused(chosen):
    chosen.family = "tabla"
    with pytest.raises(ValueError, match="has no sounds of the family 'tabla'"):
        adapter.run(chosen)
