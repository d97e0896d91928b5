"""Fetching AudioLDM2 repositories (diffusers layout) from the Hugging Face hub into its cache.

This is the only file that imports huggingface_hub, whose cache, resuming, offline mode and tokens
are used as they are. What is decided here is which files are wanted and what an error means.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from huggingface_hub import get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from audiolitefocus.validation import parse_object, shown

PIPELINE = "AudioLDM2Pipeline"
INDEX = "model_index.json"
WITHOUT_WEIGHTS = ("tokenizer", "tokenizer_2", "scheduler", "feature_extractor")
SETTINGS = (".json", ".txt", ".model")  # configs, vocabularies, and sentencepiece's
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
# Full precision first; a pickle only where there is nothing else.
PREFERENCE = tuple(itertools.product(("safetensors", "bin"), ("", ".fp16", ".bf16")))
WEIGHTS = re.compile(
    rf"({'|'.join(STEMS)})(?P<variant>.*)\.(?P<kind>safetensors|bin)"
    r"(?P<index>\.index(?P<index_variant>.*)\.json)?"
)
SHARD = re.compile(r"-\d+-of-(\d+)")


def fetch(
    repo: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Download what conversion needs of a repository; files in the cache are not asked for again.

    Without a connection, or with HF_HUB_OFFLINE=1, a whole snapshot in the cache will do.

    Args:
        repo: "owner/name".
        revision: branch, tag or commit; None is the main branch.
        cache_dir: None is the hub's own cache.
        local_files_only: do not use the network.
        token: None is the one of `hf auth login` or HF_TOKEN.

    Returns:
        The snapshot's folder, whose name is the commit.

    Raises:
        ValueError: no repository's name, no such revision, or not AudioLDM2 in diffusers layout.
        OSError: no such repository, access refused, or neither a connection nor a whole snapshot.
    """
    download = partial(
        fetch_files, repo, cache_dir=cache_dir, local_files_only=local_files_only, token=token
    )
    folder = download([INDEX], revision=revision)
    with _explained(repo, revision):
        components = _components(folder / INDEX)
        names = wanted(_listing(repo, folder, cache_dir), components)
    return download([INDEX, *names], revision=folder.name)


def fetch_files(
    repo: str,
    names: Sequence[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Download those of the named files that a repository has. The rest as in `fetch`."""
    with _explained(repo, revision):
        return Path(
            snapshot_download(
                repo,
                revision=revision,
                cache_dir=_path(cache_dir),
                local_files_only=local_files_only,
                token=token,
                allow_patterns=list(names),
            )
        )


def wanted(names: list[str], components: list[str]) -> list[str]:
    """The files among `names` that conversion needs: settings, and one set of weights a component.

    Raises:
        ValueError: a component without config or without a whole set of weights.
    """
    chosen = []
    for component in components:
        inside = [path for path in map(PurePosixPath, names) if str(path.parent) == component]
        matches = {path: WEIGHTS.fullmatch(path.name) for path in inside}
        chosen += [path for path in inside if not matches[path] and path.suffix in SETTINGS]
        if component in WITHOUT_WEIGHTS:
            continue
        if PurePosixPath(component, "config.json") not in inside:
            raise ValueError(f"{component}/config.json is missing")
        chosen += _best_weights(component, {p: match for p, match in matches.items() if match})
    return [str(path) for path in chosen]


def _best_weights(
    component: str, matches: dict[PurePosixPath, re.Match[str]]
) -> list[PurePosixPath]:
    """The preferred weights of one component: a single file, or all shards and their index."""
    sets: dict[tuple[str, str], list[PurePosixPath]] = {}
    for path, match in matches.items():
        variant = SHARD.sub("", match["variant"]) or match["index_variant"] or ""
        sets.setdefault((match["kind"], variant), []).append(path)
    for key in PREFERENCE:
        paths = sets.get(key, [])
        index = [path for path in paths if matches[path]["index"]]
        shards = [path for path in paths if SHARD.search(path.name)]
        if single := [path for path in paths if path not in index + shards]:
            return single
        if index and shards and len(shards) == int(SHARD.findall(shards[0].name)[0]):
            return index + shards
    raise ValueError(f"{component} has no whole set of weights, as safetensors or .bin")


def _components(path: Path) -> list[str]:
    """The folders that a model_index.json names. Raises ValueError unless it is an AudioLDM2's."""
    if not path.is_file():
        raise ValueError(f"it has no {INDEX}, so it is not in diffusers layout")
    try:
        index = parse_object(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"its {INDEX} is {error}") from None
    kind = index.get("_class_name")
    if kind != PIPELINE:
        raise ValueError(f"it holds {shown(kind) if kind else 'no pipeline'}, not {PIPELINE}")
    return [name for name, entry in index.items() if isinstance(entry, list) and any(entry)]


def _listing(repo: str, folder: Path, cache_dir: str | os.PathLike | None) -> list[str]:
    """The files of a repository at a snapshot's commit, without the network."""
    try:
        tree = get_cached_repo_tree(repo, revision=folder.name, cache_dir=_path(cache_dir))
    except (
        CachedRepoTreeNotFoundError
    ):  # offline, on a cache of older versions: trust what is there
        return [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    return [file.path for file in tree]


def _path(folder: str | os.PathLike | None) -> Path | None:
    return None if folder is None else Path(folder)


@contextlib.contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn every error into one line that names the repository and, if there is one, the remedy."""
    try:
        yield
    except HFValidationError:
        raise ValueError(f"{repo!r} is neither a folder nor a repository (owner/name)") from None
    except RevisionNotFoundError:
        message = f"{repo} has no revision {revision!r}: give a branch, a tag or a commit"
        raise ValueError(message) from None
    except LocalEntryNotFoundError as error:
        raise _unavailable(repo, error) from None
    except HfHubHTTPError as error:
        raise _refused(repo, error) from None
    except HTTPError as error:
        raise ConnectionError(f"{repo}: the download broke off ({error}); try again") from None
    except ValueError as error:
        raise ValueError(f"{repo}: {error}") from None
    except OSError as error:
        raise OSError(f"{repo}: {str(error).splitlines()[0]}") from None


def _unavailable(repo: str, error: LocalEntryNotFoundError) -> OSError:
    """Neither the hub nor the cache has the files."""
    reason = error.__cause__
    if isinstance(reason, HfHubHTTPError):
        return _refused(repo, reason)
    where = "only partly" if isinstance(error, IncompleteSnapshotError) else "not"
    if reason is None or isinstance(reason, OfflineModeIsEnabled):
        why = "downloads are switched off (HF_HUB_OFFLINE or local_files_only)"
    else:
        why = f"the hub cannot be reached ({type(reason).__name__})"
    return ConnectionError(
        f"{repo} is {where} in the cache, and {why}: convert it on a machine with a connection and "
        f"copy the folder, or give a local folder"
    )


def _refused(repo: str, error: HfHubHTTPError) -> OSError:
    """The hub's answer was no."""
    log_in = "`hf auth login` or HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return PermissionError(
            f"{repo} is gated: accept its terms on its page on the hub, then log in by {log_in}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(
            f"{repo}: no such repository on the hub; if it is private, log in by {log_in}"
        )
    if error.response.status_code in (401, 403):
        return PermissionError(f"{repo}: the hub refused the token; log in by {log_in}")
    return OSError(f"{repo}: the hub answered {error.response.status_code}; try again later")
