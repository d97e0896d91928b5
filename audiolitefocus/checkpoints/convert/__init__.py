"""Conversion of published AudioLDM2 weights into a bundle: `convert_checkpoint`."""

import dataclasses
import importlib.util
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
from audiolitefocus.checkpoints.convert.diffusers_keys import plan_diffusers
from audiolitefocus.checkpoints.convert.mapping import (
    ConversionPlan,
    check_plan,
    convert_tensors,
    dropped_keys,
    size,
)
from audiolitefocus.checkpoints.convert.original_keys import plan_original
from audiolitefocus.checkpoints.convert.towers import (
    TOKENIZER_FILES,
    TOKENIZER_REPOS,
    tokenizer_files,
)
from audiolitefocus.checkpoints.hub import fetch, fetch_files
from audiolitefocus.checkpoints.tensors import save_tensors
from audiolitefocus.checkpoints.towers import load_tokenizer
from audiolitefocus.config import BundleConfig
from audiolitefocus.runtime import DTYPES
from audiolitefocus.validation import check_choice

HEADS = ("trained", "config")
SENTENCEPIECE = {"spiece.model", "tokenizer.model"}
SPARE_BYTES = 1 << 26  # of disk, for configs and tokenizers
COMMIT = re.compile(r"[0-9a-f]{40}")


class ProgressBar(Protocol):
    """What is used of a tqdm bar. It counts bytes: hashed of the source, written, hashed again."""

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
    variant: str | None = None,
    force: bool = False,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    progress: ProgressBar | None = None,
) -> BundleConfig:
    """Convert a checkpoint into a bundle. The destination appears whole or not at all.

    Args:
        source: a folder in diffusers layout, a hub repository "owner/name" in that layout, or an
            original .pth or .ckpt.
        destination: the bundle's folder; its parent must exist.
        dtype: of all floating-point weights; None keeps the source's.
        heads: "trained", heads of 32 channels, or "config", as unet/config.json says.
        tokenizers: a folder with clap/ and t5/ tokenizers, preferred to the source's own. Without
            either, they are fetched from the hub.
        name: of the model in the bundle's config; default: the source, of a path the last part.
        variant: of weights files in diffusers layout to prefer to others, as "fp16".
        force: replace a bundle at the destination.
        revision, cache_dir, local_files_only, token: of the hub.
        progress: a tqdm bar, or an object with its methods.

    Returns:
        The bundle's config. Its `provenance` says where the weights came from; "heads" and "notes"
        in it are for people: the choice of heads, dropped keys, missing tokenizers.

    Raises:
        ValueError: a source that is unknown, damaged or not AudioLDM2, or a destination that
            exists. All but NaN in the weights is found before any weights are read.
        OSError: a destination that cannot be written to, or a hub that cannot be reached.
    """
    dtype, tokenizers = _checked_options(dtype, heads, tokenizers)
    hub = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
    with atomic_folder(destination, force=force) as folder:
        # 1. Find everything and check that it fits, before any weights are read
        place, name = _find_source(source, name, revision, variant, hub)
        plan_source = plan_original if place.is_file() else plan_diffusers
        plan = plan_source(place, heads=heads, variant=variant)
        check_plan(plan)
        copies, missing = _find_tokenizers(plan, tokenizers, hub)
        written = sum(size(file, dtype) for file in plan.files)
        check_room(folder.parent, written + SPARE_BYTES)
        _write_tokenizers(folder, copies)
        # 2. Note where the weights come from
        advance = _start_progress(progress, plan, written)
        digests = {n: sha256(p, partial(advance, f"check {n}")) for n, p in plan.read.items()}
        provenance = {
            "source": name,
            "kind": plan.kind,
            "revision": place.name if COMMIT.fullmatch(place.name) else revision,
            "heads": plan.heads,
            "dtype": str(dtype).removeprefix("torch.") if dtype else "the source's",
            "sha256": digests,
            "notes": dropped_keys(plan) + missing,
        }
        # 3. Write
        files = _write_weights(plan, dtype, folder, advance)
        for file, path in plan.copies.items():
            _copy(path, folder / file)
        for file, text in plan.documents.items():
            (folder / file).write_text(text, encoding="utf-8")
        config = dataclasses.replace(plan.config, name=name, provenance=provenance, files=files)
        (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
    return config


def _checked_options(
    dtype: torch.dtype | str | None, heads: str, tokenizers: str | os.PathLike | None
) -> tuple[torch.dtype | None, Path | None]:
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if dtype is not None and chosen not in DTYPES.values():
        raise ValueError(f"dtype {dtype!r}: must be one of {', '.join(DTYPES)}")
    check_choice("heads", heads, HEADS)
    if tokenizers is None:
        return chosen, None
    folder = Path(tokenizers)
    if lacking := [
        f"{kind}/" for kind in TOKENIZER_REPOS if not tokenizer_files(folder / kind, kind)
    ]:
        raise ValueError(f"tokenizers {folder}: no tokenizer_config.json in {', '.join(lacking)}")
    return chosen, folder


def _find_source(
    source: str | os.PathLike,
    name: str | None,
    revision: str | None,
    variant: str | None,
    hub: dict,
) -> tuple[Path, str]:
    """The source's file or folder, and the name of the model, never an absolute path."""
    place, given = Path(source), os.fspath(source)
    if place.exists():
        if place.is_dir() and (place / "config.json").is_file() and not (place / "unet").is_dir():
            raise ValueError(f"{place} is not in diffusers layout; is it a bundle already?")
        return place, name or Path(os.path.abspath(place)).name
    # What looks like a path is never asked for on the hub, where its name would be sent.
    is_path = given.startswith((".", "/", "~")) or place.suffix in (".pth", ".ckpt")
    if is_path or given.count("/") != 1:
        raise ValueError(f"{given}: no such file or folder; a hub repository is written OWNER/NAME")
    return fetch(given, revision=revision, variant=variant, **hub), name or given


def _find_tokenizers(
    plan: ConversionPlan, given: Path | None, hub: dict
) -> tuple[dict[str, Path], list[str]]:
    """The tokenizers' files, and a line for each tokenizer that is not available."""
    files: dict[str, Path] = {}
    missing: list[str] = []
    for kind, repo in TOKENIZER_REPOS.items():
        found = tokenizer_files(given / kind, kind) if given else plan.tokenizers[kind]
        if not found:
            try:
                found = tokenizer_files(fetch_files(repo, TOKENIZER_FILES, **hub), kind)
            except (OSError, ValueError) as error:
                missing.append(
                    f"no tokenizer for {kind}, so prompts cannot be read; convert again with "
                    f"--tokenizers FOLDER ({error})"
                )
        files |= found
    return files, missing


def _write_tokenizers(folder: Path, copies: dict[str, Path]) -> None:
    """Copy tokenizers, and check that they can be loaded without any other package.

    A sentencepiece model alone is written as tokenizer.json too, once, by those who have
    sentencepiece.
    """
    for file, path in copies.items():
        _copy(path, folder / file)
    for kind in sorted({Path(file).parts[0] for file in copies}):
        names = {Path(file).name for file in copies if Path(file).parts[0] == kind}
        whole = "tokenizer.json" in names
        if not whole and names & SENTENCEPIECE and not importlib.util.find_spec("sentencepiece"):
            raise ValueError(
                f"the tokenizer of {kind} is a sentencepiece model alone: to convert it, first "
                f"pip install sentencepiece protobuf; or give --tokenizers FOLDER with a "
                f"tokenizer.json"
            )
        tokenizer = load_tokenizer(folder, kind)
        if not whole:
            tokenizer.backend_tokenizer.save(str(folder / kind / "tokenizer.json"))


def _copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:  # which need not say where
        raise OSError(f"{target} cannot be written: {error.strerror or error}") from None


def _start_progress(
    progress: ProgressBar | None, plan: ConversionPlan, written: int
) -> Callable[[str, int], None]:
    """A function that reports a step and a number of bytes to the bar, whose total is set."""
    if progress is None:
        return lambda what, count: None
    # Every written file is hashed too, and so counted twice.
    progress.total = sum(path.stat().st_size for path in plan.read.values()) + 2 * written
    described = ""

    def advance(what: str, count: int) -> None:
        nonlocal described
        if what != described:  # every description is drawn at once
            progress.set_description(what)
            described = what
        progress.update(count)

    return advance


def _write_weights(
    plan: ConversionPlan,
    dtype: torch.dtype | None,
    folder: Path,
    advance: Callable[[str, int], None],
) -> dict[str, str]:
    """Write the weights, one file at a time. Returns their sha256 by name."""
    files = {}
    for file in plan.files:
        path = folder / file.name
        save_tensors(path, convert_tensors(file, dtype))
        advance(f"write {file.name}", size(file, dtype))
        files[bundle_name(path)] = sha256(path, partial(advance, f"check {file.name}"))
    return files
