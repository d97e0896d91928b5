"""GenerationOptions: bounds, names in errors, numpy's numbers, and what is made from the fields."""

import dataclasses
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolitefocus import GenerationOptions, LiteFocus, TokenMerging
from audiolitefocus.options import DEFAULTS, NAMES, OPTIONS, SHORT, OptionError, flag_of
from audiolitefocus.validation import Choice, Number
from scripts.docs import options as docs

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
RECORDED = {"init_audio": "in.wav"}
NUMBERS = {name: option.rule for name, option in OPTIONS.items() if isinstance(option.rule, Number)}
CHOICES = {name: option.rule for name, option in OPTIONS.items() if isinstance(option.rule, Choice)}
NAMES_OF_NUMBERS = [name for name, field in NAMES.items() if field in NUMBERS]


def make(changes: dict) -> GenerationOptions:
    """Options with changes, and with a recording where these need one."""
    fields = {NAMES.get(name) for name in changes}
    needs = RECORDED if {"strength", "inpaint", "refresh"} & fields else {}
    stays = {"inpaint": (0, 1)} if "refresh" in fields else {}
    return GenerationOptions.make(None, {**needs, **stays, **changes})


# Bounds


@pytest.mark.parametrize("name", NAMES_OF_NUMBERS)
def test_bounds_are_inclusive_unless_the_rule_says_above(name):
    field, rule = NAMES[name], NUMBERS[NAMES[name]]
    for edge in (rule.low, rule.high):
        if rule.above and edge == rule.low:
            continue
        assert getattr(make({name: edge}), field) == edge


@pytest.mark.parametrize("name", NAMES_OF_NUMBERS)
def test_a_number_out_of_bounds_is_refused_by_the_name_that_was_used(name):
    rule = NUMBERS[NAMES[name]]
    outside = [rule.low - 1, rule.high + 1 if rule.whole else math.nextafter(rule.high, math.inf)]
    outside += [math.nan, math.inf, True, "5", [5], 10**400, *([2.5] if rule.whole else [])]
    outside += [rule.low] * rule.above
    for value in outside:
        with pytest.raises(OptionError, match=f"^{name} .*: must be {rule}$"):
            make({name: value})


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_refused_with_what_there_is(name):
    for value in ("euler", ["ddim"], 5, ""):
        with pytest.raises(OptionError, match=f"^{name} .*: must be one of "):
            make({name: value})
    assert all(getattr(make({name: value}), name) == value for value in CHOICES[name].names)


@pytest.mark.parametrize("name", [name for name in OPTIONS if DEFAULTS[name] is not None])
def test_none_is_no_value_for_an_option_with_a_default(name):
    with pytest.raises(OptionError, match=f"^{name} None: must be"):
        make({name: None})


@given(st.integers(1, 1000), st.floats(0, 1000, width=32))
def test_numpy_numbers_are_numbers_and_become_plain_ones(steps, scale):
    for integer, real in ((np.int64, np.float32), (np.int16, np.float64)):
        options = make({"steps": integer(steps), "guidance_scale": real(scale)})
        assert (options.num_inference_steps, options.guidance_scale) == (steps, scale)
        assert type(options.num_inference_steps) is int and type(options.guidance_scale) is float


def test_other_numbers():
    assert make({"guidance_scale": Fraction(7, 2)}).guidance_scale == 3.5
    assert make({"guidance_scale": 3}).guidance_scale == 3.0
    with pytest.raises(OptionError, match="^num_inference_steps 0: must be a whole number"):
        GenerationOptions(num_inference_steps=np.int64(0))  # shown as the number it is
    with pytest.raises(OptionError, match="^eta "):
        make({"eta": np.bool_(True)})


# Names


def test_the_short_names_are_those_of_the_command_line():
    assert {n: s for n, s in SHORT.items() if n != s} == {
        "audio_length_in_s": "duration",
        "num_inference_steps": "steps",
        "num_waveforms_per_prompt": "candidates",
        "continue_audio": "continue",
    }
    assert flag_of("num_inference_steps") == "--steps" and flag_of("init_audio") == "--init-audio"


def test_changes_by_field_name_and_short_name_are_the_same():
    base = GenerationOptions(seed=3)
    short = GenerationOptions.make(base, {"duration": 5, "steps": 20, "candidates": 2})
    field = {"audio_length_in_s": 5, "num_inference_steps": 20, "num_waveforms_per_prompt": 2}
    assert short == GenerationOptions.make(base, field) == dataclasses.replace(base, **field)
    assert base == GenerationOptions(seed=3)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("stepz", "did you mean steps?"),
        ("guidance", "did you mean guidance_scale?"),
        ("init-audio", "did you mean init_audio?"),
        ("zzz", "there are adaptive_guidance, "),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name, hint):
    with pytest.raises(ValueError, match=f"^unknown option '{name}'; .*{hint[:-1]}"):
        make({name: 1})


def test_two_names_of_one_option_are_refused():
    with pytest.raises(ValueError, match="steps and num_inference_steps are the same option"):
        make({"steps": 3, "num_inference_steps": 4})


TOGETHER = {
    "two recordings": (
        {"init_audio": "a", "continue_audio": "b"},
        "give either init_audio or continue",
    ),
    "strength alone": ({"strength": 0.5}, "strength needs a recording: give it as init_audio"),
    "inpaint alone": ({"inpaint": (1, 2)}, "inpaint needs a recording: give it as init_audio"),
    "a length twice": (
        {"init_audio": "a", "audio_length_in_s": 5},
        "audio_length_in_s cannot be set with init_audio; use continue_audio to extend",
    ),
    "no length": ({"continue_audio": "a"}, "continue_audio needs audio_length_in_s"),
    "no step": (
        {"init_audio": "a", "strength": 0.1, "num_inference_steps": 9},
        "strength 0.1 of num_inference_steps 9 is less than one step",
    ),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_options_that_do_not_go_together_are_named_as_they_were_written(case):
    changes, message = TOGETHER[case]
    with pytest.raises(OptionError, match=f"^{message}"):
        GenerationOptions(**changes)
    short = message
    for field, name in SHORT.items():
        short = short.replace(field, name)
    changes = {SHORT[name]: value for name, value in changes.items()}
    with pytest.raises(OptionError, match=f"^{short}"):
        GenerationOptions.make(None, changes, called=SHORT)


# Recordings, texts, attention


def test_a_recording_is_a_path_or_samples():
    assert make({"init_audio": Path("a") / "b.wav"}).recording == "a/b.wav"
    samples = np.zeros(100, np.float32)
    assert GenerationOptions(continue_audio=samples, audio_length_in_s=1).recording is samples
    assert GenerationOptions().recording is None
    for value in ("", 3, ["x"], b"", "\udcff.wav"):
        with pytest.raises(OptionError, match="^init_audio "):
            make({"init_audio": value})


def test_a_span_is_two_numbers_or_text():
    for value in ("2:4.5", (2, 4.5), [2, np.float32(4.5)], np.array([2, 4.5])):
        assert make({"inpaint": value}).inpaint == (2.0, 4.5)
    for value in ("1", "a:b", "1:2:3", "nan:1", (1,), 5, "-1:2", "0:4000", ""):
        with pytest.raises(OptionError, match="^inpaint .*: must be START:END in seconds"):
            make({"inpaint": value})
    for value in ("3:2", (1, 1)):
        with pytest.raises(OptionError, match="^inpaint .*: must end after it starts"):
            make({"inpaint": value})


def test_negative_prompts_are_a_text_or_a_list():
    assert make({"negative_prompt": ""}).negative_prompt == ""
    assert make({"negative_prompt": ["a", "b"]}).negative_prompt == ("a", "b")
    for value in (3, [3], ["a", None], "\udcff"):
        with pytest.raises(OptionError, match="^negative_prompt "):
            make({"negative_prompt": value})


ATTENTIONS = {
    "auto": "auto",
    "dense": "dense",
    "tome": TokenMerging(),
    "litefocus": LiteFocus(),
    "litefocus:0.05": LiteFocus(sparse_ratio=0.05),
    "litefocus:0.1:levels=1-3": LiteFocus(levels=(1, 2, 3)),
    "cross-frequency:0.2": LiteFocus(same_frequency=False, sparse_ratio=0.2),
}


@pytest.mark.parametrize("text", ATTENTIONS)
def test_attention_is_its_grammar_or_settings(text):
    assert make({"attention": text}) == make({"attention": ATTENTIONS[text]})
    assert make({"attention": text}).attention == ATTENTIONS[text]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("litefocus:0.05:weight=1.0", "litefocus:0.05:weight=1"),
        ("litefocus:0.05:scale=1.12:weight=0.50", "litefocus:0.05:weight=0.5:scale=1.12"),
        ("litefocus:0.1:seed=1234567:uniform=true", "litefocus:0.1:seed=1234567:uniform=true"),
        ("litefocus:seed=10000000:levels=1-3", "litefocus:0.1:levels=1,2,3:seed=10000000"),
        ("litefocus:1.0", "litefocus:1"),
        (f"litefocus:{1 / 3}", f"litefocus:{1 / 3}"),
        ("tome:0.25:levels=2", "tome:0.25:levels=2"),
        (LiteFocus(sparse_ratio=1, weight=1), "litefocus:1:weight=1"),
    ],
)
def test_attention_is_written_in_one_short_way_from_which_it_can_be_read(written, text):
    options = make({"attention": written})
    assert options.to_json()["attention"] == text
    assert make({"attention": text}) == options


@pytest.mark.parametrize("value", ["flash", "litefocus:2", "litefocus:x", 5, None, ["dense"]])
def test_attention_that_there_is_not_is_refused(value):
    with pytest.raises(OptionError, match="^attention .*: ") as refused:
        make({"attention": value})
    assert str(refused.value).count("attention ") == 1


def test_steps_of_a_recording_are_the_last_ones():
    assert GenerationOptions().steps_taken == 200
    assert make({**RECORDED, "steps": 25}).steps_taken == 12  # half of them, rounded down
    assert make({**RECORDED, "inpaint": "0:1", "steps": 25}).steps_taken == 25
    assert make({**RECORDED, "strength": 0.75, "steps": 4}).steps_taken == 3
    assert make({"continue": "a", "duration": 5, "steps": 4}).strength_used == 1.0


# JSON and documentation


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "audio_length_in_s": st.floats(0.04, 3600),
            "num_inference_steps": st.integers(1, 1000),
            "sampler": st.sampled_from(("ddim", "dpm++")),
            "eta": st.floats(0, 1),
            "guidance_scale": st.floats(0, 1000),
            "negative_prompt": st.text(st.characters(exclude_categories=["Cs"])),
            "num_waveforms_per_prompt": st.integers(1, 1000),
            "seed": st.integers(0, 2**63 - 1),
            "decode": st.sampled_from(("auto", "whole", "tiled")),
            "attention": st.builds(
                LiteFocus,
                sparse_ratio=st.floats(0, 1),
                levels=st.sampled_from([(1,), (1, 2), (1, 3)]),
                seed=st.integers(0, 99),
                uniform=st.booleans(),
            )
            | st.builds(TokenMerging, ratio=st.floats(0, 0.99))
            | st.sampled_from(("auto", "dense")),
        },
    )
)
def test_json_holds_the_options_by_field_name(changes):
    options = GenerationOptions(**changes)
    data = json.loads(json.dumps(options.to_json()))
    assert list(data) == list(OPTIONS)
    assert GenerationOptions.make(None, data) == options
    assert hash(GenerationOptions.make(None, data)) == hash(options)


def test_json_of_recordings():
    options = make({**RECORDED, "inpaint": "0.5:1", "negative_prompt": ["a", "b"]})
    data = options.to_json()
    assert (data["inpaint"], data["negative_prompt"]) == ([0.5, 1.0], ["a", "b"])
    assert GenerationOptions.make(None, data) == options
    with pytest.raises(ValueError, match="init_audio: samples have no JSON form"):
        make({"init_audio": np.zeros(9)}).to_json()


def test_the_page_of_options_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == docs.page()


def test_every_option_is_documented():
    for name, option in OPTIONS.items():
        assert option.help and option.group and f"`{name}` | `{flag_of(name)}`" in docs.page()
