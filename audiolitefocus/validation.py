"""Checks of what comes from outside: JSON turned into dataclasses, and rules for single values.

JSON may come from anywhere, so its size, nesting, names and types are checked before anything is
made of it. Errors name the entry and its value in one line.
"""

import dataclasses
import json
import math
import numbers
import types
import typing
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

MAX_JSON_BYTES = 1 << 24  # an index of a sharded checkpoint is the longest one that is read
MAX_NESTING = 32
MAX_ENTRIES = 64  # of a list in a dataclass
LFS = b"version https://git-lfs"  # how pointers begin
LONGEST_SHOWN = 200  # characters of a value in a message

# Lengths of clips and recordings: one latent frame, and a limit against typing errors.
MIN_SECONDS, MAX_SECONDS = 0.04, 3600.0


def read_json(path: Path) -> dict:
    """The JSON object in a file. Raises ValueError that names the file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes is too large for a config")
    check_not_pointer(path)
    try:
        return parse_object(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from None


def check_not_pointer(path: Path) -> None:
    """Raise ValueError for what Git leaves in place of a large file that has not been fetched."""
    with open(path, "rb") as file:
        if file.read(len(LFS)) == LFS:
            raise ValueError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull` there")


def parse_object(text: str) -> dict:
    """A JSON object. Raises ValueError for anything else, and for one nested too deeply."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"no JSON object, but a {type(data).__name__}")
    level: list = [data]
    for _ in range(MAX_NESTING):
        level = [child for value in level for child in _children(value)]
    if level:
        raise ValueError(f"JSON nested more than {MAX_NESTING} deep")
    return data


def _children(value: object) -> Collection:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def shown(value: object) -> str:
    """A value as a message shows it: cut if it is long, numpy's numbers as plain ones."""
    text = repr(
        value.item() if isinstance(value, numbers.Number) and hasattr(value, "item") else value
    )
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def number_text(value: float) -> str:
    """A number as people write it, from which it can be read back: 1 for 1.0; integers whole."""
    short = f"{value:g}"
    return short if isinstance(value, float) and float(short) == value else str(value)


def from_dict(cls, data: object, where: str):
    """The dataclass `cls` made from parsed JSON, names and types checked. Raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object, not {type(data).__name__}")
    fields = {f.name: f.type for f in dataclasses.fields(cls)}
    if unknown := sorted(set(data) - set(fields)):
        raise ValueError(f"{where} has unknown entries: {shown(unknown)}")
    if missing := sorted(set(fields) - set(data)):
        raise ValueError(f"{where} lacks: {', '.join(missing)}")
    return cls(**{name: _typed(data[name], fields[name], f"{where}.{name}") for name in fields})


def _typed(value, kind, where: str):
    """`value` as a scalar type, dict, tuple[kind, ...], dict[str, str] or dataclass (or None)."""
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)
    origin = typing.get_origin(kind)
    if origin is types.UnionType:  # a dataclass, or None
        return None if value is None else _typed(value, typing.get_args(kind)[0], where)
    if origin is tuple and isinstance(value, (list, tuple)) and len(value) <= MAX_ENTRIES:
        return tuple(_typed(entry, typing.get_args(kind)[0], where) for entry in value)
    if origin is dict and isinstance(value, dict):
        if all(type(entry) is str for entry in value.values()):
            return value
    if kind is float and type(value) is int and abs(value) <= 2**53:  # exact, and no overflow
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{where} = {shown(value)}: expected {getattr(kind, '__name__', kind)}")
    return value


@dataclass(frozen=True)
class Number:
    """A rule for numbers from `low` to `high`, numpy's included; a bool is none.

    Called with a value it returns a plain int or float, or raises ValueError with what it must be.
    """

    low: float
    high: float
    whole: bool = False  # whole numbers alone
    above: bool = False  # `low` itself is not allowed

    @property
    def kind(self) -> type:
        return int if self.whole else float

    def __str__(self) -> str:
        what = "a whole number" if self.whole else "a number"
        low, high = (f"{n}" if isinstance(n, int) else f"{n:g}" for n in (self.low, self.high))
        return (
            f"{what} above {low}, at most {high}" if self.above else f"{what} from {low} to {high}"
        )

    def __call__(self, value: Any) -> int | float:
        allowed: Any = numbers.Integral if self.whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise ValueError(f"must be {self}")
        # NaN compares false; a huge int is compared before float() could overflow.
        if not self.low <= value <= self.high or (self.above and value == self.low):
            raise ValueError(f"must be {self}")
        return self.kind(value)


@dataclass(frozen=True)
class Choice:
    """A rule for one name of several, called as `Number` is."""

    names: tuple[str, ...]
    kind = str

    def __str__(self) -> str:
        return f"one of {', '.join(self.names)}"

    def __call__(self, value: object) -> str:
        if not isinstance(value, str) or value not in self.names:
            raise ValueError(f"must be {self}")
        return value


@dataclass(frozen=True)
class Custom:
    """A rule in words, and the function that applies it; `metavar` stands for a value in --help."""

    metavar: str
    text: str
    read: Callable[[Any], object]
    kind = str

    def __str__(self) -> str:
        return self.text

    def __call__(self, value: object) -> object:
        return self.read(value)


Rule: TypeAlias = Number | Choice | Custom


def check_number(name: str, value: object, low: float, high: float) -> float:
    """The number, if it is in [low, high], and whole where `low` is an int; else ValueError."""
    return check_rule(name, value, Number(low, high, whole=isinstance(low, int)))


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """The value, if it is one of those allowed; else ValueError."""
    return check_rule(name, value, Choice(allowed))


def check_rule(name: str, value: object, rule: Rule) -> Any:
    """The value as the rule returns it. Raises ValueError that names it."""
    try:
        return rule(value)
    except ValueError as error:
        raise ValueError(f"{name} {shown(value)}: {error}") from None


def check_texts(
    name: str, text: str | Sequence[str] | None, *, empty: bool, copies: int = 1
) -> list[str] | None:
    """A list of texts, of one text `copies` times; None stays None.

    Raises:
        ValueError: an entry that is no text or not valid Unicode, or an empty one without `empty`.
    """
    if text is None:
        return None
    if not isinstance(text, (str, list, tuple)):
        raise ValueError(f"{name} {shown(text)}: must be a text, or a list of texts")
    texts = [text] * copies if isinstance(text, str) else list(text)
    if not texts:
        raise ValueError(f"{name} is an empty list")
    for entry in texts:
        if not isinstance(entry, str):
            raise ValueError(f"{name} {shown(entry)}: must be a text")
        if not empty and not entry.strip():
            raise ValueError(f"{name} {shown(entry)} is empty: describe a sound")
        try:
            entry.encode()
        except UnicodeEncodeError as error:
            reason = f"character {error.start} is not valid Unicode ({error.reason})"
            raise ValueError(f"{name}: {reason}") from None
    return texts
