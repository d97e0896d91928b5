"""A model's name, folder or hub repository -> its bundle's folder; names of dtypes and devices."""

import os
from pathlib import Path
from typing import Any

import torch

from audiolitefocus.checkpoints.hub import fetch
from audiolitefocus.config import MODELS, demo_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("auto", "cuda", "mps", "cpu")


def resolve_bundle(model: str | os.PathLike, **hub: Any) -> Path:
    """The folder of a model's bundle; a hub repository is downloaded and converted at first use.

    Args:
        model: a name of `config.MODELS`, a folder, or "owner/name" on the hub.
        hub: `hub.fetch`'s revision, cache_dir, local_files_only and token.

    Raises:
        ValueError: no such model; the message lists the names.
    """
    name = os.fspath(model)
    if name == "demo":
        return demo_folder()
    # A folder that happens to be called "audioldm2" is the model only if it is a bundle.
    if name and Path(name).is_dir() and (name not in MODELS or Path(name, "config.json").exists()):
        return Path(name)
    repo = MODELS[name].repo if name in MODELS else name
    if repo is None or repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        raise ValueError(
            f"model {name!r}: no such folder, and none of the names {', '.join(MODELS)}; "
            f"a hub repository is OWNER/NAME"
        )
    return _converted(repo, fetch(repo, **hub), hub)


def _converted(repo: str, snapshot: Path, hub: dict) -> Path:
    """The bundle made from a hub snapshot, in the hub's cache beside the snapshots."""
    bundle = snapshot.parent.parent / "audiolitefocus" / snapshot.name
    if (bundle / "config.json").is_file():
        return bundle
    from audiolitefocus.checkpoints.convert import convert_checkpoint  # not needed to load a bundle

    bundle.parent.mkdir(exist_ok=True)
    try:
        convert_checkpoint(snapshot, bundle, name=repo, **hub)
    except ValueError:
        if not (bundle / "config.json").is_file():  # else another process was faster
            raise
    return bundle


def choose_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """A torch dtype from itself, its name, "auto" (bfloat16 on CUDA, else float32) or None
    (float32).
    """
    if dtype is None:
        return torch.float32
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise ValueError(f"dtype {dtype!r}: must be one of {', '.join(DTYPES)}")
    return chosen


def choose_device(device: torch.device | str) -> torch.device:
    """A usable torch device. Raises ValueError for one that is unknown or not present."""
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in available:
        raise ValueError(f"device {str(device)!r}: must be one of {', '.join(DEVICES)}")
    present = available[chosen.type] and (
        chosen.type != "cuda" or (chosen.index or 0) < torch.cuda.device_count()
    )
    if not present:
        here = ", ".join(kind for kind, there in available.items() if there)
        raise ValueError(f"device {str(device)!r} is not present on this machine; it has {here}")
    return chosen
