"""Conversion of public AudioLDM2 weights into a bundle: `convert_checkpoint`."""

import dataclasses
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from audiolitefocus.atomic import atomic_folder, check_room
from audiolitefocus.checkpoints.bundle import bundle_name, sha256
from audiolitefocus.checkpoints.convert import diffusers_keys as diffusers
from audiolitefocus.checkpoints.convert import original_keys as original
from audiolitefocus.checkpoints.convert.mapping import Source, check, make, report, size
from audiolitefocus.checkpoints.convert.towers import (
    TOKENIZER_FILES,
    TOKENIZER_REPOS,
    tokenizer_files,
)
from audiolitefocus.checkpoints.hub import fetch, fetch_files
from audiolitefocus.checkpoints.tensors import save_tensors
from audiolitefocus.config import BundleConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEADS = ("trained", "config")
SPARE_BYTES = 1 << 26  # of disk, for configs and tokenizers
COMMIT = re.compile(r"[0-9a-f]{40}")


class Bar(Protocol):
    """What is used of a tqdm bar. It counts bytes: of the source hashed, and written, and hashed
    again.
    """

    total: Any

    def update(self, n: int) -> Any: ...

    def set_description(self, desc: str) -> Any: ...


def convert_checkpoint(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    dtype: torch.dtype | str | None = None,
    heads: str = "trained",
    tokenizers: str | os.PathLike | None = None,
    name: str | None = None,
    force: bool = False,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    progress: Bar | None = None,
) -> BundleConfig:
    """Turn a checkpoint into a bundle. The destination appears whole or not at all.

    Args:
        source: a folder in diffusers layout, a hub repository "owner/name" in that layout, or an
            original .pth or .ckpt.
        destination: the bundle's folder; its parent must exist.
        dtype: of all floating-point weights; None keeps the source's.
        heads: "trained", heads of 32 channels, or "config", what unet/config.json says.
        tokenizers: a folder with clap/ and t5/ tokenizers, which go before the source's own. What
            is then still missing is taken from the hub.
        name: of the source in the bundle's config; default: as given, of a path the last part.
        force: replace a bundle at the destination.
        revision, cache_dir, local_files_only, token: of the hub.
        progress: a tqdm bar, or what looks like one.

    Returns:
        The bundle's config. Its `provenance` says where the weights came from. "heads" and "notes"
        in it are for a person to see: the choice of heads, dropped keys, missing tokenizers.

    Raises:
        ValueError: a source that is unknown, damaged or no AudioLDM2, or a destination that exists.
            All but NaN in the weights is found before any weights are read.
        OSError: a destination that cannot be written to, or a hub that cannot be reached.
    """
    dtype, tokenizers = _checked_options(dtype, heads, tokenizers)
    hub = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
    with atomic_folder(destination, force=force) as folder:
        place, name = _locate(source, name, revision, hub)
        found = (original if place.is_file() else diffusers).read(place, heads=heads)
        check(found)
        copies, missing = _tokenizers(found, tokenizers, hub)
        advance = _start(progress, found, dtype, folder)
        digests = {n: sha256(p, partial(advance, f"check {n}")) for n, p in found.files.items()}
        provenance = {
            "source": name,
            "kind": found.kind,
            "revision": place.name if COMMIT.fullmatch(place.name) else revision,
            "heads": found.heads,
            "dtype": str(dtype).removeprefix("torch.") if dtype else "the source's",
            "sha256": digests,
            "notes": report(found) + missing,
        }
        files = _write(found, dtype, folder, advance)
        for file, path in (copies | found.copies).items():
            shutil.copyfile(path, folder / file)
        for file, text in found.documents.items():
            (folder / file).write_text(text, encoding="utf-8")
        config = dataclasses.replace(found.config, name=name, provenance=provenance, files=files)
        (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
    return config


def _checked_options(
    dtype: torch.dtype | str | None, heads: str, tokenizers: str | os.PathLike | None
) -> tuple[torch.dtype | None, Path | None]:
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and chosen not in DTYPES.values():
        raise ValueError(f"dtype {dtype!r}: must be one of {', '.join(DTYPES)}")
    if heads not in HEADS:
        raise ValueError(f"heads {heads!r}: must be one of {', '.join(HEADS)}")
    if tokenizers is None:
        return chosen, None
    tokenizers = Path(tokenizers)
    if lacking := [
        kind for kind in TOKENIZER_REPOS if not tokenizer_files(tokenizers / kind, kind)
    ]:
        raise ValueError(
            f"tokenizers {tokenizers}: no tokenizer_config.json in "
            f"{', '.join(f'{kind}/' for kind in lacking)}"
        )
    return chosen, tokenizers


def _locate(
    source: str | os.PathLike, name: str | None, revision: str | None, hub: dict
) -> tuple[Path, str]:
    """The source's file or folder, and the name to know it by: never an absolute path."""
    place, given = Path(source), os.fspath(source)
    if place.exists():
        if place.is_dir() and (place / "config.json").is_file() and not (place / "unet").is_dir():
            raise ValueError(f"{place} is no folder in diffusers layout; is it a bundle already?")
        return place, name or Path(os.path.abspath(place)).name
    if (
        given.count("/") != 1
        or given.startswith((".", "/", "~"))
        or place.suffix in (".pth", ".ckpt")
    ):
        raise ValueError(f"{given}: no such file or folder; a hub repository is written OWNER/NAME")
    return fetch(given, revision=revision, **hub), name or given


def _tokenizers(source: Source, given: Path | None, hub: dict) -> tuple[dict[str, Path], list[str]]:
    """The tokenizers' files, and a line for each tokenizer that cannot be had."""
    files: dict[str, Path] = {}
    missing: list[str] = []
    for kind, repo in TOKENIZER_REPOS.items():
        own = tokenizer_files(given / kind, kind) if given else source.tokenizers[kind]
        if not own:
            try:
                own = tokenizer_files(fetch_files(repo, TOKENIZER_FILES, **hub), kind)
            except (OSError, ValueError) as error:
                missing.append(
                    f"no tokenizer for {kind}, so prompts cannot be read; convert again with "
                    f"--tokenizers FOLDER ({error})"
                )
        files |= own
    return files, missing


def _start(
    progress: Bar | None, source: Source, dtype: torch.dtype | None, folder: Path
) -> Callable[[str, int], None]:
    """Check that the disk has room, and set up the count of bytes."""
    writes = sum(size(part, dtype) for part in source.parts)
    check_room(folder.parent, writes + SPARE_BYTES)
    if progress is None:
        return lambda what, count: None
    reads = sum(path.stat().st_size for path in source.files.values())
    progress.total = reads + 2 * writes  # every written file is hashed too
    shown = ""

    def advance(what: str, count: int) -> None:
        nonlocal shown
        if what != shown:  # every description is drawn at once
            progress.set_description(what)
            shown = what
        progress.update(count)

    return advance


def _write(
    source: Source, dtype: torch.dtype | None, folder: Path, advance: Callable[[str, int], None]
) -> dict[str, str]:
    """Write the weights, one file at a time; their sha256 by name."""
    files = {}
    for part in source.parts:
        path = folder / part.file
        save_tensors(path, make(part, dtype))
        advance(f"write {part.file}", size(part, dtype))
        files[bundle_name(path)] = sha256(path, partial(advance, f"check {part.file}"))
    return files
