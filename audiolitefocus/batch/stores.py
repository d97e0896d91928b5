"""Where the clips of a cluster go: a folder that all machines share, or a place with a URL.

Clips are always made as files, by the rules of `clips`. For a place elsewhere they are made in a
folder of the worker, beside what is there of the same clips, and then put in their place, the
recipe before the sound.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from audiolitefocus.atomic import check_writable
from audiolitefocus.audio.formats import SOUND_SUFFIXES
from audiolitefocus.batch.recipes import recipe_path
from audiolitefocus.batch.requests import ClipRequest

# File systems of fsspec by how a file appears in them whole or not at all.
PUT_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}  # as soon as it is there in full
RENAMES = {"sftp", "ssh", "hdfs", "webhdfs", "smb", "memory"}


@dataclass(frozen=True)
class Folder:
    """A folder, seen under the same name by all machines."""

    folder: Path

    def create(self) -> None:
        """Make the folder if need be. Raises ValueError or OSError if it cannot be written to."""
        self.folder.mkdir(parents=True, exist_ok=True)
        check_writable(self.folder)

    def mark(self, mark: str) -> None:
        (self.folder / mark).touch(exist_ok=False)

    def has(self, mark: str) -> bool:
        return (self.folder / mark).exists()

    def unmark(self, mark: str) -> None:
        (self.folder / mark).unlink(missing_ok=True)

    @contextmanager
    def on_disk(self, clips: list[ClipRequest]) -> Iterator[list[ClipRequest]]:
        """The clips as files of this machine."""
        yield clips

    def publish(self, path: Path) -> None:
        """Nothing is left to do for a clip that was made."""

    def shown(self, path: Path) -> str:
        """What people call a clip that is to lie here."""
        return str(path)

    def __str__(self) -> str:
        return str(self.folder)


class Elsewhere:
    """A prefix of an object store, or a folder of another file system, by its URL in fsspec.

    Args:
        url: as s3://bucket/prefix. Keys and endpoints are configured as fsspec and its packages
            say, on every machine.

    Raises:
        ValueError: a URL of another file system, in which files might appear before they are whole;
            or one whose package is not installed.
    """

    def __init__(self, url: str):
        import fsspec

        protocol = url.partition("://")[0]
        if protocol not in PUT_WHOLE | RENAMES:
            raise ValueError(
                f"{url}: must be a folder or begin with one of "
                f"{', '.join(sorted(f'{name}://' for name in PUT_WHOLE | RENAMES))}"
            )
        try:
            self.files, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{url}: {error}") from None
        self.url, self.root = url.rstrip("/"), root.rstrip("/")
        self.put_whole = protocol in PUT_WHOLE

    def create(self) -> None:
        """Make the folder, where there are folders. Raises OSError if nothing can be written."""
        try:
            if not self.put_whole:
                self.files.makedirs(self.root, exist_ok=True)
            self.mark(mark := new_mark())
            self.unmark(mark)
        except Exception as error:  # each file system has errors of its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"{self.url} cannot be written to: {reason}") from None

    def mark(self, mark: str) -> None:
        self.files.pipe_file(self._there(mark), b"-")

    def has(self, mark: str) -> bool:
        return self.files.exists(self._there(mark))

    def unmark(self, mark: str) -> None:
        if self.has(mark):
            self.files.rm_file(self._there(mark))

    @contextmanager
    def on_disk(self, clips: list[ClipRequest]) -> Iterator[list[ClipRequest]]:
        """The clips as files of this machine: in a folder, with what is there of them already.

        What exists decides if a clip may be written.
        """
        with TemporaryDirectory(prefix="audiolitefocus-") as folder:
            local = [replace(clip, path=Path(folder) / clip.path.name) for clip in clips]
            for clip in local:
                self._fetch(clip.path)
            yield local

    def _fetch(self, path: Path) -> None:
        """Fetch a clip's two files, and of a recipe alone also other sounds it may belong to."""
        sound, beside = self._get(path), self._get(recipe_path(path))
        if beside and not sound:
            for suffix in SOUND_SUFFIXES:
                self._get(path.with_suffix(suffix))

    def _get(self, path: Path) -> bool:
        if found := self.files.exists(self._there(path.name)):
            self.files.get_file(self._there(path.name), str(path))
        return found

    def publish(self, path: Path) -> None:
        """Put a clip that was made in its place: each file whole, the recipe first."""
        for file in (recipe_path(path), path):
            target = self._there(file.name)
            if self.put_whole:
                self.files.put_file(str(file), target)
            else:
                self._put_and_rename(file, target)

    def _put_and_rename(self, file: Path, target: str) -> None:
        part = self._there(f".{secrets.token_hex(8)}.part")
        try:
            self.files.put_file(str(file), part)
            if self.files.exists(target):  # where a rename does not replace
                self.files.rm_file(target)
            self.files.mv(part, target)
        finally:
            if self.files.exists(part):
                self.files.rm_file(part)

    def _there(self, name: str) -> str:
        return f"{self.root}/{name}"

    def shown(self, path: Path) -> str:
        """What people call a clip that is to lie here."""
        return f"{self.url}/{path.name}"

    def __str__(self) -> str:
        return self.url


Store = Folder | Elsewhere


def open_store(out: str | os.PathLike[str]) -> Store:
    """The folder, or with "://" the place elsewhere, that clips go to. Raises as `Elsewhere`."""
    text = os.fspath(out)
    if text.startswith("file://"):
        return Folder(Path(text.removeprefix("file://")))
    return Elsewhere(text) if "://" in text else Folder(Path(text))


def new_mark() -> str:
    """The name of a file by which a machine knows that it sees the same place as another."""
    return f".{secrets.token_hex(8)}.part"
