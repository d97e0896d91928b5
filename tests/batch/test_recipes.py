"""Recipes in the tags of a sound: where they are found, and what they count for."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolitefocus import AudioOutput, GenerationOptions
from audiolitefocus.audio.formats import SOUND_SUFFIXES, encode_sound
from audiolitefocus.batch.clips import is_saved, save_clip
from audiolitefocus.batch.prompts import read_prompts
from audiolitefocus.batch.recipes import (
    describe_recipe,
    find_recipe,
    model_in,
    options_of,
    recipe_inside,
)
from audiolitefocus.batch.requests import ClipRequest
from audiolitefocus.batch.run import BatchRun

QUICK = GenerationOptions(audio_length_in_s=0.64, num_inference_steps=2, seed=3)
SOUND = AudioOutput(np.eye(1, 3200, dtype=np.float32), 16000)
PROMPT = 'une cloche fêlée, 雨, 🎸, "quoted"\n'


@pytest.mark.parametrize("suffix", SOUND_SUFFIXES)
def test_the_tags_have_the_json_but_what_the_file_is(pipe, tmp_path, suffix):
    clip = ClipRequest(PROMPT, tmp_path / f"a{suffix}", QUICK)
    save_clip(pipe, clip, SOUND)
    beside = json.loads((tmp_path / "a.json").read_text())
    assert beside["samples"] == len(soundfile.read(clip.path)[0])
    inside = {name: beside[name] for name in beside.keys() - {"samples", "sha256"}}
    assert recipe_inside(clip.path) == inside and inside["prompt"] == PROMPT
    assert find_recipe(clip.path) == beside == find_recipe(tmp_path / "a.json")
    (tmp_path / "a.json").unlink()
    assert find_recipe(clip.path) == inside


def test_a_recipe_that_is_too_long_for_the_tags_is_in_the_json_alone(pipe, tmp_path):
    clip = ClipRequest("rain " * 4000, tmp_path / "a.opus", QUICK)
    save_clip(pipe, clip, SOUND)
    assert recipe_inside(clip.path) == {} and find_recipe(clip.path)["prompt"] == clip.prompt
    assert is_saved(pipe.config, clip)


COMMENTS = {
    "none": "",
    "of somebody": "recorded in my garden",
    "other JSON": '{"prompt": "x"}',
    "nested": "[" * 5000,
}


@pytest.mark.parametrize("case", COMMENTS)
def test_other_comments_are_no_recipes(tmp_path, case):
    path = tmp_path / "a.flac"
    encode_sound(path, path, np.zeros(100, np.float32), 16000, comment=COMMENTS[case])
    assert recipe_inside(path) == {}
    with pytest.raises(ValueError, match="a.flac has no recipe: none in its tags, and no JSON"):
        find_recipe(path)


def test_a_recipe_that_was_cut_is_none(pipe, tmp_path):
    clip = ClipRequest("rain", tmp_path / "a.flac", QUICK)
    save_clip(pipe, clip, SOUND)
    whole = json.dumps(recipe_inside(clip.path))
    for length in range(1, len(whole), 97):
        encode_sound(clip.path, clip.path, np.zeros(100, np.float32), 16000, comment=whole[:length])
        assert recipe_inside(clip.path) == {}


def test_a_json_that_belongs_to_another_sound_is_not_taken(pipe, tmp_path):
    for prompt, name in (("rain", "a.wav"), ("sea", "b.wav")):
        save_clip(pipe, ClipRequest(prompt, tmp_path / name, QUICK), SOUND)
    shutil.copy(tmp_path / "b.json", tmp_path / "a.json")
    assert find_recipe(tmp_path / "a.wav")["prompt"] == "rain"


@pytest.mark.parametrize("name", ["none.wav", "text.wav", "list.json"])
def test_what_is_no_clip_is_named(tmp_path, name):
    (tmp_path / "text.wav").write_text("not a sound")
    (tmp_path / "list.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=name):
        find_recipe(tmp_path / name)


def test_a_finished_clip_whose_json_is_lost_is_finished(pipe, tmp_path):
    clip = ClipRequest("rain", tmp_path / "a.mp3", QUICK)
    save_clip(pipe, clip, SOUND)
    (tmp_path / "a.json").unlink()
    assert is_saved(pipe.config, clip)
    assert not is_saved(pipe.config, ClipRequest("sea", clip.path, QUICK))


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("prompt", ["rain", "sea"])
def test_a_sound_without_its_json_is_never_replaced_by_a_run(pipe, tmp_path, prompt, force):
    """Programs that edit a sound keep its tags: they do not say that it is as it was."""
    if prompt == "rain" and not force:
        return  # finished, as above
    (tmp_path / "prompts").write_text(f"{prompt}|a")
    clips = read_prompts(tmp_path / "prompts", tmp_path, QUICK)
    save_clip(pipe, ClipRequest("rain", tmp_path / "a.wav", QUICK), SOUND)
    (tmp_path / "a.json").unlink()
    before = (tmp_path / "a.wav").read_bytes()
    with pytest.raises(ValueError, match="a.wav exists, and the JSON beside it is gone"):
        BatchRun(pipe, clips, force=force)
    assert (tmp_path / "a.wav").read_bytes() == before


def test_other_bits_are_another_clip(pipe, tmp_path):
    clips = [ClipRequest("rain", tmp_path / "a.wav", QUICK, bits=bits) for bits in (None, 16, 24)]
    save_clip(pipe, clips[0], SOUND)
    assert [is_saved(pipe.config, clip) for clip in clips] == [True, True, False]
    path = tmp_path / "a.json"
    older = json.loads(path.read_text())
    assert older.pop("bits") == 16
    path.write_text(json.dumps(older))
    assert [is_saved(pipe.config, clip) for clip in clips] == [True, True, False]
    save_clip(pipe, clips[2], SOUND)
    assert [is_saved(pipe.config, clip) for clip in clips] == [False, False, True]
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_24"


def test_a_rate_that_the_format_lacks_is_refused_before_any_work(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(type(pipe), "sampling_rate", 22050)
    monkeypatch.setattr(type(pipe), "__call__", lambda *_, **__: pytest.fail("work was done"))
    (tmp_path / "prompts").write_text("rain|a.opus")
    run = BatchRun(pipe, read_prompts(tmp_path / "prompts", tmp_path, QUICK))
    assert "a.opus: .opus has no 22050 Hz" in next(iter(run.run().failed.values()))


def test_a_new_recording_drops_how_the_former_one_was_used():
    before = {"prompt": "x", "init_audio": "a.wav", "inpaint": [0.1, 0.2], "seed": 3}
    assert options_of(before, {"seed": 4})["inpaint"] == [0.1, 0.2]
    assert options_of({"prompt": "x", "steps": 5}) == {"num_inference_steps": 5}  # as once written
    after = options_of(before, {"continue_audio": "b.wav", "audio_length_in_s": 2.0})
    assert after == {"continue_audio": "b.wav", "audio_length_in_s": 2.0, "seed": 3}


@pytest.mark.parametrize("name", ["demo", "audioldm2", "cvssp/audioldm2"])
def test_models_that_have_a_name_are_loaded_by_it(name):
    assert model_in({"model": name}, Path("x.wav")) == name


@pytest.mark.parametrize("name", ["../x", "someone/model", "tiny", None, 3, ["demo"]])
def test_what_a_file_names_otherwise_is_neither_downloaded_nor_opened(name):
    with pytest.raises(ValueError, match="x.wav was made with the model .*: give it as --model"):
        model_in({"model": name}, Path("x.wav"))


def test_a_recipe_in_words_has_what_is_not_the_default(pipe, tmp_path):
    clip = ClipRequest("rain", tmp_path / "a.wav", QUICK)
    save_clip(pipe, clip, SOUND)
    lines = list(describe_recipe(find_recipe(clip.path)))
    assert lines[0] == "prompt: rain" and "  num_inference_steps: 2" in lines
    assert not [line for line in lines if "sampler" in line or "eta" in line]
    assert f"model: {pipe.config.name}" in lines and lines[-1].startswith(
        "made with audiolitefocus"
    )
