"""Devices at work: the memory that is left, networks that come and go, and running out."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

SAYS_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")

T = TypeVar("T")


class Workplace:
    """Where networks work. With `offload` each is there only while it does, and waits on the CPU.

    Used as `with workplace(network): ...`, also one inside another.
    """

    def __init__(self, device: torch.device | str, *, offload: bool = False):
        self.device, self.offload = torch.device(device), offload
        self._working: list[nn.Module] = []

    @contextmanager
    def __call__(self, *networks: nn.Module) -> Iterator[None]:
        moved = [n for n in networks if not any(n is other for other in self._working)]
        with self._moving(moved if self.offload else []):
            yield

    @contextmanager
    def _moving(self, networks: list[nn.Module]) -> Iterator[None]:
        try:
            for network in networks:
                self._working.append(network)
                _move(network, self.device)
            yield
        finally:
            for network in networks:
                _move(network, torch.device("cpu"))
            self._working = [n for n in self._working if not any(n is m for m in networks)]


def _move(network: nn.Module, device: torch.device) -> None:
    with torch.inference_mode(False):  # weights made inside of it could not be used outside
        network.to(device)


def available(device: torch.device) -> float | None:
    """Bytes that can still be had on a device; None where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    limits = [_system_memory(), _group_memory()]
    return min((limit for limit in limits if limit is not None), default=None)


def _system_memory() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux: all there is, whoever uses it
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" in names:
            return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        return None


def _group_memory() -> float | None:
    """What a container's limit leaves (cgroup v2); files in the cache can be dropped."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = float((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):  # no group, or "max"
        return None


def ran_out(error: BaseException) -> bool:
    """Whether this is how PyTorch says that memory is out: in many ways."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(s in str(error) for s in SAYS_OUT_OF_MEMORY)


@contextmanager
def explained(message: Callable[[], str]) -> Iterator[None]:
    """Turn running out of memory into a MemoryError of one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise MemoryError(message()) from None


def in_groups(count: int, at_once: int, work: Callable[[slice], T]) -> list[T]:
    """`work` on `count` clips, `at_once` at a time, and on half as many from where memory runs
    out.
    """
    done: list[T] = []
    start = 0
    while start < count:
        group = slice(start, min(start + at_once, count))
        try:
            done.append(work(group))
            start = group.stop
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error) or at_once == 1:
                raise
            at_once = min(at_once, count - start) // 2 or 1
    return done
