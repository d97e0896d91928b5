"""Files and folders that appear whole or not at all.

They are written beside the target under a hidden name, `.NAME.XXXXXXXX.part`, and renamed when
whole. The writer holds a lock on what it writes, which the system lets go of when the process ends,
however it ends. So what is found without a lock was left by a process that is dead, and goes when
the same target is written again.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: leftovers stay, hidden and in nobody's way
    fcntl = None  # type: ignore[assignment]

TAKEN = (errno.EEXIST, errno.ENOTEMPTY)
LONGEST_STEM = 64  # of a target's name in the temporary one: names may have 255 bytes


def check_writable(folder: Path) -> None:
    """Raise ValueError or OSError unless files can be created in `folder`. Creates nothing that
    stays.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; create it first")
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_room(folder: Path, size: int) -> None:
    """Raise OSError unless `folder` has room for so many bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(f"no room in {folder}: {free:,} bytes free, and {size:,} needed")


@contextlib.contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary file beside `target`, to be written into, that takes its place when the block
    ends well and vanishes otherwise.
    """
    with atomic_files(target) as (path,):
        yield path


@contextlib.contextmanager
def atomic_files(*targets: Path) -> Iterator[list[Path]]:
    """The same for several targets in one folder. They are renamed in the order given, and none of
    another process's in between; a process that is killed there has replaced the first of them.
    """
    parts: list[tuple[Path, int | None]] = []
    try:
        for target in targets:
            recover(target)
            parts.append(_temporary(target))
        yield [path for path, _ in parts]
        turn = _lock(targets[0].parent, wait=True)
        try:
            for (path, _), target in zip(parts, targets, strict=True):
                os.replace(path, target)
        finally:
            _let_go(turn)
    finally:
        for path, lock in parts:
            path.unlink(missing_ok=True)
            _let_go(lock)


@contextlib.contextmanager
def atomic_folder(destination: str | os.PathLike, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside `destination` that becomes it when the block ends well, and
    vanishes otherwise.

    Raises:
        ValueError: the destination exists (and `force` is not set), or is no bundle, or lies in no
            folder.
        OSError: its parent cannot be written to. All of them before the block runs; that the
            destination exists also after it, if another process was faster.
    """
    destination = Path(os.path.abspath(destination))
    check_writable(destination.parent)
    recover(destination)
    _check_free(destination, force)
    folder, lock = _temporary(destination, folder=True)
    try:
        yield folder
        _open_permissions(folder)
        _replace_folder(folder, destination, force)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _let_go(lock)


def recover(target: Path) -> None:
    """Remove what dead processes left of `target`; a folder that was moved aside for a new one
    which never came goes back to its place.
    """
    leftover = re.compile(rf"\.{re.escape(_stem(target))}\.[0-9a-f]{{8}}\.(part|old)")
    for name in os.listdir(target.parent) if fcntl else ():
        path = target.with_name(name)
        if not leftover.fullmatch(name) or (lock := _lock(path)) is None:
            continue
        with contextlib.suppress(OSError):  # another process recovers at the same time
            if path.suffix == ".old" and not os.path.lexists(target):
                os.rename(path, target)
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        os.close(lock)


def _check_free(destination: Path, force: bool) -> None:
    """Only what is a bundle may be replaced, and only if that was asked for."""
    if not os.path.lexists(destination):
        return
    if not force:
        raise ValueError(f"{destination} exists; pass --force (force=True) to replace it")
    if destination.is_symlink() or not destination.is_dir() or not _replaceable(destination):
        raise ValueError(
            f"{destination} is not a bundle; it will not be replaced: choose another place"
        )


def _replaceable(folder: Path) -> bool:
    """Empty, or a bundle, be it a damaged one: its config.json names a format and a UNet."""
    if not any(folder.iterdir()):
        return True
    try:
        start = (folder / "config.json").read_bytes()[: 1 << 16]
    except OSError:
        return False
    return b'"format"' in start and b'"unet"' in start


def _replace_folder(folder: Path, destination: Path, force: bool) -> None:
    """Rename `folder` to `destination`; what was there is moved aside first and removed last."""
    _check_free(destination, force)  # another process may have been faster
    aside, lock = folder.with_suffix(".old"), _lock(destination)
    try:
        if force and destination.exists():
            os.rename(destination, aside)
        os.rename(folder, destination)
    except OSError as error:
        if error.errno in TAKEN:
            raise ValueError(f"{destination} was made by another process meanwhile") from None
        if aside.exists():
            os.rename(aside, destination)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        _let_go(lock)


def _temporary(target: Path, *, folder: bool = False) -> tuple[Path, int | None]:
    """A new hidden file or folder beside `target`, and the lock on it."""
    while True:
        path = target.with_name(f".{_stem(target)}.{secrets.token_hex(4)}.part")
        path.mkdir(mode=0o700) if folder else path.touch(exist_ok=False)
        lock = _lock(path, wait=True)
        if path.exists():  # not taken for a leftover before it was locked
            return path, lock
        _let_go(lock)


def _stem(target: Path) -> str:
    return target.name[:LONGEST_STEM]


def _lock(path: Path, *, wait: bool = False) -> int | None:
    """A descriptor that holds the lock on `path`. None where another process holds it, where there
    is no such path, and on file systems without locks.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _let_go(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _open_permissions(folder: Path) -> None:
    """Give temporary folders and safetensors files, which are born private, the usual modes."""
    mask = _umask()
    for path in (folder, *folder.rglob("*")):
        os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~mask)


def _umask() -> int:
    """The process's umask, which can be read only by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
