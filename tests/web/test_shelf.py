"""Clips of the page as files: sound, recipe and picture, and only the newest ones."""

import json
import os

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="needs the extra web")

from audiolitefocus import AudioOutput, GenerationOptions  # noqa: E402
from audiolitefocus.audio.files import read_sound, write_sound  # noqa: E402
from audiolitefocus.web import shelf as module  # noqa: E402
from audiolitefocus.web.shelf import Shelf  # noqa: E402
from audiolitefocus.web.worker import Job  # noqa: E402

SOUND = np.sin(np.arange(16000) / 20).astype(np.float32) / 2


def output_of(count: int) -> AudioOutput:

    scores = torch.linspace(0.9, 0.1, count) if count > 1 else None
    return AudioOutput(np.stack([SOUND / n for n in range(1, count + 1)]), 16000, scores)


def job(**options) -> Job:
    return Job("Rain, on a roof!", GenerationOptions(seed=5, **options), 1.0)


def test_every_candidate_has_its_sound_recipe_and_picture(demo):
    shelf = Shelf(demo)  # whose files are gone with it
    kept = shelf.keep(job(num_waveforms_per_prompt=2), output_of(2))
    names = [os.path.basename(sound) for sound in kept.sounds]
    assert names == ["rain-on-a-roof-5-1.wav", "rain-on-a-roof-5-2.wav"]
    assert kept.scores == pytest.approx([0.9, 0.1]) and len(kept.pictures) == 2
    for number, (sound, recipe) in enumerate(zip(kept.sounds, kept.recipes, strict=True), 1):
        assert np.allclose(read_sound(sound, 16000), SOUND / number, atol=1 / 32768)
        said = json.loads(open(recipe, encoding="utf-8").read())
        assert (said["prompt"], said["seed"], said["samples"]) == ("Rain, on a roof!", 5, 16000)


def test_a_recording_is_in_the_recipe_by_its_name_and_hash_alone(demo, tmp_path):
    mine = write_sound(tmp_path / "mine.wav", SOUND, 16000)
    shelf = Shelf(demo)  # whose files are gone with it
    kept = shelf.keep(job(init_audio=str(mine)), output_of(1))
    text = open(kept.recipes[0], encoding="utf-8").read()
    said = json.loads(text)
    assert said["init_audio"] == "mine.wav" and len(said["recording_sha256"]) == 64
    assert str(tmp_path) not in text


def test_the_newest_clips_are_kept(demo, monkeypatch):
    monkeypatch.setattr(module, "KEPT", 2)
    shelf = Shelf(demo)
    kept = [shelf.keep(job(), output_of(1)) for _ in range(3)]
    assert [os.path.exists(clip.sounds[0]) for clip in kept] == [False, True, True]
    assert len(os.listdir(shelf.root)) == 2
