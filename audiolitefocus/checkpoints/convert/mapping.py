"""Key tables at work: composed of leaf tables, checked against what a source holds, and applied.

A table names, for every tensor of ours, the source's tensor it is made from. A source's key that no
table reads must be dropped by name and with a reason; anything else is an error that lists all
names. Tensors arrive through memory maps, so that nothing is read before it is written.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from audiolitefocus.config import BundleConfig

Edit = Callable[[Tensor], Tensor]
Shapes = Mapping[str, tuple[int, ...]]
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
COUNTS = (torch.int64,)


@dataclass(frozen=True)
class Part:
    """One weights file to be, and what it is made from.

    Attributes:
        file: its name in the bundle.
        origin: what stands before its tensors' names in messages.
        tensors: of the source, by the source's names.
        shapes: of the file, by our names.
        table: our name -> the source's name.
        edits: glob over our names -> what is done to the tensor.
        dropped: glob over the source's names -> why nothing is made from it.
        constants: tensors of the file that are computed, not read.
    """

    file: str
    origin: str
    tensors: Mapping[str, Tensor]
    shapes: Shapes
    table: Mapping[str, str]
    edits: Mapping[str, Edit] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A checkpoint that has been understood and not yet read.

    Attributes:
        name: what messages call it.
        kind: "diffusers" or "original".
        config: of the bundle to be, without provenance.
        parts: the weights files.
        documents: text files to write, by their name in the bundle.
        copies: files to copy, by their name in the bundle.
        tokenizers: the same for the "clap" and "t5" tokenizers, empty where there is none.
        files: every file read, by its name in the source.
        heads: which attention heads were taken, and why.
        unused: tensors that belong to no part, with the reasons why they are dropped.
    """

    name: str
    kind: str
    config: BundleConfig
    parts: list[Part]
    documents: dict[str, str]
    copies: dict[str, Path]
    tokenizers: dict[str, dict[str, Path]]
    files: dict[str, Path]
    heads: str
    unused: dict[str, Tensor] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)


def compose(*blocks: tuple[str, str, Mapping[str, str]]) -> dict[str, str]:
    """One flat table from (our prefix, the source's prefix, leaf table) blocks."""
    return {
        _join(ours, leaf): _join(theirs, name)
        for ours, theirs, leaves in blocks
        for leaf, name in leaves.items()
    }


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def table_for(targets: Iterable[str], modules: Mapping[str, str]) -> dict[str, str]:
    """Our parameter -> the source's, from a table of modules or of single parameters.

    A target without an entry stays out, and `check` reports it.
    """
    table = {}
    for target in targets:
        module, _, leaf = target.rpartition(".")
        if target in modules:
            table[target] = modules[target]
        elif module in modules:
            table[target] = f"{modules[module]}.{leaf}"
    return table


def check(source: Source) -> None:
    """Raise ValueError that lists every missing, unknown and wrongly shaped tensor. Reads none."""
    problems = [f"unknown {key}" for key in source.unused if not _named(key, source.dropped)]
    problems += [problem for part in source.parts for problem in _problems(part)]
    if problems:
        raise ValueError(
            f"{source.name} does not fit its config in {len(problems)} keys: {'; '.join(problems)}"
        )


def _problems(part: Part) -> list[str]:
    wanted = set(part.table.values())
    problems = [
        f"missing {part.origin}{key}"
        for key in dict.fromkeys(part.table.values())
        if key not in part.tensors
    ]
    problems += [
        f"unknown {part.origin}{key}"
        for key in part.tensors
        if key not in wanted and not _named(key, part.dropped)
    ]
    for target, shape in part.shapes.items():
        if target not in part.table and target not in part.constants:
            problems.append(f"nothing to make {part.file}'s {target} from")
        elif (found := _shape(part, target)) not in (None, tuple(shape)):
            key = part.table.get(target, target)
            problems.append(f"{part.origin}{key} gives {list(found)}, expected {list(shape)}")
        elif found and target in part.table and not _numeric(part, target):
            key = part.table[target]
            problems.append(f"{part.origin}{key} is {part.tensors[key].dtype}: no weights")
    return problems


def _numeric(part: Part, target: str) -> bool:
    """Whether the source's numbers are what weights are; of integers there are only counts."""
    counts = target.endswith("num_batches_tracked")
    return part.tensors[part.table[target]].dtype in (COUNTS if counts else FLOATS)


def _named(key: str, dropped: Mapping[str, str]) -> bool:
    return any(fnmatchcase(key, glob) for glob in dropped)


def _shape(part: Part, target: str) -> tuple[int, ...] | None:
    """What `make` would give, from shapes alone; None for a tensor that is missing anyway."""
    if target in part.constants:
        return tuple(part.constants[target].shape)
    source = part.tensors.get(part.table[target])
    if source is None:
        return None
    try:
        return tuple(_edit(part, target)(source.to("meta")).shape)
    except (RuntimeError, IndexError):  # too few axes or rows to be edited
        return tuple(source.shape)


def _edit(part: Part, target: str) -> Edit:
    return next((edit for glob, edit in part.edits.items() if fnmatchcase(target, glob)), _keep)


def _keep(tensor: Tensor) -> Tensor:
    return tensor


def make(part: Part, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors of one file, cast to `dtype` (None keeps the source's).

    Raises ValueError that lists the tensors with NaN or infinite entries.
    """
    tensors, broken = {}, []
    for target in part.shapes:
        if target in part.constants:
            tensors[target] = part.constants[target]
            continue
        source = _edit(part, target)(part.tensors[part.table[target]])
        tensor = source.to(dtype) if dtype and source.is_floating_point() else source
        if not _finite(tensor):
            why = f" (beyond {dtype})" if _finite(source) else ""
            broken.append(f"{part.origin}{part.table[target]}{why}")
        tensors[target] = tensor
    if broken:
        raise ValueError(f"NaN or infinite entries in {', '.join(broken)}")
    return tensors


def _finite(tensor: Tensor) -> bool:
    """Whether no entry is NaN or infinite, in one pass: extremes hand NaN on."""
    return tensor.numel() == 0 or all(end.isfinite() for end in tensor.aminmax())


def size(part: Part, dtype: torch.dtype | None) -> int:
    """Bytes of the tensors that `make` will give."""
    total = sum(tensor.nbytes for tensor in part.constants.values())
    for target, shape in part.shapes.items():
        if target not in part.constants:
            tensor = part.tensors[part.table[target]]
            kind = dtype if dtype and tensor.is_floating_point() else tensor.dtype
            total += torch.Size(shape).numel() * kind.itemsize
    return total


def report(source: Source) -> list[str]:
    """One line for every group of keys that was dropped: how many, which, and why."""
    groups = [(p.origin, set(p.tensors) - set(p.table.values()), p.dropped) for p in source.parts]
    groups.append(("", set(source.unused), source.dropped))
    counts = (
        (origin + glob, sum(fnmatchcase(key, glob) for key in keys), reason)
        for origin, keys, dropped in groups
        for glob, reason in dropped.items()
    )
    return [f"dropped {count} of {name}: {reason}" for name, count, reason in counts if count]
