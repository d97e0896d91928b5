"""Files of prompts: what a line may say, seeds, and lines that are refused."""

import json
import os

import pytest

from audiolitefocus import GenerationOptions
from audiolitefocus.batch.prompts import read_prompts

QUICK = GenerationOptions(audio_length_in_s=0.64, num_inference_steps=2)
SEEDED = GenerationOptions.make(QUICK, {"seed": 9})


def test_lines_are_text_or_text_and_name_or_json(write_prompts, tmp_path):
    line = {"prompt": "c", "name": "../x.FLAC", "duration": 5, "seed": 3, "candidates": 2}
    file = write_prompts("\ufeffa bell|Big Bell", "", "# no", "b|c|d", json.dumps(line))
    clips = read_prompts(file, tmp_path / "out", SEEDED)
    assert [clip.prompt for clip in clips] == ["a bell", "b|c", "c"]
    assert [clip.path.name for clip in clips] == ["big-bell.wav", "d.wav", "x.flac"]
    assert {clip.path.parent for clip in clips} == {tmp_path / "out"}
    assert [clip.seed for clip in clips] == [9, 9, 3]
    assert clips[2].options == GenerationOptions(
        audio_length_in_s=5, num_inference_steps=2, seed=3, num_waveforms_per_prompt=2
    )


def test_field_names_and_short_names_mean_the_same(write_prompts, tmp_path):
    short = {"prompt": "x", "name": "a", "duration": 1, "steps": 3, "attention": "litefocus:0.2"}
    field = {
        "prompt": "x",
        "name": "b",
        "audio_length_in_s": 1,
        "num_inference_steps": 3,
        "attention": "litefocus:0.2",
    }
    one, other = read_prompts(write_prompts(json.dumps(short), json.dumps(field)), tmp_path, SEEDED)
    assert one.options == other.options and one.options.num_inference_steps == 3


def test_a_recipe_is_a_line_of_prompts(write_prompts, tmp_path):
    options = GenerationOptions.make(QUICK, {"seed": 4, "attention": "cross-frequency:0.2"})
    file = write_prompts(json.dumps({"prompt": "x", **options.to_json()}))
    (clip,) = read_prompts(file, tmp_path, GenerationOptions())
    assert clip.options == options


def test_seeds_follow_from_the_text_unless_given(write_prompts, tmp_path):
    first = read_prompts(write_prompts("rain", "rain", "wind"), tmp_path, QUICK)
    again = read_prompts(write_prompts("wind", "rain", "rain"), tmp_path, QUICK)
    assert {clip.path: clip for clip in first} == {clip.path: clip for clip in again}
    assert len({clip.seed for clip in first}) == 3
    (null,) = read_prompts(write_prompts('{"prompt": "wind", "seed": null}'), tmp_path, SEEDED)
    assert null.seed == again[0].seed


BAD_LINES = {
    "unknown option": ('{"prompt": "x", "stepz": 3}', "unknown option 'stepz'; did you mean steps"),
    "broken JSON": ('{"prompt": "x"', "not JSON"),
    "deep JSON": ('{"prompt": ' + "[" * 100_000, "not JSON"),
    "no prompt": ('{"seed": 3}', "expected TEXT"),
    "prompt of a kind": ('{"prompt": ["x"]}', "expected TEXT"),
    "name of a kind": ('{"prompt": "x", "name": 3}', "expected TEXT"),
    "empty name": ("rain| ", "expected TEXT"),
    "steps": ('{"prompt": "x", "steps": "many"}', "steps 'many': must be a whole number"),
    "steps by the field": ('{"prompt": "x", "num_inference_steps": 0}', "num_inference_steps 0:"),
    "twice": ('{"prompt": "x", "steps": 1, "num_inference_steps": 1}', "are the same option"),
    "duration": ('{"prompt": "x", "duration": NaN}', "duration nan"),
    "length of both": ('{"prompt": "x", "init_audio": "x.wav"}', "duration cannot be set with"),
    "attention": ('{"prompt": "x", "attention": 5}', "attention 5"),
    "sampler": ('{"prompt": "x", "sampler": ["ddim"]}', "sampler"),
    "negative prompt": ('{"prompt": "x", "negative_prompt": 3}', "negative_prompt 3"),
    "negative prompts": (
        '{"prompt": "x", "negative_prompt": ["y"]}',
        r"negative_prompt \['y'\]: must be one text",
    ),
    "name taken": ("rain|A", "a is taken already"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_refused_by_its_number(case, write_prompts, tmp_path):
    line, message = BAD_LINES[case]
    with pytest.raises(ValueError, match=f"prompts.txt, line 3: .*{message}"):
        read_prompts(write_prompts("wind|a", "", line), tmp_path / "out", SEEDED)
    assert not (tmp_path / "out").exists()


def test_a_file_without_prompts_and_one_that_is_no_text_are_refused(write_prompts, tmp_path):
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(write_prompts("# none"), tmp_path, QUICK)
    (tmp_path / "noise").write_bytes(os.urandom(100) + b"\xff")
    with pytest.raises(ValueError, match="UTF-8"):
        read_prompts(tmp_path / "noise", tmp_path, QUICK)
