"""Weights files of checkpoints, memory-mapped: safetensors and pickles, whole or in shards.

Tensors are read when they are first used. Code in PyTorch's pickles is refused.
"""

import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from audiolitefocus.checkpoints.hub import STEMS, preferred_weights
from audiolitefocus.checkpoints.tensors import open_safetensors
from audiolitefocus.validation import check_not_pointer, read_json

OBJECT = re.compile(r"Unsupported (?:global|class).*?(\S+) was not an allowed global")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, or of its "state_dict" if it has one."""
    if path.suffix == ".safetensors":
        with open_safetensors(path) as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    data = _unpickle(path)
    if isinstance(data, dict) and isinstance(data.get("state_dict"), dict):
        data = data["state_dict"]
    if not isinstance(data, dict) or not data:
        raise ValueError(f"{path} holds no dictionary of tensors, but a {type(data).__name__}")
    if others := [str(key) for key, value in data.items() if not _is_dense(value)]:
        raise ValueError(f"{path} has entries that are no tensors: {', '.join(others)}")
    return {str(key): tensor.detach() for key, tensor in data.items()}


def _is_dense(value: object) -> bool:
    """True for a dense tensor in memory: pickles can also hold sparse and quantised ones."""
    if not isinstance(value, Tensor) or value.is_nested or value.is_quantized:
        return False
    return value.layout == torch.strided and value.device.type == "cpu"


def _unpickle(path: Path) -> object:
    """What `torch.save` wrote, if it is nothing but tensors and plain containers."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    check_not_pointer(path)
    # The format before PyTorch 1.6 cannot be mapped, and is read whole.
    mapped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damaged pickles fail in many ways
        text = str(error).rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    if named := OBJECT.search(text):
        raise ValueError(
            f"{path} holds pickled objects beside its tensors ({named[1]}), which could run code; "
            f"refused. Save its state_dict alone, or use safetensors"
        )
    reason = text.splitlines()[0].strip()
    raise ValueError(f"{path} is damaged or not a PyTorch file; fetch it again ({reason})")


def read_component(
    folder: Path, variant: str | None = None
) -> tuple[dict[str, Tensor], list[Path]]:
    """The tensors in one network's folder, and the files they are in.

    Preferred are those of `variant`, safetensors to .bin, full precision to half, one file to
    shards.
    """
    present = folder.iterdir() if folder.is_dir() else ()
    names = sorted(path.name for path in present if path.is_file())
    chosen = preferred_weights(names, variant)
    if not chosen:
        raise ValueError(
            f"{folder} has no weights: expected {STEMS[0]}.safetensors, {STEMS[1]}.safetensors, "
            f"their .fp16 variants, shards with an index, or .bin"
        )
    path = folder / chosen[0]
    return _read_shards(path) if path.suffix == ".json" else (read_tensors(path), [path])


def _read_shards(index: Path) -> tuple[dict[str, Tensor], list[Path]]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise ValueError(f'{index} has no "weight_map" of names')
    names = sorted(set(places.values()))
    # An index may come from anywhere, and must not lead out of its folder.
    if strange := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index} names shards outside its folder: {', '.join(strange)}")
    shards = [index.parent / name for name in names]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise ValueError(f"{index.parent} lacks {', '.join(missing)}, which {index.name} names")
    tensors = {}
    for shard in shards:
        tensors.update(read_tensors(shard))
    if missing := sorted(set(places) - set(tensors)):
        raise ValueError(f"{index} names tensors that no shard holds: {', '.join(missing)}")
    return tensors, [index, *shards]
