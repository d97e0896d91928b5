"""How self-attention runs: settings, and the one grammar that names them. Loads no torch.

"auto" | "dense" | "tome" | "litefocus" | "litefocus:0.05" | "litefocus:0.1:levels=1-3" |
"cross-frequency:0.2": a name, a ratio if it has one, and any field of the settings as KEY=VALUE.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeAlias

from audiolitefocus.config import AttentionRule
from audiolitefocus.validation import number_text

# Clip lengths from which on `LiteFocus.for_duration` takes in another level.
LEVEL_2_SECONDS, LEVEL_3_SECONDS = 40.96, 163.84

MAX_LEVELS = 8  # of any UNet
PAPERS_RULE = AttentionRule()

GRAMMAR = (
    "auto, dense, tome, litefocus, litefocus:RATIO, litefocus:RATIO:levels=1-3 or "
    "cross-frequency:RATIO"
)


@dataclass(frozen=True)
class LiteFocus:
    """Sparse attention: which self-attentions, and how sparse. The mathematics is in `litefocus`.

    Attributes:
        same_frequency: attend to the query's own frequency row.
        cross_frequency: attend to sampled compensation keys.
        sparse_ratio: the share r of all N tokens that is sampled; 0 none, 1 all of them.
        levels: UNet levels, going down and up; the middle goes with the deepest. (1,) is the
            paper's choice.
        seed: of the sampling. Indices are fresh in every step and every attention, the same for all
            clips and for both halves of the guidance, and the global random state is not touched.
        uniform: sample all N tokens alike, as equation (6) of the paper; otherwise the same number
            from every row, which needs no mask and is a tenth faster.
        duplicates: count a sampled key of the query's own row twice, as the authors' code does.
        weight: how far a sampled key stands for those that it was drawn from: 0 not at all, as in
            the paper, 1 so that other rows count for as much as in dense attention.
        scale: factor of the scores. Above 1, sharper: for more keys than in training.

    Raises:
        ValueError: settings that leave nothing to attend to or exclude each other, or a number out
            of bounds.
    """

    same_frequency: bool = True
    cross_frequency: bool = True
    sparse_ratio: float = 0.1
    levels: tuple[int, ...] = (1,)
    seed: int = 0
    uniform: bool = False
    duplicates: bool = False
    weight: float = 0.0
    scale: float = 1.0

    def __post_init__(self):
        if not (self.same_frequency or self.cross_frequency):
            raise ValueError("same_frequency and cross_frequency are both off: no key is left")
        if not 0 <= self.sparse_ratio <= 1:
            raise ValueError(f"sparse_ratio {self.sparse_ratio!r}: must lie in [0, 1]")
        if not self.same_frequency and self.sparse_ratio == 0:
            raise ValueError("sparse_ratio 0 without same_frequency: no key is left")
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight {self.weight!r}: must lie in [0, 1]")
        if self.weight and (self.duplicates or not self.same_frequency):
            raise ValueError("weight needs the query's own row, and each of its keys once")
        if not 0 < self.scale <= 10:
            raise ValueError(f"scale {self.scale!r}: must lie above 0, at most 10")

    @classmethod
    def for_duration(
        cls,
        seconds: float,
        *,
        trained_seconds: float = 10.24,
        rule: AttentionRule = PAPERS_RULE,
        seed: int = 0,
    ) -> "LiteFocus":
        """The length rule behind `attention="auto"` for clips beyond the trained length.

        How many keys to sample and how to weigh them is a property of the model (`rule`). A level
        joins where its dense attention takes longer than the rest of its transformers, which the
        number of tokens over channels decides: level 1 at once, level 2 beyond 41 s (45 ms against
        27 ms a layer there, bfloat16 on two CPU cores), level 3 and the middle beyond 164 s (72 ms
        against 40 ms).

        Args:
            seconds: of the clip.
            trained_seconds, rule: a bundle's `BundleConfig` has them; audioldm2's by default.
            seed: of the sampling.

        Raises:
            ValueError: `seconds` that are not positive.
        """
        if not seconds > 0:
            raise ValueError(f"seconds {seconds!r}: must be positive")
        ratio = rule.sparse_ratio * min(1.0, rule.lengths * trained_seconds / seconds)
        deepest = 1 + (seconds > LEVEL_2_SECONDS) + (seconds > LEVEL_3_SECONDS)
        levels = tuple(range(1, deepest + 1))
        return cls(sparse_ratio=ratio, levels=levels, seed=seed, weight=rule.weight)


@dataclass(frozen=True)
class TokenMerging:
    """The paper's baseline, with tomesd's defaults. The mathematics is in `token_merging`.

    Attributes:
        ratio: the share of tokens merged into others, in [0, 1).
        levels, seed: as in `LiteFocus`.
    """

    ratio: float = 0.5
    levels: tuple[int, ...] = (1,)
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio {self.ratio!r}: must lie in [0, 1)")


Attention: TypeAlias = LiteFocus | TokenMerging | str  # "auto" or "dense" once parsed

# name -> the settings it starts from, and the field that its ratio sets
NAMES: dict[str, tuple[LiteFocus | TokenMerging, str]] = {
    "litefocus": (LiteFocus(), "sparse_ratio"),
    "cross-frequency": (LiteFocus(same_frequency=False), "sparse_ratio"),
    "tome": (TokenMerging(), "ratio"),
}


def parse_attention(value: Attention) -> Attention:
    """Settings from their text; "auto", "dense" and settings objects are returned as they are.

    Raises:
        ValueError: anything else; the message gives the grammar or the wrong part.
    """
    if isinstance(value, (LiteFocus, TokenMerging)) or value in ("auto", "dense"):
        return value
    name, *parts = value.split(":") if isinstance(value, str) else [""]
    if name not in NAMES:
        raise ValueError(f"attention {value!r}: must be {GRAMMAR}")
    settings, ratio = NAMES[name]
    if parts and "=" not in parts[0]:
        parts[0] = f"{ratio}={parts[0]}"
    try:
        changes: dict[str, Any] = dict(_field(settings, part) for part in parts)
        return dataclasses.replace(settings, **changes)
    except ValueError as error:
        raise ValueError(f"attention {value!r}: {error}") from None


def attention_text(attention: Attention) -> str:
    """The text that `parse_attention` turns into these settings."""
    if isinstance(attention, str):
        return attention
    name = "tome" if isinstance(attention, TokenMerging) else "litefocus"
    if isinstance(attention, LiteFocus) and not attention.same_frequency:
        name = "cross-frequency"
    base, ratio = NAMES[name]
    parts = [name, number_text(getattr(attention, ratio))]
    for field in dataclasses.fields(attention):
        entry = getattr(attention, field.name)
        if field.name != ratio and entry != getattr(base, field.name):
            parts.append(f"{field.name}={_entry_text(entry)}")
    return ":".join(parts)


def _entry_text(entry: bool | float | tuple[int, ...]) -> str:
    if isinstance(entry, tuple):
        return ",".join(map(str, entry))
    return str(entry).lower() if isinstance(entry, bool) else number_text(entry)


def _field(settings: LiteFocus | TokenMerging, part: str) -> tuple[str, object]:
    """One KEY=VALUE, typed as the field's default is."""
    key, _, text = part.partition("=")
    names = [field.name for field in dataclasses.fields(settings)]
    if key not in names:
        raise ValueError(f"{part!r} is not KEY=VALUE with one of {', '.join(names)}")
    default = getattr(settings, key)
    try:
        if isinstance(default, bool):
            return key, {"true": True, "false": False}[text.lower()]
        if isinstance(default, tuple):
            return key, _levels(text)
        return key, type(default)(text)
    except (KeyError, ValueError):
        raise ValueError(f"{key} {text!r}: must look like {_example(default)}") from None


def _levels(text: str) -> tuple[int, ...]:
    """ "1-3" and "1,2,3" alike."""
    first, dash, last = text.partition("-")
    levels = range(int(first), int(last) + 1) if dash else [int(n) for n in text.split(",")]
    if not 0 < len(levels) <= MAX_LEVELS:
        raise ValueError("none, or more than any UNet has")
    return tuple(levels)


def _example(default: object) -> str:
    if isinstance(default, tuple):
        return "1 or 1-3"
    return "true or false" if isinstance(default, bool) else f"{default}"
