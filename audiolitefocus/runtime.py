"""Devices and dtypes, networks that come and go, and running out of memory."""

import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from audiolitefocus.config import BundleConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("auto", "cuda", "mps", "cpu")
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # PyTorch's words
# Maps of full resolution that an evaluation of the UNet holds at its worst moment, and what
# allocators and libraries take besides. Measured on two x86 cores in float32: audioldm2's size took
# 123, 218, 344 and 632 MB for 10.24, 20.48, 40.96 and 80 s; this gives 155, 209, 318 and 526 MB.
MAPS, WORKSPACE = 13, 100e6

GRAPHS = 64  # compiled of one network, for as many shapes of its inputs

T = TypeVar("T")


def choose_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """A torch dtype from itself, its name, "auto" (bfloat16 on CUDA, else float32) or None."""
    if dtype is None:
        return torch.float32
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise ValueError(f"dtype {dtype!r}: must be one of {', '.join(DTYPES)}")
    return chosen


Devices: TypeAlias = torch.device | str | Sequence[torch.device | str] | None


def choose_devices(devices: Devices, *, offload: bool = False) -> tuple[torch.device, ...]:
    """Usable torch devices: one as in `choose_device`, or several, also as "cuda:0,cuda:1".

    Raises:
        ValueError: none, one that `choose_device` refuses, devices of several kinds, or several
            with `offload`.
    """
    if isinstance(devices, str):
        devices = [name.strip() for name in devices.split(",")]
    several: Any = devices if isinstance(devices, (list, tuple)) else [devices]
    if not several:
        raise ValueError(f"device {devices!r}: give at least one of {', '.join(DEVICES)}")
    chosen = tuple(choose_device(device) for device in several)
    names = ",".join(map(str, chosen))
    if len({device.type for device in chosen}) > 1:
        raise ValueError(f"device {names}: must be of one kind, as cuda:0,cuda:1")
    if offload and len(chosen) > 1:
        raise ValueError(
            f"device {names}: offload works with one device; give one, or leave it out"
        )
    return chosen


def choose_device(device: torch.device | str | None) -> torch.device:
    """A usable torch device; "auto" and None are CUDA, else MPS, else the CPU.

    Raises:
        ValueError: one that is unknown, or not present.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device is None or device == "auto":
        return torch.device(next(kind for kind in ("cuda", "mps", "cpu") if available[kind]))
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        chosen = None
    if chosen is None or chosen.type not in available:
        raise ValueError(f"device {str(device)!r}: must be one of {', '.join(DEVICES)}")
    present = available[chosen.type] and (
        chosen.type != "cuda" or (chosen.index or 0) < torch.cuda.device_count()
    )
    if not present:
        here = ", ".join(kind for kind, there in available.items() if there)
        raise ValueError(f"device {str(device)!r} is not present on this machine; it has {here}")
    return chosen


class Offloader:
    """Moves networks to the device while they run and, with `offload`, back to the CPU.

    Used as `with on_device(network): ...`, also nested and by several threads: a network is moved
    back when the last block that uses it ends.
    """

    def __init__(self, device: torch.device | str, *, offload: bool = False):
        self.device, self.offload = torch.device(device), offload
        self._users: Counter[nn.Module] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, *networks: nn.Module) -> Iterator[None]:
        if not self.offload:
            yield
            return
        entered: list[nn.Module] = []
        try:
            for network in networks:
                entered.append(network)
                self._count(network, 1)
            yield
        finally:
            for network in entered:
                self._count(network, -1)

    def _count(self, network: nn.Module, change: int) -> None:
        with self._lock, torch.inference_mode(False):  # else the weights could not be used outside
            self._users[network] += change
            network.to(self.device if self._users[network] else "cpu")


def compiled_or_eager(
    function: Callable[..., T], *, mode: str | None, backend: str
) -> Callable[..., T]:
    """A function compiled for each shape of its arguments; as it is where that fails.

    The first failure is a warning.
    """
    from torch import _dynamo  # takes a second to load

    _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, GRAPHS)
    own_mode = mode if backend == "inductor" else None  # which alone has modes
    compiled = torch.compile(
        function, fullgraph=True, dynamic=False, backend=backend, mode=own_mode
    )
    failures = _dynamo.exc.TorchDynamoException, _dynamo.exc.FailOnRecompileLimitHit
    warned = False

    def call(*arguments) -> T:
        nonlocal warned
        try:
            return compiled(*arguments)
        except failures as error:
            if not warned:
                lines = str(error).split("\n\n")[0].split()  # advice for developers follows
                warnings.warn(f"runs without being compiled: {' '.join(lines)}", stacklevel=2)
            warned = True
            return function(*arguments)

    return call


def is_out_of_memory(error: BaseException) -> bool:
    """True if this is one of PyTorch's many ways to say that memory is out."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


@contextmanager
def oom_as_memory_error(message: str) -> Iterator[None]:
    """Turn running out of memory into a MemoryError of one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(message) from None


def oom_remedies(offloader: Offloader, *, clips: int, itemsize: int) -> str:
    """Suggestions that reduce memory, least disruptive first; `itemsize` is that of the weights."""
    helps = [
        "" if offloader.offload or offloader.device.type == "cpu" else "--offload",
        "--batch-size 1" if clips > 1 else "",
        "" if itemsize < 4 else "--dtype bfloat16",
        "a shorter --duration",
    ]
    return "what helps: " + ", ".join(filter(None, helps))


def clips_text(count: int) -> str:
    """A number of clips in words."""
    return "1 clip" if count == 1 else f"{count} clips"


def halve_on_oom(count: int, work: Callable[[slice], T]) -> list[T]:
    """`work` on `count` clips at once, and on half as many from where memory runs out."""
    done: list[T] = []
    start, at_once = 0, count
    while start < count:
        group = slice(start, min(start + at_once, count))
        try:
            done.append(work(group))
            start = group.stop
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or at_once == 1:
                raise
            at_once = min(at_once, count - start) // 2 or 1
    return done


def as_finite(name: str, value: Tensor | np.ndarray) -> Tensor:
    """A tensor of a floating-point tensor or array. Raises ValueError for anything else."""
    if not isinstance(value, (Tensor, np.ndarray)):
        raise ValueError(f"{name}: must be a tensor or an array, not {type(value).__name__}")
    tensor = torch.as_tensor(value)
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: must be floating point, not {tensor.dtype}")
    check_finite(name, tensor)
    return tensor


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise ValueError for NaN or infinite entries."""
    if not tensor.isfinite().all():
        raise ValueError(f"{name}: not finite; if this is half precision, try dtype float32")


def denoising_bytes(config: BundleConfig, frames: int, itemsize: int) -> float:
    """Rough memory of guided denoising beyond the weights, for so many latent frames at once."""
    rows = config.vocoder.mel_bins // config.vae.downsampling
    return 2 * frames * rows * config.unet.channels[0] * MAPS * itemsize + WORKSPACE


def kept_bytes(config: BundleConfig, frames: int, itemsize: int) -> float:
    """Memory of the keys and values that `diffusion.held` keeps of guided denoising."""
    unet, rows = config.unet, config.vocoder.mel_bins // config.vae.downsampling
    numbers = 0.0
    for level, context in unet.transformers.values():
        modules = unet.depth * (2 if context == "self" else 1)
        numbers += 2 * modules * unet.channels[level] * rows * frames / 4**level
    return 2 * numbers * itemsize


def available_memory() -> float | None:
    """Bytes of main memory that can still be had; None where the system does not tell."""
    limits = (_system_memory(), _group_memory())
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
