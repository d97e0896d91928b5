"""From the name of a model to the folder of its bundle."""

import os
from pathlib import Path

from audiolitefocus.checkpoints.hub import fetch
from audiolitefocus.config import MODELS, demo_folder


def resolve_bundle(
    model: str | os.PathLike,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """The folder of a model's bundle; a hub repository is fetched and converted once.

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
    """The bundle beside a hub snapshot in the hub's cache, converted now if it is not there."""
    from audiolitefocus.checkpoints.convert import convert_checkpoint  # which most calls never need

    bundle = snapshot.parent.parent / "audiolitefocus" / snapshot.name
    if not (bundle / "config.json").is_file():
        bundle.parent.mkdir(exist_ok=True)
        try:
            convert_checkpoint(snapshot, bundle, name=repo)
        except ValueError:
            if not (bundle / "config.json").is_file():  # another process may have been first
                raise
    return bundle
