"""Which parts of the UNet each step computes: tables, by rule or from a file. Loads no torch.

"off" | "auto" | "deepcache" | "deepcache:3" | "deepcache:3:start=0.5:level=1" | "learned:FILE": a
name, an interval or a file, and any field of the settings as KEY=VALUE.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from audiolitefocus.attention.settings import attention_text, parse_attention
from audiolitefocus.validation import Number, number_text, read_json, shown

RULES = "off, auto, deepcache, deepcache:INTERVAL or deepcache:3:start=0.5"
GRAMMAR = f"{RULES}, or learned:FILE"
FORMAT = "audiolitefocus reuse table 1"

# Units by name, and for every step whether they are computed (else taken from an earlier step).
Table: TypeAlias = Mapping[str, tuple[bool, ...]]


@dataclass(frozen=True)
class Reuse:
    """DeepCache (Ma et al., CVPR 2024) with a late start: reuse by rule.

    The first steps, in which the clip is decided, are computed in full, and of the others every
    `interval`-th; the rest take what lies below a level from the last full one.

    Attributes:
        interval: 1 computes every step in full.
        start: share of the steps that are taken in full at the beginning; at least one is.
        level: the highest level that is reused: 1 leaves level 0 alone to compute.
        order: 0 takes what was computed last; 1 extrapolates from the last two, in half the log of
            the signal-to-noise ratio (Liu et al., "TaylorSeer", ICCV 2025).

    Raises:
        ValueError: a number out of bounds.
    """

    interval: int = 3
    start: float = 1 / 3
    level: int = 1
    order: int = 0

    def __post_init__(self):
        for name, rule in BOUNDS.items():
            try:
                object.__setattr__(self, name, rule(getattr(self, name)))
            except ValueError as error:
                raise ValueError(f"{name} {shown(getattr(self, name))}: {error}") from None

    def table(self, steps: int) -> Table:
        """The table of a run of so many steps."""
        return {f"down.{self.level}": full_steps(self.interval, self.start, steps)}


BOUNDS = {
    "interval": Number(1, 1000, whole=True),
    "start": Number(0.0, 1.0),
    "level": Number(1, 7, whole=True),
    "order": Number(0, 1, whole=True),
}


def full_steps(interval: int, start: float, steps: int, *, least: int = 1) -> tuple[bool, ...]:
    """Of every step, if it is computed in full: the first share of them, at least so many, and of
    the others every `interval`-th.
    """
    full = max(least, math.ceil(start * steps))
    return tuple(step < full or (step - full + 1) % interval == 0 for step in range(steps))


@dataclass(frozen=True)
class LearnedReuse:
    """A table that was calibrated or learned, for the runs that it was made for.

    Attributes:
        path: the file it was read from.
        sampler, steps, attention: of those runs. Attention is the text it was given as.
        unet_sha256: digest of the UNet's weights.
        computed: see `Table`.
    """

    path: str
    sampler: str
    steps: int
    attention: str
    unet_sha256: str
    computed: Table = field(hash=False)  # a mapping; the rest tells tables apart well enough
    order = 0

    @classmethod
    def read(cls, path: str | Path) -> "LearnedReuse":
        """A table from the JSON that `to_json` writes. Raises ValueError that names the file."""
        data = read_json(Path(path))
        where = f"{path}: reuse table"
        if data.get("format") != FORMAT:
            raise ValueError(f"{path} is no table of reuse: scripts.reuse writes them")
        try:
            sampler, attention, digest = (
                data[name] for name in ("sampler", "attention", "unet_sha256")
            )
            steps = int(BOUNDS["interval"](data["steps"]))
            table = {name: _row(text, steps) for name, text in data["computed"].items()}
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{where}: {error!r} is missing or of a wrong kind") from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if not all(isinstance(text, str) for text in (sampler, attention, digest)):
            raise ValueError(f"{where}: sampler, attention and unet_sha256 must be texts")
        try:
            attention = attention_text(parse_attention(attention))  # one text for each setting
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        return cls(str(path), sampler, steps, attention, digest, table)

    def to_json(self) -> dict[str, object]:
        """What `read` reads; rows are texts of one letter a step: x computed, - reused."""
        rows = {
            name: "".join("x" if computed else "-" for computed in row)
            for name, row in self.computed.items()
        }
        fields = ("sampler", "steps", "attention", "unet_sha256")
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in fields},
            "computed": rows,
        }

    def table(self, steps: int) -> Table:
        """The table of a run of so many steps, of which there is one."""
        return self.computed

    def check_run(
        self, *, sampler: str, steps: int, attention: str, unet_sha256: str | None
    ) -> None:
        """Raise ValueError for a run that the table was not made for."""
        theirs = {"sampler": sampler, "steps": steps, "attention": attention}
        for name, value in theirs.items():
            if value != getattr(self, name):
                raise ValueError(
                    f"reuse table {self.path} was made for {name} {getattr(self, name)}, "
                    f"not {value}: make another one, or set {name} to it"
                )
        if unet_sha256 != self.unet_sha256:
            raise ValueError(f"reuse table {self.path} was made for another model's UNet")


ReuseChoice: TypeAlias = Reuse | LearnedReuse | str  # "off" or "auto" once parsed


def choose_reuse(choice: ReuseChoice, sampler: str, steps: int) -> Reuse | LearnedReuse | None:
    """Settings, or None for no reuse; what "auto" means for so many steps is decided here."""
    if choice == "auto":
        # at half the distance of as many operations in fewer steps (docs/frontier.md)
        if steps >= 100:
            return Reuse(interval=5, start=0.1)
        return Reuse() if steps >= 15 else None
    return None if isinstance(choice, str) else choice


def check_reuse(
    reuse: Reuse | LearnedReuse | None,
    units: Collection[str],
    *,
    sampler: str,
    steps: int,
    attention: str,
    unet_sha256: str | None,
) -> None:
    """Raise ValueError for what does not fit the network or the run.

    Args:
        units: of the network, by name.
        sampler, steps, attention, unet_sha256: as in `LearnedReuse`.
    """
    if reuse is None:
        return
    if isinstance(reuse, LearnedReuse):
        reuse.check_run(sampler=sampler, steps=steps, attention=attention, unet_sha256=unet_sha256)
    if absent := sorted(reuse.table(steps).keys() - set(units)):
        raise ValueError(f"reuse {reuse_text(reuse)}: this UNet has no {', '.join(absent[:5])}")


def parse_reuse(value: ReuseChoice) -> ReuseChoice:
    """Settings from their text; "off", "auto" and settings objects are returned as they are.

    Raises:
        ValueError: anything else; the message gives the grammar or the wrong part.
    """
    if isinstance(value, (Reuse, LearnedReuse)) or value in ("off", "auto"):
        return value
    name, _, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
    if name == "learned" and rest:
        return LearnedReuse.read(rest)
    if name != "deepcache":
        raise ValueError(f"must be {GRAMMAR}")
    parts = rest.split(":") if rest else []
    if parts and "=" not in parts[0]:
        parts[0] = f"interval={parts[0]}"
    changes = dict(_field(part) for part in parts)
    return dataclasses.replace(Reuse(), **changes)  # type: ignore[arg-type]


def reuse_text(reuse: ReuseChoice) -> str:
    """The text that `parse_reuse` turns into these settings."""
    if isinstance(reuse, str):
        return reuse
    if isinstance(reuse, LearnedReuse):
        return f"learned:{reuse.path}"
    parts = ["deepcache", str(reuse.interval)]
    for setting in dataclasses.fields(reuse)[1:]:
        if (entry := getattr(reuse, setting.name)) != setting.default:
            parts.append(f"{setting.name}={number_text(entry)}")
    return ":".join(parts)


def _field(part: str) -> tuple[str, float]:
    key, _, text = part.partition("=")
    if key not in BOUNDS:
        raise ValueError(f"{part!r} is not KEY=VALUE with one of {', '.join(BOUNDS)}")
    try:
        return key, BOUNDS[key](BOUNDS[key].kind(text))
    except ValueError:
        raise ValueError(f"{key} {text!r}: must be {BOUNDS[key]}") from None


def _row(text: object, steps: int) -> tuple[bool, ...]:
    if not isinstance(text, str) or len(text) != steps or set(text) - set("x-"):
        raise ValueError(f"row {shown(text)}: must be {steps} letters, x or -")
    if text[0] != "x":
        raise ValueError(f"row {text}: the first step is computed")
    return tuple(letter == "x" for letter in text)
