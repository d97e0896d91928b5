"""Disks that are full or read-only, and folders that vanish: reported in one line, with nothing
half-written left behind.
"""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from audiolitefocus.audio.files import write_sound
from audiolitefocus.audio.formats import SOUND_SUFFIXES
from audiolitefocus.batch import clips as jobs
from tests.support.children import FORK, forked
from tests.support.command import QUICK, Result, assert_failed, run

T = TypeVar("T")

needs_mount = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("mount"),
    reason="only root on Linux can mount a file system",
)


def in_child(work: Callable[[], T], limit: int | None = None) -> T:
    """What `work` returns in a child whose files may have at most `limit` bytes."""
    here, there = FORK.Pipe(duplex=False)

    def child() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        there.send(work())

    assert forked(child) == [0]
    return here.recv()


def test_a_full_disk_while_generating(tmp_path):
    command = ("generate", "x", *QUICK, "-o", "x.wav")
    assert_failed(in_child(lambda: run(*command, cwd=tmp_path), 5000), "x.wav", "disk full")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("suffix", SOUND_SUFFIXES)
def test_a_disk_that_is_full_sooner_or_later(suffix, tmp_path):
    noise = np.random.default_rng(0).uniform(-1, 1, 32000).astype(np.float32)
    whole = write_sound(tmp_path / f"x{suffix}", noise, 16000)
    size = whole.stat().st_size
    whole.unlink()

    def refused() -> bool:
        with pytest.raises(OSError, match="disk full"):
            write_sound(tmp_path / f"x{suffix}", noise, 16000)
        return True

    for limit in (0, 1, 100, 4096, 5000, size - 1):
        assert in_child(refused, limit)
        assert not os.listdir(tmp_path)


def test_a_full_disk_while_converting(diffusers_folder, tmp_path):
    def convert() -> Result:
        return run("convert", diffusers_folder, "bundle", cwd=tmp_path)

    for limit in (0, 1000, 100_000, 1_000_000):
        assert_failed(in_child(convert, limit), ".part")
        assert not os.listdir(tmp_path)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]).returncode:
        pytest.skip("this root may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@needs_mount
def test_a_small_disk(diffusers_folder, tmp_path):
    with mounted(tmp_path / "small", "size=16k") as small:
        assert_failed(run("generate", "x", *QUICK, "-o", "x.wav", cwd=small), "bytes free")
        assert_failed(run("convert", diffusers_folder, "bundle", cwd=small), "bytes free")
        assert not os.listdir(small)


@needs_mount
def test_a_read_only_disk(diffusers_folder, tmp_path):
    with mounted(tmp_path / "fixed", "ro") as fixed:
        assert_failed(run("generate", "x", *QUICK, "-o", "x.wav", cwd=fixed), "Read-only")
        assert_failed(run("convert", diffusers_folder, "bundle", cwd=fixed), "Read-only")


def test_a_folder_that_vanishes(tmp_path, monkeypatch):
    folder = tmp_path / "clips"
    folder.mkdir()
    make = jobs.make_clips
    monkeypatch.setattr(jobs, "make_clips", lambda *a: (make(*a), shutil.rmtree(folder))[0])
    assert_failed(run("generate", "x", *QUICK, "-o", "clips/x.wav", cwd=tmp_path), "clips")
    assert not os.listdir(tmp_path)
