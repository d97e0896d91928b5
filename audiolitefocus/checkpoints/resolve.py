"""A model's name, folder, file or hub repository -> its bundle's folder."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from audiolitefocus.checkpoints.hub import INDEX, cache_folder, fetch, unwritable
from audiolitefocus.config import MODELS, demo_folder

OURS = "audiolitefocus"  # the folder of bundles in the hub's cache, and beside a snapshot
TOKENIZERS = ("clap", "t5")


def resolve_bundle(model: str | os.PathLike, *, variant: str | None = None, **hub: Any) -> Path:
    """The folder of a model's bundle; what is in diffusers layout is converted at first use.

    Args:
        model: a name of `config.MODELS`, a folder, or "owner/name" on the hub.
        variant: of weights files in diffusers layout to prefer to others, as "fp16".
        hub: `hub.fetch`'s revision, cache_dir, local_files_only and token.

    Raises:
        ValueError: no such model; the message lists the names. Or no such variant.
    """
    name = os.fspath(model)
    folder = demo_folder() if name == "demo" else Path(name)
    # A folder that happens to be called "audioldm2" is the model only if it is a bundle.
    if name and folder.is_dir() and (name not in MODELS or (folder / "config.json").exists()):
        if (folder / INDEX).is_file():
            return convert_local(folder, variant=variant, **hub)
        if variant is not None:
            raise ValueError(
                f"variant {variant!r}: a bundle has one set of weights; dtype chooses the precision"
            )
        return folder
    if Path(name).is_file():
        raise ValueError(
            f"{name} is a file: convert it first: audiolitefocus convert {name} DEST; or load it "
            f"by AudioLDM2Pipeline.from_single_file"
        )
    repo = MODELS[name].repo if name in MODELS else name
    if repo is None or repo.count("/") != 1 or repo.startswith((".", "/", "~")):
        raise ValueError(
            f"model {name!r}: no such folder, and none of the names {', '.join(MODELS)}; "
            f"a hub repository is OWNER/NAME"
        )
    snapshot = fetch(repo, variant=variant, **hub)
    called = snapshot.name if variant is None else f"{snapshot.name}-{variant}"
    bundle = snapshot.parent.parent / OURS / called
    return _converted(snapshot, bundle, repo, variant=variant, **hub)


def convert_local(
    source: Path,
    *,
    variant: str | None = None,
    tokenizers: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    **hub: Any,
) -> Path:
    """The bundle made from a folder in diffusers layout or an original checkpoint, in the cache.

    It is made again when a file of the source has another size or time, and when the one that is
    there lacks tokenizers, which the hub may have by now.

    Args:
        tokenizers: a folder with clap/ and t5/, as for `convert_checkpoint`.
        variant, cache_dir, hub: as for `resolve_bundle`.
    """
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    states = [(path.stat().st_size, path.stat().st_mtime_ns, str(path)) for path in files]
    given = None if tokenizers is None else os.path.abspath(tokenizers)
    key = json.dumps([os.path.abspath(source), states, variant, given])
    digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:16]
    name = Path(os.path.abspath(source)).name
    bundle = cache_folder(cache_dir) / OURS / f"{name}-{digest}"
    complete = all((bundle / kind / "tokenizer_config.json").is_file() for kind in TOKENIZERS)
    options = {"variant": variant, "tokenizers": tokenizers, "cache_dir": cache_dir, **hub}
    return _converted(source, bundle, name, again=not complete, **options)


def _converted(source: Path, bundle: Path, name: str, *, again: bool = False, **options) -> Path:
    """The bundle made from a source, if it is not there yet; or `again`."""
    if (bundle / "config.json").is_file() and not again:
        return bundle
    from audiolitefocus.checkpoints.convert import convert_checkpoint  # not needed to load a bundle

    try:
        bundle.parent.mkdir(parents=True, exist_ok=True)
        convert_checkpoint(source, bundle, name=name, force=again, **options)
    except ValueError:
        if again or not (bundle / "config.json").is_file():  # else another process was faster
            raise
    except OSError as error:
        raise unwritable(error, name) or error from None
    return bundle
