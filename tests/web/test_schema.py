"""The body of a request: made from GenerationOptions, and without a way to the server's files."""

import base64
import io

import numpy as np
import pytest
import soundfile
import torch

from audiolitefocus.options import DEFAULTS, OPTIONS
from audiolitefocus.validation import Choice, Number
from audiolitefocus.web.limits import TEXT_CHARACTERS, Limits, help_of
from audiolitefocus.web.schema import FIELD, RequestError, read_request, request_schema

LIMITS = Limits(seconds=20.0)
PROPERTIES = request_schema(LIMITS)["properties"]


def sound_file(seconds: float, rate: int = 16000, **keywords) -> bytes:
    """A FLAC file of a tone."""
    file = io.BytesIO()
    tone = 0.3 * np.sin(np.arange(int(seconds * rate)) / 20)
    soundfile.write(file, tone, rate, **{"format": "FLAC", **keywords})
    return file.getvalue()


def in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture
def read(demo):
    return lambda **body: read_request({"input": "rain", **body}, demo, "demo", LIMITS)


@pytest.fixture
def refused(read):
    """The error of a body."""

    def of(**body) -> RequestError:
        with pytest.raises(RequestError) as caught:
            read(**body)
        return caught.value

    return of


@pytest.mark.parametrize(("called", "name"), FIELD.items())
def test_every_option_is_in_the_schema_with_its_bounds_default_and_help(called, name):
    option, found = OPTIONS[name], PROPERTIES[called]
    assert found["description"] == help_of(name) and found.get("default") == DEFAULTS[name]
    if isinstance(option.rule, Choice):
        assert found["enum"] == list(option.rule.names)
    if isinstance(option.rule, Number):
        low = "exclusiveMinimum" if option.rule.above else "minimum"
        highest = min(option.rule.high, LIMITS.seconds if called == "audio_length" else np.inf)
        assert (found[low], found["maximum"]) == (option.rule.low, highest)
        assert found["type"] == ("integer" if option.rule.whole else "number")


def test_help_names_no_file_that_would_be_refused():
    assert "learned:FILE" in OPTIONS["reuse"].help
    assert not any("learned" in PROPERTIES[called]["description"] for called in FIELD)
    assert [n for n in FIELD.values() if help_of(n) != OPTIONS[n].help] == ["reuse"]


def test_options_come_through_under_the_names_of_the_request(read):
    asked = read(audio_length=1.5, num_inference_steps=7, guidance_scale=2, seed=5, eta=None)
    options = asked.options
    assert (options.audio_length_in_s, options.num_inference_steps) == (1.5, 7)
    assert (options.guidance_scale, options.seed, options.eta) == (2.0, 5, 1.0)
    assert (asked.prompt, asked.format, asked.stream, asked.samples) == (
        "rain",
        "wav",
        False,
        24000,
    )


def test_without_a_length_and_a_seed_there_are_both(read, demo):
    first, second = read(), read()
    assert first.seconds == demo.config.trained_seconds
    assert first.options.seed != second.options.seed


def test_fields_of_other_servers_are_taken_where_they_do_nothing(read, refused):
    assert read(speed=1.0, audio_start=0.0, model="demo").prompt == "rain"
    assert "only 1 is supported" in str(refused(speed=2))


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"input": " "}, "input", "describe a sound"),
        ({"input": 3}, "input", "must be a text"),
        ({"input": "x" * (TEXT_CHARACTERS + 1)}, "input", "4097 characters"),
        ({"negative_prompt": "x" * 5000}, "negative_prompt", "5000 characters"),
        ({"negative_prompt": ["x"]}, "negative_prompt", "must be a text"),
        ({"audio_length": 0}, "audio_length", "must be a number from 0.04"),
        ({"audio_length": 21}, None, "20 s of sound at most"),
        ({"audio_length": 6, "num_waveforms_per_prompt": 4}, None, "4 candidates of 6 s"),
        ({"num_inference_steps": 1000}, "num_inference_steps", "from 1 to 900"),
        ({"seed": 1.5}, "seed", "whole number"),
        ({"attention": "litefocus:2"}, "attention", "litefocus:2"),
        ({"reuse": "learned:/etc/passwd"}, "reuse", "no tables here"),
        ({"response_format": "aac"}, "response_format", "wav, flac"),
        ({"response_format": "mp3", "stream": True}, "stream", "wav or pcm"),
        ({"stream": "yes"}, "stream", "true, with"),
        ({"model": "gpt"}, "model", "this server has demo"),
        ({"audio_lenght": 2}, "'audio_lenght'", "did you mean audio_length?"),
        ({"strength": 0.5}, "init_audio", "needs a recording"),
    ],
)
def test_what_is_wrong_is_named(refused, body, param, words):
    error = refused(**body)
    assert words in str(error) and error.param == param and "\n" not in str(error)


def test_a_recording_comes_as_base64_at_any_rate(read):
    asked = read(init_audio=in_base64(sound_file(1.5, 48000)), inpaint=[0.5, 1.0])
    recording = asked.options.init_audio
    assert isinstance(recording, torch.Tensor) and asked.samples == len(recording) == 24000
    expected = 0.3 * np.sin(np.arange(72000) / 20)[::3]
    np.testing.assert_allclose(recording[200:-200], expected[200:-200], atol=1e-3)


@pytest.mark.parametrize("field", ["init_audio", "continue_audio"])
@pytest.mark.parametrize("value", ["/etc/passwd", "../weights.wav", "", 5, ["a"], "AAAA", "ZZZ"])
def test_a_recording_that_is_no_sound_in_base64_is_refused(refused, field, value):
    extra = {"audio_length": 5} if field == "continue_audio" else {}
    error = refused(**{field: value}, **extra)
    assert error.param == field and str(error).startswith(field)


def test_a_file_of_the_server_is_never_opened(refused, tmp_path, monkeypatch):
    secret = tmp_path / "AAAA"  # a name that is base64 too
    secret.write_bytes(sound_file(1.0))
    monkeypatch.chdir(tmp_path)
    assert refused(init_audio="AAAA").param == "init_audio"


def test_a_recording_that_is_too_long_is_refused_before_it_is_in_memory(refused):
    silence = np.zeros(3000 * 8000, np.int16)  # 48 MB of samples in a file of kilobytes
    file = io.BytesIO()
    soundfile.write(file, silence, 8000, format="FLAC")
    assert len(file.getvalue()) < 200_000
    error = refused(init_audio=in_base64(file.getvalue()))
    assert "3000 s long: more than 20 s" in str(error)


def test_a_span_that_the_recording_does_not_have_is_refused(refused):
    recording = in_base64(sound_file(1.0))
    assert "only 1.00 s" in str(refused(init_audio=recording, inpaint=[0.5, 3]))
    error = refused(continue_audio=recording, audio_length=0.5)
    assert str(error).startswith("audio_length 0.5: must be longer than the recording")
