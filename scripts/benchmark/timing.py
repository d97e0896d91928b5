"""Measuring: turns, medians, memory, and what the machine can do at best."""

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

PATIENCE = 60.0  # seconds; what takes longer is called once, without a warm-up
PEAK_SIZE = {"cpu": 4096, "cuda": 8192}


def seconds_of(call: Callable[[], object], device: str) -> float:
    """The wall time of one call, until the device has finished."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def extra_memory(call: Callable[[], object], device: str) -> tuple[float, int | None]:
    """The wall time of one call, and the bytes it needed beyond those in use before; None where
    the system does not tell.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return seconds_of(call, device), torch.cuda.max_memory_allocated() - before
    try:
        release()
        Path("/proc/self/clear_refs").write_text("5")  # restart the high-water mark
        before = status("VmRSS")
        return seconds_of(call, device), status("VmHWM") - before
    except (OSError, AttributeError):
        return seconds_of(call, device), None


def release() -> None:
    """Give back to the system what is free, or it is used unseen."""
    ctypes.CDLL(None).malloc_trim(0)


def status(name: str) -> int:
    """A quantity of Linux's /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def available_memory(device: str) -> float:
    """Bytes that can still be had."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
    except OSError:
        return float("inf")


def turns(
    calls: dict[str, Callable[[], object]],
    *,
    device: str,
    repeats: int,
    first: dict[str, float],
    deadline: float,
) -> dict[str, list[float]]:
    """The times of every call, taken turn by turn, so that what else the machine does hits all
    alike.

    Args:
        first: the time of each one's first call. Where it exceeds `PATIENCE`, it is the result.
        deadline: of `time.monotonic`. No turn begins that would end later; everyone gets one.
    """
    times = {name: [first[name]] if first[name] > PATIENCE else [] for name in calls}
    waiting = {name: call for name, call in calls.items() if not times[name]}
    for turn in range(repeats):
        if turn and time.monotonic() + sum(min(times[n]) for n in waiting) > deadline:
            break
        for name, call in waiting.items():
            times[name].append(seconds_of(call, device))
    return times


def peak_flops(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest big product: a matrix product or, as CPU libraries differ, a 1x1
    convolution.
    """
    n = PEAK_SIZE[device]
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    rows: Tensor = a.t()[None, :, :, None]  # 1 n n 1, channels_last
    products = [lambda: a @ b, lambda: torch.conv2d(rows, b[:, :, None, None])]
    best = []
    with torch.inference_mode():
        for product in products:
            product()
            best.append(min(seconds_of(product, device) for _ in range(5)))
    return 2 * n**3 / min(best)


def machine(device: str) -> dict[str, str | int]:
    """What was measured on."""
    about = {"torch": torch.__version__, "python": platform.python_version()}
    if device == "cuda":
        return {"device": torch.cuda.get_device_name(), **about, "cuda": str(torch.version.cuda)}
    return {"device": cpu_name(), **about, "threads": torch.get_num_threads()}


def cpu_name() -> str:
    """The processor and how many of its cores can be used."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def median(times: list[float]) -> float:
    return statistics.median(times)
