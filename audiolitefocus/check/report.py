"""What a check found: rows under titles, as text for people and as JSON."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MARKS = {True: "ok", False: "FAILED", None: ""}
NAME_WIDTH = 16
# What errors may be of: bad weights, files, memory, and kernels that a device does not have.
ERRORS = (ValueError, OSError, MemoryError, RuntimeError, NotImplementedError, ImportError)
ABSOLUTE = re.compile(r"(?<![\w.~:/\\])(?:[A-Za-z]:)?(?:[\\/][^\\/\s:;,'\"()]+)+")

SEPARATOR = re.compile(r"[\\/]")


@dataclass(frozen=True)
class Row:
    """One finding.

    Attributes:
        name, text: in words.
        ok: False if a check failed; None where nothing was checked.
        values: the numbers in the text, for the JSON.
    """

    name: str
    text: str
    ok: bool | None = None
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """Findings of one kind."""

    title: str
    rows: list[Row]

    def lines(self) -> Iterator[str]:
        """Plain text, without control characters of any kind that are not in the rows."""
        yield self.title
        for row in self.rows:
            mark = f"{MARKS[row.ok]:<8}" if any(row.ok is not None for row in self.rows) else ""
            yield f"  {mark}{row.name:<{NAME_WIDTH}}{row.text}".rstrip()


def failures(sections: list[Section]) -> list[str]:
    """The checks that failed, by name and section."""
    return [
        f"{row.name} ({section.title.lower()})"
        for section in sections
        for row in section.rows
        if row.ok is False
    ]


def to_json(model: str, sections: list[Section]) -> dict[str, Any]:
    """A report as JSON has it."""
    return {
        "model": model,
        "passed": not failures(sections),
        "sections": [
            {
                "title": section.title,
                "rows": [
                    {"name": row.name, "text": row.text, "ok": row.ok, "values": dict(row.values)}
                    for row in section.rows
                ],
            }
            for section in sections
        ],
    }


def attempt(name: str, work: Callable[[], Row]) -> Row:
    """What `work` finds, or a failed check with its error in one line."""
    try:
        return work()
    except ERRORS as error:
        return Row(name, without_paths(one_line(error)), ok=False)


def one_line(error: BaseException) -> str:
    """An error in one line, with its type unless that is for a user to mend."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    known = isinstance(error, (ValueError, OSError, MemoryError))
    return text if known else f"{type(error).__name__}: {text}"


def without_paths(text: str) -> str:
    """A text for the public: of absolute paths the last part alone."""
    for place in (Path.cwd(), Path.home()):
        if place != Path(place.anchor):
            text = text.replace(str(place), "/.")
    return ABSOLUTE.sub(lambda found: f".../{SEPARATOR.split(found[0])[-1]}", text)


def statistics(name: str, tensor: Tensor) -> Row:
    """Shape and statistics of a network's output, which must be finite and not constant."""
    tensor = tensor.detach().float().cpu()
    finite = tensor.isfinite()
    shape = f"({', '.join(map(str, tensor.shape))})"
    if not finite.all():
        wrong = int((~finite).sum())
        text = f"{shape}: {wrong} of {tensor.numel()} values are NaN or infinite"
        return Row(name, text, ok=False, values={"shape": list(tensor.shape), "not_finite": wrong})
    low, high = (float(end) for end in torch.aminmax(tensor))
    mean, std = float(tensor.mean()), float(tensor.std())
    text = f"{shape}: mean {mean:.4g}, std {std:.4g}, {low:.4g} to {high:.4g}"
    values = {"shape": list(tensor.shape), "mean": mean, "std": std, "min": low, "max": high}
    constant = "; constant" if low == high else ""
    return Row(name, text + constant, ok=low < high, values=values)
