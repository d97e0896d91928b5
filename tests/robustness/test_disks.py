"""Disks that are full or read-only, folders that vanish, and interrupts: reported in one line, with
nothing half-written left behind.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import soundfile

from audiolitefocus.audio.files import SOUND_SUFFIXES, write_sound
from audiolitefocus.batch import clips as jobs
from tests.support.children import FORK, PATIENCE, forked
from tests.support.command import QUICK, Result, run

T = TypeVar("T")

needs_mount = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("mount"),
    reason="only root on Linux can mount a file system",
)


def assert_said(result: Result, *words: str, status: int = 1) -> None:
    """One line that names the fault, no traceback, and the exit status."""
    assert result.returncode == status, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in result.stderr, result.stderr
    assert all(word in errors[0] for word in words), errors


def in_child(work: Callable[[], T], limit: int | None = None) -> T:
    """What `work` returns in a child whose files may have at most `limit` bytes."""
    here, there = FORK.Pipe(duplex=False)

    def child() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        there.send(work())

    assert forked(child) == 0
    return here.recv()


def test_a_full_disk_while_generating(tmp_path):
    command = ("generate", "x", *QUICK, "-o", "x.wav")
    assert_said(in_child(lambda: run(*command, cwd=tmp_path), 5000), "x.wav", "disk full")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("suffix", SOUND_SUFFIXES)
def test_a_disk_that_is_full_sooner_or_later(suffix, tmp_path):
    noise = np.random.default_rng(0).uniform(-1, 1, 16000).astype(np.float32)

    def refused() -> bool:
        with pytest.raises(OSError, match="disk full"):
            write_sound(tmp_path / f"x{suffix}", noise, 16000)
        return True

    for limit in (0, 1, 100, 4096, 5000):
        assert in_child(refused, limit)
        assert not os.listdir(tmp_path)


def test_a_full_disk_while_converting(diffusers_folder, tmp_path):
    def convert() -> Result:
        return run("convert", diffusers_folder, "bundle", cwd=tmp_path)

    for limit in (0, 1000, 100_000, 1_000_000):
        assert_said(in_child(convert, limit), ".part")
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
        assert_said(run("generate", "x", *QUICK, "-o", "x.wav", cwd=small), "bytes free")
        assert_said(run("convert", diffusers_folder, "bundle", cwd=small), "bytes free")
        assert not os.listdir(small)


@needs_mount
def test_a_read_only_disk(diffusers_folder, tmp_path):
    with mounted(tmp_path / "fixed", "ro") as fixed:
        assert_said(run("generate", "x", *QUICK, "-o", "x.wav", cwd=fixed), "Read-only")
        assert_said(run("convert", diffusers_folder, "bundle", cwd=fixed), "Read-only")


def test_a_folder_that_vanishes(tmp_path, monkeypatch):
    folder = tmp_path / "clips"
    folder.mkdir()
    make = jobs.make_clips
    monkeypatch.setattr(jobs, "make_clips", lambda *a: (make(*a), shutil.rmtree(folder))[0])
    assert_said(run("generate", "x", *QUICK, "-o", "clips/x.wav", cwd=tmp_path), "clips")
    assert not os.listdir(tmp_path)


# Interrupted: processes of their own, as a person meets them


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "audiolitefocus", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with open(cwd / "said", "w") as said:
        return subprocess.Popen(command, cwd=cwd, env=environment, stdout=said, stderr=said)


def wait_for(words: str, process: subprocess.Popen, cwd: Path) -> None:
    until = time.monotonic() + PATIENCE
    while words not in (cwd / "said").read_text():
        assert time.monotonic() < until and process.poll() is None, (cwd / "said").read_text()
        time.sleep(0.01)


def test_an_interrupt_stops_within_a_step_and_keeps_what_is_finished(tmp_path):
    lines = [json.dumps({"prompt": p, "name": p, "steps": n}) for p, n in (("a", 2), ("b", 700))]
    (tmp_path / "prompts").write_text("\n".join(lines))
    options = ("--prompts", "prompts", "--out", "clips", *QUICK)
    process = start("generate", *options, cwd=tmp_path)
    wait_for("a.wav (seed", process, tmp_path)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(PATIENCE)
    said = (tmp_path / "said").read_text()
    assert process.returncode == 130 and "Traceback" not in said
    assert time.monotonic() - began < 10  # a step takes some 20 ms; the rest is Python's leave
    assert sorted(os.listdir(tmp_path / "clips")) == ["a.json", "a.wav"]
    assert len(soundfile.read(tmp_path / "clips" / "a.wav")[0]) == 10240


def test_a_process_killed_while_it_denoises_leaves_nothing(tmp_path):
    process = start("generate", "x", *QUICK, "--steps", "1000", "-o", "x.wav", cwd=tmp_path)
    wait_for("/1000", process, tmp_path)
    process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert os.listdir(tmp_path) == ["said"]
    assert run("generate", "x", *QUICK, "-o", "x.wav", cwd=tmp_path).returncode == 0
