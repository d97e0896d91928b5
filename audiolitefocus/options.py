"""Every choice of one call of the pipeline, in one dataclass. Loads no torch, knows no algorithm.

Names, defaults, bounds and help are written here and nowhere else: the Python call, the command
line, a line of a prompts file, the JSON beside a clip and docs/options.md are made from the fields.
"""

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from audiolitefocus.attention.settings import (
    GRAMMAR,
    Attention,
    TokenMerging,
    attention_text,
    parse_attention,
)
from audiolitefocus.parallel.settings import GRAMMAR as PARALLEL_GRAMMAR
from audiolitefocus.parallel.settings import Parallel, parallel_text, parse_parallel
from audiolitefocus.reuse.settings import GRAMMAR as REUSE_GRAMMAR
from audiolitefocus.reuse.settings import ReuseChoice, parse_reuse, reuse_text
from audiolitefocus.validation import MAX_SECONDS, MIN_SECONDS, Choice, Custom, Number, Rule, shown

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

# of a recording: a file, by name or open, or samples, with their rate if it is not the model's
Source: TypeAlias = "str | os.PathLike | BinaryIO | tuple[int, np.ndarray] | np.ndarray | Tensor"

VARIATION_STRENGTH = 0.5  # of a variation, where no strength is given
DRAFTER_INTERVAL = (0.0, 0.3)  # where a drafter is given without one


@dataclass(frozen=True)
class Option:
    """What is known of an option besides its name and default.

    Attributes:
        group: the caption that it stands under.
        rule: returns the value to keep of a value given, or raises ValueError with a reason. Its
            text says what is allowed, `rule.kind` is the type of the value on the command line.
        help: what it means.
        short: its name on the command line and in files, where that differs from the field's.
    """

    group: str
    rule: Rule
    help: str
    short: str | None = None


def _option(group: str, default: Any, rule: Rule, help: str, short: str | None = None) -> Any:
    return dataclasses.field(default=default, metadata={"option": Option(group, rule, help, short)})


def _sound(value: Any) -> object:
    if hasattr(value, "ndim") or hasattr(value, "read") or isinstance(value, tuple):
        return value  # samples, or an open file, which the pipeline looks at
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ValueError(f"must be {SOUND}")
    path = os.fsdecode(value)
    path.encode()  # it is written into JSON
    return path


def _span(value: Any) -> tuple[float, float]:
    """Seconds (start, end) from two numbers or "START:END"."""
    try:
        if isinstance(value, str):
            value = [float(second) for second in value.split(":")]
        start, end = (Number(0.0, MAX_SECONDS)(second) for second in value)
    except (TypeError, ValueError):
        raise ValueError(f"must be {SPAN}") from None
    if start >= end:
        raise ValueError("must end after it starts")
    return start, end


def _shares(value: Any) -> tuple[float, float]:
    """(start, stop) from two numbers or "START:STOP"."""
    try:
        if isinstance(value, str):
            value = [float(share) for share in value.split(":")]
        start, stop = (Number(0.0, 1.0)(share) for share in value)
    except (TypeError, ValueError):
        raise ValueError(f"must be {SHARES}") from None
    if start >= stop:
        raise ValueError("must stop after it starts")
    return start, stop


def _windows(value: Any) -> str | float:
    if value in ("off", "auto"):
        return value
    try:
        return Number(MIN_SECONDS, MAX_SECONDS)(float(value) if isinstance(value, str) else value)
    except ValueError:
        raise ValueError(f"must be {WINDOWS}") from None


def _text(value: Any) -> str | tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"must be {TEXT}")
    "".join(texts).encode()  # UnicodeEncodeError is a ValueError
    return value if isinstance(value, str) else tuple(value)


def _attention(value: Any) -> Attention:
    try:
        return parse_attention(value)
    except ValueError as error:
        raise ValueError(str(error).removeprefix(f"attention {value!r}: ")) from None


SOUND = Custom(
    "FILE",
    "a sound file, or in Python an open one, samples at the model's rate, or (rate, samples)",
    _sound,
)
SPAN = Custom("START:END", f"START:END in seconds up to {MAX_SECONDS:g}, as 2:4.5", _span)
TEXT = Custom("TEXT", "a text, or in Python a list of texts, one for each prompt", _text)
SHARES = Custom("START:STOP", "START:STOP as shares of the steps, as 0:0.8", _shares)
WINDOWS = Custom(
    "SECONDS", f"off, auto or seconds from {MIN_SECONDS:g} to {MAX_SECONDS:g}", _windows
)
REUSE = Custom("NAME", REUSE_GRAMMAR, parse_reuse)
PARALLEL = Custom("NAME", PARALLEL_GRAMMAR, parse_parallel)
ATTENTION = Custom("NAME", GRAMMAR, _attention)


@dataclass(frozen=True)
class GenerationOptions:
    """How clips are made. Values are checked, and kept in one form, when the options are made.

    Field names are diffusers' where diffusers has one. See `Option` for what each field carries,
    and docs/options.md for all of them.

    Raises:
        OptionError (a ValueError): a value out of bounds, or options that exclude each other.
    """

    audio_length_in_s: float | None = _option(
        "Clip", None, Number(MIN_SECONDS, MAX_SECONDS), "Seconds; default: as trained.", "duration"
    )
    init_audio: "Source | None" = _option(
        "Recording", None, SOUND, "Recording to make a variation of."
    )
    strength: float | None = _option(
        "Recording",
        None,
        Number(0.0, 1.0, above=True),
        "Fraction of the steps to run on the recording; 1 forgets it. Default: "
        f"{VARIATION_STRENGTH:g}, or 1 with inpainting.",
    )
    inpaint: tuple[float, float] | None = _option(
        "Recording", None, SPAN, "Part of the recording to replace; the rest stays unchanged."
    )
    continue_audio: "Source | None" = _option(
        "Recording", None, SOUND, "Recording to extend to the clip's length.", "continue"
    )
    refresh: int = _option(
        "Recording",
        1,
        Number(1, 1000, whole=True),
        "Compute the frames that stay in every N-th step only, and in the others what changes.",
    )
    num_inference_steps: int = _option(
        "Sampling", 200, Number(1, 1000, whole=True), "Denoising steps; of lcm 4.", "steps"
    )
    sampler: str = _option(
        "Sampling",
        "ddim",
        Choice(("ddim", "dpm++", "lcm")),
        "dpm++ needs only 20 to 25 steps; lcm 2 to 8, with weights that were distilled for it, for "
        "which it is the default.",
    )
    eta: float = _option(
        "Sampling", 1.0, Number(0.0, 1.0), "Fresh noise in each step of ddim; 0 adds none."
    )
    reuse: ReuseChoice = _option(
        "Sampling",
        "off",
        REUSE,
        f"Parts of the network that steps take from earlier ones: {REUSE_GRAMMAR}.",
    )
    drafter_interval: tuple[float, float] | None = _option(
        "Sampling",
        None,
        SHARES,
        "Steps that the drafter takes, a second model, as shares of them. Default: "
        f"{DRAFTER_INTERVAL[0]:g}:{DRAFTER_INTERVAL[1]:g}.",
    )
    guidance_scale: float = _option(
        "Guidance",
        3.5,
        Number(0.0, 1000.0),
        "How closely to follow the prompt; 1: no guidance. Distilled weights have theirs baked in.",
    )
    guidance_interval: tuple[float, float] | None = _option(
        "Guidance",
        None,
        SHARES,
        "Steps with guidance, as shares of them; the others take half the time. Default: all.",
    )
    adaptive_guidance: float | None = _option(
        "Guidance",
        None,
        Number(0.0, 1.0),
        "Leave out guidance of a clip once the cosine of both predictions is greater.",
    )
    negative_prompt: str | tuple[str, ...] | None = _option(
        "Guidance", None, TEXT, "Sound to steer away from."
    )
    unconditional: str = _option(
        "Guidance",
        "trained",
        Choice(("trained", "empty_prompt")),
        "What guidance steers away from without a negative prompt: the empty conditioning of "
        "training, or an empty prompt as in diffusers.",
    )
    num_waveforms_per_prompt: int = _option(
        "Clip",
        1,
        Number(1, 1000, whole=True),
        "Clips to make of each prompt, ranked by CLAP.",
        "candidates",
    )
    seed: int | None = _option(
        "Clip",
        None,
        Number(0, 2**63 - 1, whole=True),
        "Same seed, same clip. Default: random, or with a prompts file made from the text.",
    )
    attention: Attention = _option(
        "Attention and decoding",
        "auto",
        ATTENTION,
        f"Self-attention: {GRAMMAR}. auto is dense up to the trained length, LiteFocus beyond.",
    )
    windows: str | float = _option(
        "Attention and decoding",
        "off",
        WINDOWS,
        "Denoise in windows of so many seconds; auto uses windows as long as trained for clips of "
        "more than eight times that.",
    )
    decode: str = _option(
        "Attention and decoding",
        "auto",
        Choice(("auto", "whole", "tiled")),
        "Decode at once, or in tiles with a crossfade; auto uses tiles for long clips.",
    )
    parallel: Parallel = _option(
        "Devices",
        "auto",
        PARALLEL,
        f"How several devices share the work: {PARALLEL_GRAMMAR}. auto gives the clips of one "
        "device.",
    )

    def __post_init__(self):
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            if value is not None or DEFAULTS[name] is not None:
                object.__setattr__(self, name, _checked(name, option, value))
        self._check_together()

    def _check_together(self) -> None:
        """Raise OptionError for options that exclude, or need, each other."""
        length, init = self.audio_length_in_s, self.init_audio
        if init is not None and self.continue_audio is not None:
            raise OptionError("give either {init_audio} or {continue_audio}, not both")
        for name in ("strength", "inpaint"):
            if getattr(self, name) is not None and init is None:
                raise OptionError(f"{{{name}}} needs a recording: give it as {{init_audio}}")
        if init is not None and length is not None:
            raise OptionError(
                "{audio_length_in_s} cannot be set with {init_audio}; use {continue_audio} to "
                "extend a recording"
            )
        if self.continue_audio is not None and length is None:
            raise OptionError("{continue_audio} needs {audio_length_in_s}, that of the whole clip")
        if self.refresh > 1:
            self._check_refresh()
        for name in ("negative_prompt", "guidance_interval", "adaptive_guidance"):
            if self.sampler == "lcm" and getattr(self, name) is not None:
                raise OptionError(f"{{sampler}} lcm has guidance baked in: leave out {{{name}}}")
        if self.steps_taken < 1:
            raise OptionError(
                "{strength} {0:g} of {num_inference_steps} {1} is less than one step",
                self.strength_used,
                self.num_inference_steps,
            )

    def _check_refresh(self) -> None:
        """Raise OptionError where nothing is kept, or for what cannot be refreshed."""
        if self.inpaint is None and self.continue_audio is None:
            raise OptionError(
                "{refresh} {0} needs frames that stay: give {inpaint} or {continue_audio}",
                self.refresh,
            )
        if isinstance(self.attention, TokenMerging):
            raise OptionError("{refresh} and {attention} tome exclude each other: give one")
        for name in ("reuse", "windows"):
            if getattr(self, name) != "off":
                raise OptionError(f"{{refresh}} and {{{name}}} exclude each other: give one")

    @classmethod
    def make(
        cls,
        options: "GenerationOptions | None" = None,
        changes: Mapping[str, object] = {},
        *,
        called: Mapping[str, str] = {},
    ) -> "GenerationOptions":
        """`options`, or the defaults, with changes by field name or short name.

        Args:
            called: what errors call a field that `changes` does not name: field -> name.

        Raises:
            ValueError: an unknown name, with the nearest known one; or an invalid value, or
                combination of values, by the names that the caller wrote.
        """
        written: dict[str, str] = {}
        values: dict[str, Any] = {}
        for name, value in changes.items():
            field = field_of(name)
            if field in values:
                raise ValueError(f"{written[field]} and {name} are the same option: give one")
            written[field], values[field] = name, value
        # __post_init__ checks, and does not know what the caller wrote
        try:
            return dataclasses.replace(options or cls(), **values)
        except OptionError as error:
            raise error.renamed({**called, **written}) from None

    def to_json(self) -> dict[str, object]:
        """Values that JSON has, by field name; `make` reads them back.

        Raises:
            ValueError: a recording given as samples.
        """
        data: dict[str, object] = {}
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            if option.rule is SOUND and not isinstance(value, (str, type(None))):
                raise ValueError(f"{name}: samples have no JSON form; give the name of a file")
            data[name] = list(value) if isinstance(value, tuple) else value
        texts = {"attention": attention_text(self.attention), "reuse": reuse_text(self.reuse)}
        return {**data, **texts, "parallel": parallel_text(self.parallel)}

    @property
    def recording(self) -> "Source | None":
        """The recording that the clip is made from: a file's name, samples, or None."""
        return self.continue_audio if self.init_audio is None else self.init_audio

    @property
    def guided(self) -> bool:
        """True if steps are evaluated without the text too; lcm has guidance in its weights."""
        return self.guidance_scale > 1 and self.sampler != "lcm"

    @property
    def strength_used(self) -> float:
        """The fraction of the steps that is run: 1 without a recording to vary."""
        if self.strength is not None:
            return self.strength
        return 1.0 if self.init_audio is None or self.inpaint is not None else VARIATION_STRENGTH

    @property
    def steps_taken(self) -> int:
        """Denoising steps of a clip; of a variation the last ones, rounded down as in diffusers."""
        return int(self.num_inference_steps * self.strength_used)

    @property
    def drafted_steps(self) -> range:
        """The steps that a drafter takes, where there is one."""
        interval = self.drafter_interval or DRAFTER_INTERVAL
        return range(*(round(share * self.steps_taken) for share in interval))


class OptionError(ValueError):
    """Invalid options. `{field}` in the message stands for what the caller calls that field."""

    def __init__(self, message: str, *values: object, names: Mapping[str, str] = {}):
        self.message, self.values = message, values
        super().__init__(message.format(*values, **{n: names.get(n, n) for n in OPTIONS}))

    def renamed(self, names: Mapping[str, str]) -> "OptionError":
        """The same error with other names of fields: field -> name."""
        return OptionError(self.message, *self.values, names=names)


def _checked(name: str, option: Option, value: object) -> object:
    try:
        return option.rule(value)
    except ValueError as error:
        raise OptionError(f"{{{name}}} {{0}}: {{1}}", shown(value), error) from None


_FIELDS = dataclasses.fields(GenerationOptions)
OPTIONS: dict[str, Option] = {field.name: field.metadata["option"] for field in _FIELDS}
DEFAULTS: dict[str, object] = {field.name: field.default for field in _FIELDS}
# field -> its name on the command line and in files, and every name -> field
SHORT: dict[str, str] = {name: option.short or name for name, option in OPTIONS.items()}
NAMES: dict[str, str] = {short: name for name, short in SHORT.items()} | {n: n for n in OPTIONS}


def field_of(name: str) -> str:
    """The field that a name or short name means. Raises ValueError with the nearest known name."""
    if name in NAMES:
        return NAMES[name]
    near = difflib.get_close_matches(str(name), NAMES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(NAMES))}"
    raise ValueError(f"unknown option {shown(name)}; {hint}")


def flag_of(name: str) -> str:
    """A field's flag on the command line."""
    return f"--{SHORT[name].replace('_', '-')}"
