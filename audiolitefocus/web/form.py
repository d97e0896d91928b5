"""The options of a clip as a form: a component for each, made from `GenerationOptions`."""

import contextlib
from collections.abc import Mapping
from typing import Any

import gradio as gr

from audiolitefocus.options import (
    ATTENTION,
    DEFAULTS,
    OPTIONS,
    REUSE,
    SHARES,
    SHORT,
    SOUND,
    SPAN,
    GenerationOptions,
)
from audiolitefocus.validation import Choice, Number
from audiolitefocus.web.limits import check_no_file, help_of

# suggested, where an option has a grammar
SUGGESTED = {
    ATTENTION: ("auto", "dense", "tome", "litefocus", "litefocus:0.05:weight=1"),
    REUSE: ("off", "auto", "deepcache:3"),
}
# what a recording is for: the option that it becomes, and those that then count
USES = {
    "Vary": ("init_audio", ("strength",)),
    "Replace a part": ("init_audio", ("strength", "inpaint", "refresh")),
    "Continue": ("continue_audio", ("refresh",)),
}


def label_of(name: str) -> str:
    """A field's short name, as a caption."""
    return SHORT[name].replace("_", " ").capitalize()


def component(name: str, **changes: Any) -> gr.components.Component:
    """What an option is entered with. Bounds are checked by the option itself, in its own words."""
    option, default = OPTIONS[name], DEFAULTS[name]
    common: dict[str, Any] = {"value": default, "label": label_of(name), "info": help_of(name)}
    common |= {"elem_id": SHORT[name], **changes}
    if isinstance(option.rule, Choice):
        return gr.Dropdown(list(option.rule.names), **common)
    if option.rule in SUGGESTED:
        return gr.Dropdown(list(SUGGESTED[option.rule]), allow_custom_value=True, **common)
    if isinstance(option.rule, Number) and default is not None:
        return gr.Number(step=1 if option.rule.whole else 0.1, **common)
    assert option.rule is not SOUND, "recordings have a component of their own"
    # a number that may be left out is a text: Gradio's are 0 where they are empty
    hint = option.rule.metavar if option.rule in (SPAN, SHARES) else None
    return gr.Textbox(placeholder=hint, max_lines=1, **common)


def read_options(
    values: Mapping[str, Any], recording: str | None = None, use: str = "Vary"
) -> GenerationOptions:
    """The options that a form says; what is empty is the default.

    Args:
        values: by field; numbers may be texts.
        recording, use: a file, and the one of `USES` that it is for.

    Raises:
        ValueError: in one line, what is wrong with them, by their short names.
    """
    given = {name: _typed(name, v) for name, v in values.items() if v not in (None, "")}
    check_no_file(given.get("reuse"))
    target, count = USES[use] if recording is not None else (None, ())
    for name in ("strength", "inpaint", "refresh"):
        if name not in count:
            given.pop(name, None)
    if "inpaint" in count and "inpaint" not in given:
        raise ValueError(f"inpaint: give the part of the recording to replace, as {SPAN.metavar}")
    if target is not None:
        given[target] = recording
    if target == "init_audio":  # the clip is as long as the recording
        given.pop("audio_length_in_s", None)
    return GenerationOptions.make(None, {SHORT[name]: value for name, value in given.items()})


def _typed(name: str, value: Any) -> Any:
    """A number from its text; other values, and texts that are none, as they are."""
    rule = OPTIONS[name].rule
    if isinstance(rule, Number) and isinstance(value, str):
        with contextlib.suppress(ValueError):
            return rule.kind(value.strip())
    return value
