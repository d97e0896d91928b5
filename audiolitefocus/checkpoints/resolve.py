"""From what a user names (a model, a dtype, a device) to a bundle's folder and torch's objects."""

import os
from pathlib import Path

import torch

from audiolitefocus.checkpoints.convert import convert_checkpoint
from audiolitefocus.checkpoints.hub import fetch
from audiolitefocus.config import MODELS, demo_folder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("auto", "cuda", "mps", "cpu")


def locate(
    model: str | os.PathLike,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """The folder of a model's bundle; a hub repository is fetched, and converted into the cache
    once.

    Args:
        model: a name of `config.MODELS`, a folder, or "owner/name" on the hub.

    Raises:
        ValueError: no such model; the message lists the names.
    """
    name = os.fspath(model)
    if name == "demo":
        return demo_folder()
    if (
        name
        and Path(name).is_dir()
        and (name not in MODELS or (Path(name) / "config.json").exists())
    ):
        return Path(name)
    repo = MODELS[name].repo if name in MODELS else name
    if repo is None or repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        raise ValueError(
            f"model {name!r}: no such folder, and none of the names {', '.join(MODELS)}; "
            f"a hub repository is OWNER/NAME"
        )
    snapshot = fetch(
        repo, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only, token=token
    )
    return converted(repo, snapshot)


def converted(repo: str, snapshot: Path) -> Path:
    """The bundle made from a hub snapshot, beside the snapshots in the hub's cache; made now if it
    is not there.
    """
    bundle = snapshot.parent.parent / "audiolitefocus" / snapshot.name
    if not (bundle / "config.json").is_file():
        bundle.parent.mkdir(exist_ok=True)
        try:
            convert_checkpoint(snapshot, bundle, name=repo)
        except ValueError:
            if not (bundle / "config.json").is_file():  # another process may have been first
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
