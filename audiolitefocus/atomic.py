"""Files and folders that appear under their name whole or not at all.

They are written beside the target as `.NAME.XXXXXXXX.part` and renamed when they are whole. An
error or an interrupt removes the part. A process that is killed outright (SIGKILL, power) leaves it
there, hidden and never read again: delete it. A bundle that was being replaced at that very moment
may be left as `.NAME.XXXXXXXX.old`; the next conversion to the same place puts it back first.
"""

import contextlib
import errno
import glob
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

STEM = 48  # characters of the target's name in the part's, as names end at 255 bytes
TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


def check_writable(folder: Path) -> None:
    """Raise ValueError or OSError unless files can be created in `folder`."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; create it first")
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_room(folder: Path, size: int) -> None:
    """Raise OSError unless `folder` has `size` bytes of free disk space."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(f"no room in {folder}: {free:,} bytes free, and {size:,} needed")


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield an empty file beside `target`, which it replaces when the block ends without error."""
    with atomic_files(target) as (part,):
        yield part


@contextlib.contextmanager
def atomic_files(*targets: Path) -> Iterator[list[Path]]:
    """Yield one empty file beside each target; they are renamed together, in the order given.

    The renames are not one step: a process killed between them has replaced the first targets, and
    two processes may leave files of both.
    """
    parts = []
    try:
        for target in targets:
            parts.append(_part(target))
            parts[-1].touch(exist_ok=False)
        yield parts
        # os.replace is atomic within a file system, and parts lie beside their targets
        for part, target in zip(parts, targets, strict=True):
            os.replace(part, target)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(destination: str | os.PathLike, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder that is renamed to `destination` when the block ends without error.

    Raises:
        ValueError: the destination exists (and `force` is not set) or is no bundle, or its parent
            is not a folder. Checked before the block runs, and again after it.
        OSError: the parent cannot be written to.
    """
    destination = Path(os.path.abspath(destination))
    check_writable(destination.parent)
    folder = _part(destination)
    _put_back(destination)
    _check_replaceable(destination, force)
    folder.mkdir()
    try:
        yield folder
        mode = folder.stat().st_mode & 0o666  # as the umask has it; safetensors writes 0o600
        for path in folder.rglob("*"):
            if path.is_file():
                path.chmod(mode)
        _check_replaceable(destination, force)  # another process may have been faster
        _swap(folder, destination)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name[:STEM]}.{secrets.token_hex(4)}.part")


def _put_back(destination: Path) -> None:
    """Undo a replacement that was killed between its two renames."""
    left = destination.parent.glob(f".{glob.escape(destination.name)}.????????.old")
    if not os.path.lexists(destination) and (aside := next(left, None)):
        os.replace(aside, destination)


def _check_replaceable(destination: Path, force: bool) -> None:
    """Raise ValueError unless `destination` is free, or may be replaced: a bundle, with `force`."""
    if not os.path.lexists(destination):
        return
    if not force:
        raise ValueError(f"{destination} exists; pass --force (force=True) to replace it")
    if destination.is_symlink() or not destination.is_dir() or not _is_bundle(destination):
        raise ValueError(
            f"{destination} is not a bundle; it will not be replaced: choose another place"
        )


def _is_bundle(folder: Path) -> bool:
    """True for an empty folder, and if config.json, even a damaged one, has a format and a UNet."""
    if not any(folder.iterdir()):
        return True
    try:
        start = (folder / "config.json").read_bytes()[: 1 << 16]
    except OSError:
        return False
    return b'"format"' in start and b'"unet"' in start


def _swap(folder: Path, destination: Path) -> None:
    """Rename `folder` to `destination`, and what was there, if anything, to `folder`."""
    # Two renames, as no system swaps folders in one step; between them nothing has the name.
    aside = folder.with_suffix(".old")
    try:
        if replaced := destination.exists():
            os.replace(destination, aside)
        os.replace(folder, destination)
        if replaced:
            os.replace(aside, folder)
    except BaseException as error:  # interrupts too
        if aside.exists() and not destination.exists():
            os.replace(aside, destination)
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in TAKEN:
            raise ValueError(f"{destination} was made by another process meanwhile") from None
        raise
