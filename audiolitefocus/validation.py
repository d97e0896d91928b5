"""JSON turned into frozen dataclasses. It may come from anywhere, so nesting, names, types and
sizes are checked before anything is made of it.
"""

import dataclasses
import json
import math
import typing
from collections.abc import Collection

MAX_NESTING = 32
MAX_ENTRIES = 64  # of a list
LONGEST_SHOWN = 200  # characters of a value in a message


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
    """A value in a message: cut if it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def from_dict(cls, data: object, where: str):
    """Build the dataclass `cls` from parsed JSON, checking names and types. Raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object, not {type(data).__name__}")
    fields = {f.name: f.type for f in dataclasses.fields(cls)}
    if unknown := sorted(set(data) - set(fields)):
        raise ValueError(f"{where} has unknown entries: {shown(unknown)}")
    if missing := sorted(set(fields) - set(data)):
        raise ValueError(f"{where} lacks: {', '.join(missing)}")
    return cls(**{name: _typed(data[name], fields[name], f"{where}.{name}") for name in fields})


def _typed(value, kind, where: str):
    """`value` as `kind`: a scalar type, dict, a tuple[kind, ...], a dict[str, str] or a
    dataclass.
    """
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)
    origin = typing.get_origin(kind)
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


def check_bounds(owner: object, low: float, high: float, *names: str) -> None:
    """Raise ValueError unless every named field, or every entry of it, lies in [low, high]."""
    for name in names:
        value = getattr(owner, name)
        for entry in _leaves(value):
            if not low <= entry <= high:
                raise ValueError(
                    f"{type(owner).__name__}.{name} = {shown(value)}: must lie in [{low}, {high}]"
                )


def _leaves(value):
    return (
        [leaf for entry in value for leaf in _leaves(entry)]
        if isinstance(value, tuple)
        else [value]
    )
