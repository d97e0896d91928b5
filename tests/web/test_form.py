"""The form: every option has a component, and what it says becomes GenerationOptions."""

import pytest

gr = pytest.importorskip("gradio", reason="needs the extra web")

from audiolitefocus import GenerationOptions  # noqa: E402
from audiolitefocus.options import DEFAULTS, OPTIONS, SOUND  # noqa: E402
from audiolitefocus.validation import Choice  # noqa: E402
from audiolitefocus.web.form import USES, component, read_options  # noqa: E402
from audiolitefocus.web.limits import help_of  # noqa: E402

NAMES = [name for name, option in OPTIONS.items() if option.rule is not SOUND]


@pytest.mark.parametrize("name", NAMES)
def test_a_component_has_the_help_and_the_default_of_its_option(name):
    made = component(name)
    assert made.info == help_of(name) and made.value == DEFAULTS[name]
    if isinstance(OPTIONS[name].rule, Choice):
        assert [value for _, value in made.choices] == list(OPTIONS[name].rule.names)


def test_the_form_as_it_is_means_the_defaults():
    values = {name: component(name).value for name in NAMES}
    assert read_options(values) == GenerationOptions()
    assert read_options({**values, "seed": "", "audio_length_in_s": ""}) == GenerationOptions()


def test_numbers_may_be_texts():
    made = read_options({"seed": " 9223372036854775807 ", "audio_length_in_s": "2.5"})
    assert (made.seed, made.audio_length_in_s) == (2**63 - 1, 2.5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"audio_length_in_s": "soon"}, "duration 'soon': must be a number from 0.04 to 3600"),
        ({"num_inference_steps": 0}, "steps 0: must be a whole number from 1 to 1000"),
        ({"num_inference_steps": 2.5}, "steps 2.5: must be a whole number"),
        ({"seed": "1.5"}, "seed '1.5': must be a whole number"),
        ({"attention": "sparse"}, "attention 'sparse': must be auto"),
    ],
)
def test_errors_are_the_librarys_by_the_names_of_the_form(values, words):
    with pytest.raises(ValueError) as caught:
        read_options(values)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize("use", USES)
def test_a_recording_is_used_as_it_is_said(use):
    values = {"strength": "0.7", "inpaint": "0.5:1", "audio_length_in_s": "5"}
    made = read_options(values, "in.wav", use)
    assert (made.continue_audio if use == "Continue" else made.init_audio) == "in.wav"
    assert made.strength == (None if use == "Continue" else 0.7)
    assert made.inpaint == ((0.5, 1.0) if use == "Replace a part" else None)
    assert made.audio_length_in_s == (5.0 if use == "Continue" else None)


def test_without_a_recording_what_belongs_to_one_does_not_count():
    assert read_options({"strength": "0.7", "inpaint": "0:1"}) == GenerationOptions()


def test_a_table_is_no_file_of_the_server():
    with pytest.raises(ValueError, match="reuse: no tables here"):
        read_options({"reuse": "learned:/etc/passwd"})


def test_a_part_to_replace_must_be_given():
    with pytest.raises(ValueError, match="inpaint: give the part.* as START:END"):
        read_options({}, "in.wav", "Replace a part")
