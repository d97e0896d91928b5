"""AudioLDM2 repositories in diffusers layout: from and to the Hugging Face hub, and its cache.

This is the only file that imports huggingface_hub; its cache, resuming, offline mode and tokens are
used as they are. Decided here: which files are wanted, and what a person can do about an error.
"""

import contextlib
import errno
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from audiolitefocus.validation import parse_object, shown

PIPELINE = "AudioLDM2Pipeline"
INDEX = "model_index.json"
WITHOUT_WEIGHTS = ("tokenizer", "tokenizer_2", "scheduler", "feature_extractor")
SETTINGS = (".json", ".txt", ".model")  # configs, vocabularies, and sentencepiece's
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
KINDS = ("safetensors", "bin")
# Full precision first; a pickle only where there is nothing else.
PREFERENCE = tuple(itertools.product(KINDS, ("", "fp16", "bf16")))
VARIANT = re.compile(r"\w+")
LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
REMEDIES: tuple[tuple[type[Exception], type[Exception], str], ...] = (
    (HFValidationError, ValueError, "neither a folder nor a repository (OWNER/NAME)"),
    (RevisionNotFoundError, ValueError, "no such revision; give a branch, a tag or a commit"),
    (GatedRepoError, PermissionError, f"gated; accept its terms on its page, then {LOG_IN}"),
    (RepositoryNotFoundError, OSError, f"no such repository; if it is private, {LOG_IN}"),
)


def fetch(
    repo: str, *, revision: str | None = None, variant: str | None = None, **hub: Any
) -> Path:
    """Download what conversion needs of a repository, unless the cache has it: its snapshot folder.

    Without a connection, or with HF_HUB_OFFLINE=1, a whole snapshot in the cache is enough.

    Args:
        repo: "owner/name".
        revision: branch, tag or commit; None is the main branch.
        variant: of weights files to prefer to others, as "fp16".
        hub: `snapshot_download`'s cache_dir, local_files_only and token.

    Raises:
        ValueError: no repository's name, no such revision or variant, or not AudioLDM2 in diffusers
            layout.
        OSError: no such repository, access refused, or neither a connection nor a whole snapshot.
    """
    folder = fetch_files(repo, [INDEX], revision=revision, **hub)  # lists the repository too
    with _explained(repo, revision):
        listing = _listing(repo, folder, hub.get("cache_dir"))
        names = wanted(listing, _components(folder / INDEX), variant)
    if all((folder / name).is_file() for name in names):
        return folder
    return fetch_files(repo, [INDEX, *names], revision=folder.name, **hub)


def fetch_files(
    repo: str, names: Sequence[str], *, revision: str | None = None, **hub: Any
) -> Path:
    """Download those of the named files that a repository has; else as `fetch`."""
    with _explained(repo, revision):
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[*names], **hub))


def wanted(
    names: Sequence[str], components: Sequence[str], variant: str | None = None
) -> list[str]:
    """The files that conversion needs: settings, and one set of weights for each component.

    Raises:
        ValueError: a component without config.json or without weights, or no weights of `variant`.
    """
    paths = [PurePosixPath(name) for name in names]
    chosen = []
    for component in components:
        inside = [path.name for path in paths if str(path.parent) == component]
        weights = [] if component in WITHOUT_WEIGHTS else preferred_weights(inside, variant)
        if component not in WITHOUT_WEIGHTS and not (weights and "config.json" in inside):
            raise ValueError(f"{component}/ lacks config.json or weights (safetensors or .bin)")
        settings = [name for name in inside if name.endswith(SETTINGS) and ".index." not in name]
        chosen += [f"{component}/{name}" for name in settings + weights]
    check_variant(variant, chosen)
    return chosen


def check_variant(variant: str | None, names: Sequence[str]) -> None:
    """Raise ValueError if a variant is asked for of which there is no weights file."""
    if variant is None:
        return
    if not isinstance(variant, str) or not VARIANT.fullmatch(variant):
        raise ValueError(f'variant {shown(variant)}: must be a name, as "fp16"')
    if not any(f".{variant}." in f".{name}" for name in names):
        raise ValueError(f"variant {variant!r}: no weights file has it; leave it out")


def preferred_weights(names: Sequence[str], variant: str | None = None) -> list[str]:
    """The preferred set of weights among a folder's files: one file, or an index and its shards."""
    asked = [(kind, variant) for kind in KINDS] if variant else []
    for (kind, name), stem in itertools.product([*asked, *PREFERENCE], STEMS):
        variant = f".{name}" if name else ""
        single, index = f"{stem}{variant}.{kind}", f"{stem}.{kind}.index{variant}.json"
        if single in names:
            return [single]
        if index in names:
            number, variant = r"(-\d+-of-\d+)?", re.escape(variant)
            shard = re.compile(rf"{stem}{number}{variant}{number}\.{kind}")
            return [index, *filter(shard.fullmatch, names)]
    return []


def cache_folder(cache_dir: str | os.PathLike | None) -> Path:
    """The folder of the hub's cache."""
    return Path(constants.HF_HUB_CACHE if cache_dir is None else cache_dir)


def upload(
    folder: Path,
    repo: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a folder's files into a repository, which is made if need be.

    Files of the repository that the folder does not have stay. Raises as `fetch`.

    Returns:
        The URL of the commit, or of the pull request.
    """
    with _explained(repo, None):
        api = HfApi(token=token)
        made = api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            commit_message=commit_message or "Upload AudioLDM2Pipeline",
            create_pr=create_pr,
        )
    return commit.pr_url or commit.commit_url


def _components(path: Path) -> list[str]:
    """The folders that a model_index.json names. Raises ValueError unless it is an AudioLDM2's."""
    if not path.is_file():
        raise ValueError(f"no {INDEX}, so it is not in diffusers layout")
    try:
        index = parse_object(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"its {INDEX} is {error}") from None
    kind = index.get("_class_name")
    if kind != PIPELINE:
        raise ValueError(f"it holds {shown(kind) if kind else 'no pipeline'}, not {PIPELINE}")
    return [name for name, entry in index.items() if isinstance(entry, list) and any(entry)]


def _listing(repo: str, folder: Path, cache_dir: str | os.PathLike | None) -> list[str]:
    """The repository's files at a snapshot's commit, as the cache has listed them."""
    try:
        tree = get_cached_repo_tree(
            repo, revision=folder.name, cache_dir=None if cache_dir is None else Path(cache_dir)
        )
    except CachedRepoTreeNotFoundError:  # offline, and filled by an older huggingface_hub
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return [file.path for file in tree]


def unwritable(error: OSError, where: str) -> OSError | None:
    """An error that says what to do where the cache's disk is full or read-only, else None."""
    if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC):
        return None
    reason = os.strerror(error.errno or 0)
    return OSError(
        f"{where}: the hub's cache cannot be written, {reason}: {error.filename}; give cache_dir, "
        f"or set HF_HOME to a folder with room"
    )


@contextlib.contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn errors into one line that names the repository and, where there is one, the remedy."""
    where = repr(repo) if revision is None else f"{repo!r} at {revision!r}"
    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        # What the hub answered says more than what the cache lacks.
        cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        for kind, raised, remedy in REMEDIES:
            if isinstance(cause, kind):
                raise raised(f"{where}: {remedy}") from None
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code in (401, 403):
            raise PermissionError(f"{where}: the token was refused; {LOG_IN}") from None
        if isinstance(cause, OSError) and (better := unwritable(cause, where)):
            raise better from None
        message = f"{where}: {' '.join(str(cause).split())}"
        raise (ValueError if isinstance(cause, ValueError) else OSError)(message) from None
