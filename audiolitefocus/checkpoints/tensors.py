"""safetensors files: open, compare with a network, write. Only this file imports safetensors."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from audiolitefocus.validation import check_not_pointer

# What files of ours may hold: weights, and counts such as num_batches_tracked.
FLOATS = ("F64", "F32", "F16", "BF16")
INTEGERS = ("I64", "I32")


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator:
    """`safe_open` whose failures are ValueErrors that name the file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    check_not_pointer(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not safetensors: {error}") from None


def check_tensors(path: Path, file: Any, expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError that lists every missing, unknown, misshapen and mistyped key.

    Reads the header alone.

    Args:
        file: from `open_safetensors`.
        expected: a network's state_dict, on the meta device.
    """
    found = set(file.keys())
    problems = [f"missing {key}" for key in expected if key not in found]
    problems += [f"unknown {key}" for key in sorted(found - set(expected))]
    for key, tensor in expected.items():
        if key not in found:
            continue
        header = file.get_slice(key)
        shape, kind = list(header.get_shape()), header.get_dtype()
        if shape != list(tensor.shape):
            problems.append(f"{key} is {shape}, expected {list(tensor.shape)}")
        elif kind not in (FLOATS if tensor.is_floating_point() else INTEGERS):
            problems.append(f"{key} holds {kind}, which weights never do")
    if problems:
        raise ValueError(
            f"{path} does not fit its config ({len(problems)} keys): {'; '.join(problems)}"
        )


def save_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, without a second copy of contiguous tensors in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:  # the disk is full, or the folder was taken away
        raise OSError(f"{path} cannot be written: {error}") from None
