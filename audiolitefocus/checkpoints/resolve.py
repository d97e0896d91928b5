"""A model's name, folder or hub repository -> its bundle's folder."""

import os
from pathlib import Path
from typing import Any

from audiolitefocus.checkpoints.hub import fetch, unwritable
from audiolitefocus.config import MODELS, demo_folder


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
    if Path(name).is_file():
        raise ValueError(f"{name} is a file: convert it first: audiolitefocus convert {name} DEST")
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

    try:
        bundle.parent.mkdir(exist_ok=True)
        convert_checkpoint(snapshot, bundle, name=repo, **hub)
    except ValueError:
        if not (bundle / "config.json").is_file():  # else another process was faster
            raise
    except OSError as error:
        raise unwritable(error, repo) or error from None
    return bundle
