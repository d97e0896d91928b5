"""Tables of reuse: by rule, from text and from files."""

import json

import pytest

from audiolitefocus.options import GenerationOptions
from audiolitefocus.reuse.settings import (
    LearnedReuse,
    Reuse,
    choose_reuse,
    parse_reuse,
    reuse_text,
)

LEARNED = {
    "format": "audiolitefocus reuse table 1",
    "sampler": "dpm++",
    "steps": 4,
    "attention": "dense",
    "unet_sha256": "0" * 64,
    "computed": {"down.1": "xx-x", "up.0.stages.0.resnet": "x--x"},
}


def letters(reuse: Reuse, steps: int) -> str:
    [row] = reuse.table(steps).values()
    return "".join("x" if computed else "-" for computed in row)


@pytest.mark.parametrize(
    "reuse, steps, expected",
    [
        (Reuse(3, start=0.0), 7, "x--x--x"),
        (Reuse(3, start=0.5), 10, "xxxxx--x--"),
        (Reuse(2, start=1.0), 4, "xxxx"),
        (Reuse(1, start=0.0), 4, "xxxx"),
        (Reuse(3), 1, "x"),
    ],
)
def test_every_nth_step_is_full_after_the_start(reuse, steps, expected):
    assert letters(reuse, steps) == expected


@pytest.mark.parametrize(
    "text, reuse",
    [
        ("deepcache", Reuse()),
        ("deepcache:5", Reuse(interval=5)),
        ("deepcache:2:start=0.5:level=2:order=1", Reuse(2, start=0.5, level=2, order=1)),
        ("deepcache:start=0", Reuse(start=0.0)),
        ("deepcache:3:start=1", Reuse(start=1.0)),
        ("deepcache:3:start=0.3333", Reuse(start=0.3333)),
        ("off", "off"),
        ("auto", "auto"),
    ],
)
def test_text_and_settings_are_the_same(text, reuse):
    assert parse_reuse(text) == reuse
    assert parse_reuse(reuse_text(reuse)) == reuse


@pytest.mark.parametrize(
    "steps, reuse", [(14, None), (15, Reuse()), (99, Reuse()), (100, Reuse(5, start=0.1))]
)
def test_auto_goes_by_the_number_of_steps(steps, reuse):
    assert choose_reuse("auto", "ddim", steps) == reuse


@pytest.mark.parametrize("text", ["deepcache:3:start=1", "deepcache:5", "deepcache:3:start=0.25"])
def test_texts_are_written_as_people_do(text):
    assert reuse_text(parse_reuse(text)) == text


@pytest.mark.parametrize(
    "text, match",
    [
        ("sometimes", "reuse 'sometimes': must be off, auto, deepcache"),
        ("deepcache:0", "interval '0': must be a whole number from 1 to 1000"),
        ("deepcache:3:star=0.5", "'star=0.5' is not KEY=VALUE with one of interval, start"),
        ("deepcache:3:order=2", "order '2': must be a whole number from 0 to 1"),
        ("learned:nowhere.json", "nowhere.json: no such file"),
        (3, "reuse 3: must be off"),
    ],
)
def test_invalid_text_is_refused(text, match):
    with pytest.raises(ValueError, match=match):
        GenerationOptions(reuse=text)


def test_invalid_settings_are_refused():
    with pytest.raises(ValueError, match="start 1.5: must be a number from 0 to 1"):
        Reuse(start=1.5)


def test_a_table_is_read_as_it_is_written(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(LEARNED))
    learned = LearnedReuse.read(path)
    assert learned.to_json() == LEARNED
    assert learned.table(4)["down.1"] == (True, True, False, True)
    options = GenerationOptions(reuse=f"learned:{path}")
    again = GenerationOptions.make(None, options.to_json())
    assert again == options and hash(again) == hash(options)  # batches group clips by them


def test_a_table_knows_its_attention_however_that_is_written(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(LEARNED | {"attention": "litefocus:0.05:weight=1.0"}))
    assert LearnedReuse.read(path).attention == "litefocus:0.05:weight=1"


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"format": "other"}, "is no table of reuse"),
        ({"steps": 5}, "row 'xx-x': must be 5 letters, x or -"),
        ({"steps": "4"}, "must be a whole number"),
        ({"computed": {"down.1": "-xxx"}}, "row -xxx: the first step is computed"),
        ({"computed": {"down.1": 3}}, "row 3: must be 4 letters"),
        ({"computed": []}, "computed|items"),
        ({"sampler": 3}, "must be texts"),
        ({"attention": "sparse"}, "attention 'sparse': must be auto, dense"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, changes, match):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(LEARNED | changes))
    with pytest.raises(ValueError, match=f"table.json.*{match}") as caught:
        LearnedReuse.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"sampler": "ddim"}, "was made for sampler dpm.., not ddim"),
        ({"steps": 5}, "was made for steps 4, not 5"),
        ({"attention": "tome:0.5"}, "was made for attention dense, not tome:0.5"),
        ({"unet_sha256": "1" * 64}, "another model's UNet"),
    ],
)
def test_a_table_is_refused_for_other_runs(tmp_path, changes, match):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(LEARNED))
    run = {name: LEARNED[name] for name in ("sampler", "steps", "attention", "unet_sha256")}
    learned = LearnedReuse.read(path)
    learned.check_run(**run)
    with pytest.raises(ValueError, match=match):
        learned.check_run(**run | changes)
