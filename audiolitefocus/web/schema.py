"""The body of a request: its JSON schema, and how it is read. Made from `GenerationOptions`.

No field names a file of the server: recordings come as base64.
"""

import base64
import binascii
import difflib
import io
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from audiolitefocus.audio.files import read_sound
from audiolitefocus.options import (
    DEFAULTS,
    OPTIONS,
    SHARES,
    SOUND,
    SPAN,
    GenerationOptions,
    OptionError,
)
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.validation import Choice, Number, Rule, check_rule, shown
from audiolitefocus.web.limits import (
    NOT_SERVED,
    Limits,
    check_for_model,
    check_no_file,
    check_prompt,
    check_size,
    help_of,
)
from audiolitefocus.web.sounds import FORMATS, STREAMED

CALLED = {"audio_length_in_s": "audio_length"}  # as other servers call it
FIELD = {CALLED.get(name, name): name for name in OPTIONS if name not in NOT_SERVED}
NEUTRAL = {"speed": 1, "audio_start": 0}  # fields of other servers, accepted where they do nothing
RECORDINGS = [name for name, option in OPTIONS.items() if option.rule is SOUND]
FORMAT = Choice(tuple(FORMATS))


class RequestError(ValueError):
    """A request that cannot be answered; `param` is the field that is at fault."""

    def __init__(self, message: str, param: str | None = None, status: int = 400):
        super().__init__(message)
        self.param, self.status = param, status


@dataclass(frozen=True)
class Asked:
    """A request that has been checked.

    Attributes:
        options: with a seed; a recording is samples at the model's rate.
        seconds, samples: of the clip.
    """

    prompt: str
    options: GenerationOptions
    format: str
    stream: bool
    seconds: float
    samples: int


def request_schema(limits: Limits) -> dict[str, Any]:
    """JSON schema of the body."""
    properties: dict[str, Any] = {
        "input": {"type": "string", "description": "The sound to make."},
        "model": {"type": "string", "description": "The model that is served, if it is given."},
        "response_format": {"type": "string", "enum": list(FORMATS), "default": "wav"},
        "stream": {
            "type": "boolean",
            "default": False,
            "description": f"Send the sound while it is decoded ({' or '.join(STREAMED)}).",
        },
    }
    for called, name in FIELD.items():
        option = OPTIONS[name]
        properties[called] = {**_schema(option.rule), "description": help_of(name)}
        if DEFAULTS[name] is not None:
            properties[called]["default"] = DEFAULTS[name]
    properties["audio_length"]["maximum"] = limits.seconds
    return {
        "type": "object",
        "required": ["input"],
        "properties": properties,
        "additionalProperties": False,
    }


def _schema(rule: Rule) -> dict[str, Any]:
    if isinstance(rule, Choice):
        return {"type": "string", "enum": list(rule.names)}
    if isinstance(rule, Number):
        low = "exclusiveMinimum" if rule.above else "minimum"
        kind = "integer" if rule.whole else "number"
        return {"type": kind, low: rule.low, "maximum": rule.high}
    if rule in (SPAN, SHARES):
        return {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    if rule is SOUND:
        return {"type": "string", "contentEncoding": "base64"}
    return {"type": "string"}


def read_request(
    data: Mapping[str, Any], pipe: AudioLDM2Pipeline, model: str, limits: Limits
) -> Asked:
    """Check everything before any work.

    Args:
        data: the parsed body; entries that are null count as absent.
        model: what the served model is called.

    Raises:
        RequestError: the first thing that is wrong, by the name that the request uses.
    """
    # 1. Names, and what is not an option
    given = {name: value for name, value in data.items() if value is not None}
    for name in given:
        _check_name(name, given)
    _attempt("input", check_prompt, "input", given.get("input"))
    if given.get("model", model) != model:
        message = f"model {shown(given['model'])}: this server has {model}"
        raise RequestError(message, "model", status=404)
    kind, stream = _format(given)

    # 2. Options, first without the recordings, which take longer
    changes = {FIELD[name]: value for name, value in given.items() if name in FIELD}
    recordings = {name: changes[name] for name in RECORDINGS if name in changes}
    options = _options({**changes, **{name: io.BytesIO() for name in recordings}})

    # 3. The recording, and what depends on it and on the model
    recorded = None
    for name, text in recordings.items():
        waveform = _recording(name, text, pipe.sampling_rate, limits)
        options, recorded = replace(options, **{name: waveform}), len(waveform)
    seconds = _attempt(None, check_for_model, pipe, options, recorded, limits)
    if options.seed is None:
        options = replace(options, seed=secrets.randbits(32))
    samples = int(seconds * pipe.sampling_rate)
    return Asked(given["input"], options, kind, stream, seconds, samples)


def _check_name(name: str, given: Mapping[str, Any]) -> None:
    known = ["input", "model", "response_format", "stream", *FIELD]
    if name in NEUTRAL and given[name] != NEUTRAL[name]:
        raise RequestError(f"{name} {shown(given[name])}: only {NEUTRAL[name]} is supported", name)
    if name not in known and name not in NEUTRAL:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise RequestError(f"unknown field {shown(name)}; {hint}", shown(name))


def _format(given: Mapping[str, Any]) -> tuple[str, bool]:
    """The format of the answer, and whether it is streamed."""
    wanted = given.get("response_format", "wav")
    kind = _attempt("response_format", check_rule, "response_format", wanted, FORMAT)
    stream = given.get("stream", False)
    if not isinstance(stream, bool) or (stream and kind not in STREAMED):
        allowed = " or ".join(STREAMED)
        raise RequestError(f"stream {shown(stream)}: true, with {allowed}, or false", "stream")
    return kind, stream


def _options(changes: Mapping[str, Any]) -> GenerationOptions:
    """The options of a request. Raises RequestError."""
    negative = changes.get("negative_prompt")
    if not isinstance(negative, (str, type(None))):
        raise RequestError("negative_prompt: must be a text", "negative_prompt")
    _attempt("negative_prompt", check_size, "negative_prompt", negative)
    _attempt("reuse", check_no_file, changes.get("reuse"))
    try:
        return GenerationOptions.make(None, changes)
    except OptionError as error:
        param = next((n for n in OPTIONS if f"{{{n}}}" in error.message), None)
        called = CALLED.get(param, param) if param else None
        raise RequestError(str(error.renamed(CALLED)), called) from None


def _recording(name: str, text: object, rate: int, limits: Limits):
    """The samples of a recording in base64, at `rate`."""
    try:
        content = base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except (binascii.Error, ValueError):
        content = b""
    if not content:
        raise RequestError(f"{name}: must be the content of a sound file in base64", name)
    return _attempt(name, _sound, name, content, rate, limits.seconds)


def _sound(name: str, content: bytes, rate: int, seconds: float):
    file = io.BytesIO(content)
    file.name = name  # which messages begin with
    return read_sound(file, rate, max_seconds=seconds)


def _attempt(param: str | None, function, *arguments, **keywords):
    """What the function returns; its ValueError as a RequestError about this field, or the
    one that its message begins with."""
    try:
        return function(*arguments, **keywords)
    except ValueError as error:
        renamed = error.renamed(CALLED) if isinstance(error, OptionError) else error
        first = str(renamed).split(" ")[0]
        raise RequestError(str(renamed), param or (first if first in FIELD else None)) from None
