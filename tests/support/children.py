"""Child processes for tests of faults: forks, which have everything imported already."""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

FORK = multiprocessing.get_context("fork")
PATIENCE = 120.0  # seconds for what takes a few, before a test gives up
FILE_EVENTS = ("open", "os.", "shutil.", "fcntl.")  # of Python's audit hooks


def forked(work: Callable[[], object], *, kill_at: int | None = None) -> int:
    """The exit code of `work` in a child, which SIGKILL ends at its n-th dealing with files."""

    def child() -> None:
        torch.set_num_threads(1)
        if kill_at is not None:
            sys.addaudithook(_killer(kill_at))
        work()

    process = FORK.Process(target=child)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode is not None, "the child hangs"
    return process.exitcode


def _killer(moment: int):
    left = moment

    def count(event: str, arguments: tuple) -> None:
        nonlocal left
        if event.startswith(FILE_EVENTS):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return count


def moments(work: Callable[[], object]) -> Iterator[int]:
    """Run `work` again and again, killed one moment later each time, until it is not."""
    moment = 1
    while (status := forked(work, kill_at=moment)) == -signal.SIGKILL:
        yield moment
        moment += 1
    assert status == 0 and moment > 5


def at_once(*works: Callable[[], object]) -> list[int]:
    """Exit codes of children that start together."""
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


def hidden(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".")]
