"""Files of prompts: what a line may say, seeds, and lines that are refused."""

import json
import os

import pytest

from audiolitefocus import GenerationOptions
from audiolitefocus.batch.prompts import read_prompts

QUICK = GenerationOptions(audio_length_in_s=0.64, num_inference_steps=2)
SEEDED = GenerationOptions.make(QUICK, {"seed": 9})


def test_lines_are_text_or_text_and_name_or_json(write_prompts, tmp_path):
    line = {"prompt": "c", "name": "x.FLAC", "duration": 5, "seed": 3, "candidates": 2}
    file = write_prompts("\ufeffa bell|Big Bell", "", "# no", "b|c|d", json.dumps(line))
    clips = read_prompts(file, tmp_path / "out", SEEDED)
    assert [clip.prompt for clip in clips] == ["a bell", "b|c", "c"]
    assert [clip.path.name for clip in clips] == ["Big Bell.wav", "d.wav", "x.FLAC"]
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
    "name taken": ("rain|A", "name 'A' is taken by line 1"),
    "a path": ("rain|a/x", "not a path"),
    "a device": ("rain|con.wav", "device on Windows"),
    "a surrogate": ('{"prompt": "\\ud800"}', "not valid Unicode"),
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


def test_an_array_is_read_entry_by_entry(write_prompts, tmp_path):
    entries = ["# not a comment", "a | b", {"prompt": "c", "name": "x", "steps": 3}, "a | b"]
    clips = read_prompts(write_prompts(json.dumps(entries, indent=2)), tmp_path, QUICK)
    assert [clip.prompt for clip in clips] == ["# not a comment", "a | b", "c", "a | b"]
    assert clips[2].path.name == "x.wav" and clips[2].options.num_inference_steps == 3
    with pytest.raises(ValueError, match="prompts.txt, entry 2: expected a text or an object"):
        read_prompts(write_prompts('["rain", 3]'), tmp_path, QUICK)


def test_a_line_in_brackets_is_a_prompt(write_prompts, tmp_path):
    (clip,) = read_prompts(write_prompts("[rain] on a roof"), tmp_path, QUICK)
    assert clip.prompt == "[rain] on a roof"


def test_skipped_comments_are_said(write_prompts, tmp_path):
    with pytest.warns(UserWarning, match="prompts.txt: line 1 starting with # skipped"):
        read_prompts(write_prompts("# a comment", "rain"), tmp_path, QUICK)
    with pytest.warns(UserWarning, match="2 lines starting with #"):
        read_prompts(write_prompts("# a comment", "rain", "# another"), tmp_path, QUICK)


def test_names_made_from_prompts_get_a_number_where_they_are_taken(write_prompts, tmp_path):
    long = "a dog barks at a cat that sits on a wall over there and "
    lines = (long + "purrs", long + "sleeps", "Rain", "rain", "rain!|rain-9")
    clips = read_prompts(write_prompts(*lines), tmp_path, SEEDED)
    stems = [clip.path.stem for clip in clips]
    assert stems[1] == f"{stems[0]}-2" and stems[2:] == ["rain-9-2", "rain-9-3", "rain-9"]
    assert clips == read_prompts(write_prompts(*lines), tmp_path, SEEDED)


@pytest.mark.parametrize("one, other", [("雨", "風"), ("été", "ete"), ("a b", "a-b")])
def test_names_of_every_script_are_different_names(one, other, write_prompts, tmp_path):
    clips = read_prompts(write_prompts(f"x|{one}.wav", f"y|{other}.wav"), tmp_path, QUICK)
    assert [clip.path.name for clip in clips] == [f"{one}.wav", f"{other}.wav"]


@pytest.mark.parametrize("other", ["RAIN", "rain.flac", "Rain.wav"])
def test_names_that_some_system_takes_for_the_same_are_refused(other, write_prompts, tmp_path):
    with pytest.raises(ValueError, match="line 2: name .* is taken by line 1"):
        read_prompts(write_prompts("x|rain", f"y|{other}"), tmp_path, QUICK)
