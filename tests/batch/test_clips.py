"""Clips as files: recipes of this and of older versions, and appearing together."""

import json

import numpy as np
import pytest

from audiolitefocus import AudioOutput, GenerationOptions, LiteFocus
from audiolitefocus.batch.clips import is_saved, save_clip
from audiolitefocus.batch.requests import ClipRequest

QUICK = GenerationOptions(audio_length_in_s=0.64, num_inference_steps=2, seed=3)
SOUND = AudioOutput(np.eye(1, 160, dtype=np.float32), 16000)


def test_a_sound_and_its_json_appear_together(pipe, tmp_path, monkeypatch):
    clip, sounds = ClipRequest("a", tmp_path / "a.wav", QUICK), np.eye(2, 160, dtype=np.float32)
    save_clip(pipe, clip, AudioOutput(sounds[:1], 16000))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(*_):
        raise SystemExit

    monkeypatch.setattr("audiolitefocus.batch.clips.sha256", interrupted)
    with pytest.raises(SystemExit):
        save_clip(pipe, clip, AudioOutput(sounds[1:], 16000))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


CHANGES = {
    "prompt": ("b", {}),
    "a number": ("a", {"eta": 0.5}),
    "attention": ("a", {"attention": LiteFocus(sparse_ratio=0.2)}),
    "negative prompt": ("a", {"negative_prompt": ""}),
    "length": ("a", {"duration": None}),
    "seed": ("a", {"seed": 4}),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_clip_of_another_prompt_or_other_options_is_not_the_same(case, pipe, tmp_path):
    prompt, changes = CHANGES[case]
    clip = ClipRequest("a", tmp_path / "a.wav", QUICK)
    save_clip(pipe, clip, SOUND)
    assert is_saved(pipe.config, clip)
    other = ClipRequest(prompt, clip.path, GenerationOptions.make(QUICK, changes))
    assert not is_saved(pipe.config, other)
    save_clip(pipe, other, SOUND)
    assert is_saved(pipe.config, other) and not is_saved(pipe.config, clip)


def test_a_recipe_of_an_older_version_is_understood(pipe, tmp_path):
    options = GenerationOptions.make(
        QUICK, {"candidates": 2, "attention": "litefocus:0.2:weight=1"}
    )
    clip = ClipRequest("a", tmp_path / "a.wav", options)
    save_clip(pipe, clip, SOUND)
    path = clip.path.with_suffix(".json")
    older = json.loads(path.read_text())
    for field, short in (
        ("audio_length_in_s", "duration"),
        ("num_inference_steps", "steps"),
        ("num_waveforms_per_prompt", "candidates"),
    ):
        older[short] = older.pop(field)
    del older["decode"]
    assert older["attention"] == "litefocus:0.2:weight=1"
    older["attention"] = "litefocus:0.2:weight=1.0"
    path.write_text(json.dumps(older))
    assert is_saved(pipe.config, clip)
    path.write_text(json.dumps({**older, "steps": 3}))
    assert not is_saved(pipe.config, clip)


@pytest.mark.parametrize("changes", [{"steps": "many"}, {"sha256": None}, {"prompt": ["a"]}])
def test_a_recipe_that_was_tampered_with_counts_as_missing(changes, pipe, tmp_path):
    clip = ClipRequest("a", tmp_path / "a.wav", QUICK)
    save_clip(pipe, clip, SOUND)
    path = clip.path.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert not is_saved(pipe.config, clip)
