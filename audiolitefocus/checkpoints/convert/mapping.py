"""Conversion plans: what a bundle's files are made from, checked, and carried out.

A table names, for every tensor of ours, those of the source that it is made from. A key of the
source that no table reads must be dropped by name and with a reason; anything else is an error that
lists all names. Tensors arrive through memory maps: none is read before its file is written.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from audiolitefocus.config import BundleConfig

Edit = Callable[..., Tensor]
# What weights may be; of integers there are only counts.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
COUNTS = (torch.int64,)


@dataclass(frozen=True)
class TargetFile:
    """One weights file to be written.

    Attributes:
        name: in the bundle.
        origin: stands before names of source tensors in messages.
        tensors: of the source, by the source's names.
        shapes: of the file, by our names.
        table: our name -> the source's name, or names where an edit joins several.
        edits: glob over our names -> what is done to the source's tensors.
        dropped: glob over the source's names -> why nothing is made from it.
        constants: tensors of the file that are computed, not read.
    """

    name: str
    origin: str
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    table: Mapping[str, str | tuple[str, str]]
    edits: Mapping[str, Edit] = field(default_factory=dict)
    dropped: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Tensor] = field(default_factory=dict)

    def keys(self, target: str) -> tuple[str, ...]:
        """The source's names of what a tensor of ours is made from."""
        keys = self.table[target]
        return (keys,) if isinstance(keys, str) else keys

    def wanted(self) -> dict[str, None]:
        """The source's names that are read, each once, in the order of ours."""
        return dict.fromkeys(key for target in self.table for key in self.keys(target))

    def edit(self, target: str) -> Edit:
        edits = (edit for glob, edit in self.edits.items() if fnmatchcase(target, glob))
        return next(edits, lambda tensor: tensor)


@dataclass(frozen=True)
class ConversionPlan:
    """A checkpoint's configs and key tables; no tensor is read yet.

    Attributes:
        source: its name in messages.
        kind: "diffusers" or "original".
        config: of the bundle, without provenance.
        files: weights files to write.
        documents: text files to write, by their name in the bundle.
        copies: files to copy, by their name in the bundle.
        tokenizers: the same for the "clap" and "t5" tokenizers, empty where there is none.
        read: all files that are read, by their name in the source.
        heads: which attention heads were taken, and why.
        unused: tensors that belong to no file.
        dropped: glob over their names -> why nothing is made from them.
    """

    source: str
    kind: str
    config: BundleConfig
    files: list[TargetFile]
    documents: dict[str, str]
    copies: dict[str, Path]
    tokenizers: dict[str, dict[str, Path]]
    read: dict[str, Path]
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

    A target without an entry is left out, and `check_plan` reports it.
    """
    table = {}
    for target in targets:
        module, _, leaf = target.rpartition(".")
        if target in modules:
            table[target] = modules[target]
        elif module in modules:
            table[target] = f"{modules[module]}.{leaf}"
    return table


def check_plan(plan: ConversionPlan) -> None:
    """Raise ValueError that lists every missing, unknown and misshapen tensor. Reads none."""
    problems = [f"unknown {key}" for key in plan.unused if not _named(key, plan.dropped)]
    problems += [problem for file in plan.files for problem in _problems(file)]
    if problems:
        raise ValueError(
            f"{plan.source} does not fit its config in {len(problems)} keys: {'; '.join(problems)}"
        )


def _problems(file: TargetFile) -> list[str]:
    # 1. Keys: what is read is there, and what is there is read or dropped
    wanted = file.wanted()
    problems = [f"missing {file.origin}{key}" for key in wanted if key not in file.tensors]
    problems += [
        f"unknown {file.origin}{key}"
        for key in file.tensors
        if key not in wanted and not _named(key, file.dropped)
    ]
    # 2. What is made of them has the shapes of our networks, and numbers as weights have
    for target, shape in file.shapes.items():
        if target in file.constants:
            continue
        if target not in file.table:
            problems.append(f"nothing to make {file.name}'s {target} from")
            continue
        sources = [file.tensors[key] for key in file.keys(target) if key in file.tensors]
        if len(sources) < len(file.keys(target)):
            continue  # listed as missing
        origin = f"{file.origin}{file.keys(target)[-1]}"
        if (found := _edited_shape(file.edit(target), sources)) != tuple(shape):
            shapes = " and ".join(str(list(source.shape)) for source in sources)
            gives = f"is {shapes}" if found is None else f"gives {list(found)}"
            problems.append(f"{origin} {gives}, expected {list(shape)}")
        elif wrong := {s.dtype for s in sources} - set(_dtypes(target)):
            problems.append(f"{origin} is {wrong.pop()}: no weights")
    return problems


def _dtypes(target: str) -> tuple[torch.dtype, ...]:
    """The dtypes in which a source may hold a tensor of ours."""
    return COUNTS if target.endswith("num_batches_tracked") else FLOATS


def _named(key: str, dropped: Mapping[str, str]) -> bool:
    return any(fnmatchcase(key, glob) for glob in dropped)


def _edited_shape(edit: Edit, sources: list[Tensor]) -> tuple[int, ...] | None:
    """The shape that an edit gives, from shapes alone; None where it is not possible."""
    try:
        return tuple(edit(*(tensor.to("meta") for tensor in sources)).shape)
    except (RuntimeError, IndexError):  # too few axes or rows, or two tensors that do not fit
        return None


def convert_tensors(file: TargetFile, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors of one file, cast to `dtype` (None keeps the source's).

    Raises:
        ValueError: NaN or infinite entries; lists the tensors.
    """
    tensors, broken = {}, []
    for target in file.shapes:
        if target in file.constants:
            tensors[target] = file.constants[target]
            continue
        keys = file.keys(target)
        exact = file.edit(target)(*(file.tensors[key] for key in keys))
        tensor = exact.to(dtype) if dtype and exact.is_floating_point() else exact
        # Looked at after the cast: half precision overflows where the source does not.
        if not _finite(tensor):
            why = f" (beyond {dtype})" if _finite(exact) else ""
            broken.append(f"{file.origin}{keys[-1]}{why}")
        tensors[target] = tensor
    if broken:
        raise ValueError(f"NaN or infinite entries in {', '.join(broken)}")
    return tensors


def _finite(tensor: Tensor) -> bool:
    """True if no entry is NaN or infinite. One pass: the minimum of entries with NaN is NaN."""
    return tensor.numel() == 0 or all(end.isfinite() for end in tensor.aminmax())


def size(file: TargetFile, dtype: torch.dtype | None) -> int:
    """Bytes of the tensors that `convert_tensors` will give."""
    total = sum(tensor.nbytes for tensor in file.constants.values())
    for target, shape in file.shapes.items():
        if target not in file.constants:
            tensor = file.tensors[file.keys(target)[-1]]
            kind = dtype if dtype and tensor.is_floating_point() else tensor.dtype
            total += torch.Size(shape).numel() * kind.itemsize
    return total


def dropped_keys(plan: ConversionPlan) -> list[str]:
    """One line for each group of keys that was dropped: how many, which, and why."""
    groups = [(f.origin, f.tensors.keys() - f.wanted().keys(), f.dropped) for f in plan.files]
    groups.append(("", set(plan.unused), plan.dropped))
    counts = (
        (origin + glob, sum(fnmatchcase(key, glob) for key in keys), reason)
        for origin, keys, dropped in groups
        for glob, reason in dropped.items()
    )
    return [f"dropped {count} of {name}: {reason}" for name, count, reason in counts if count]
