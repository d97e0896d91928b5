"""Child processes for tests of faults: forks, which have everything imported, and real commands."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

FORK = multiprocessing.get_context("fork")
PATIENCE = 120.0  # seconds for what takes a few, before a test gives up


def forked(*works: Callable[[], object]) -> list[int]:
    """Exit codes of children that start together, one for each of the works."""
    barrier = FORK.Barrier(len(works))

    def child(work: Callable[[], object]) -> None:
        torch.set_num_threads(1)
        barrier.wait(PATIENCE)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            work()

    processes = [FORK.Process(target=child, args=(work,)) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes]


def kill_after(renames: int, work: Callable[[], object]) -> None:
    """Run `work` in a child that is killed after so many `os.replace`, or before the first one."""

    def child() -> None:
        done, replace = 0, os.replace

        def killing(source, target) -> None:
            nonlocal done
            if done == renames:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
            done += 1
            if done == renames:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = killing
        work()

    assert forked(child) == [-signal.SIGKILL]


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]


def start(*arguments: str | Path, cwd: Path, **variables: str) -> subprocess.Popen:
    """The command as a process of its own, which Ctrl-C reaches even under nohup."""
    command = [sys.executable, "-m", "audiolitefocus", *map(str, arguments)]
    fixed = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment = {**os.environ, **fixed, **variables}
    with open(cwd / "said", "w") as said:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=environment,
            stdout=said,
            stderr=said,
            # An ignored signal stays ignored in children: nohup and `make test &` ignore this one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


@contextlib.contextmanager
def started(*arguments: str | Path, cwd: Path, **variables: str) -> Iterator[subprocess.Popen]:
    """The same as `start`, ended with the block in any case."""
    process = start(*arguments, cwd=cwd, **variables)
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE)


def wait_until(reached: Callable[[], object], process: subprocess.Popen, cwd: Path) -> None:
    """Return when `reached()` is true of a process that is still running."""
    until = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < until and process.poll() is None, (cwd / "said").read_text()
        time.sleep(0.001)
