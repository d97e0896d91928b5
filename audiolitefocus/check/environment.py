"""The machine: versions, device, dtypes that work on it, and kernels of attention."""

import importlib.metadata
import os
import platform
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from audiolitefocus import __version__
from audiolitefocus.check.report import ERRORS, Row, Section
from audiolitefocus.runtime import DTYPES, available_memory

PACKAGES = ("transformers", "safetensors", "huggingface_hub", "soundfile", "diffusers")
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
HEAD = (1, 4, 64, 32)  # of a query: AudioLDM2's heads have 32 channels


def check_environment(device: torch.device, dtype: torch.dtype) -> Section:
    """Versions, the device, and what works on it."""
    chosen = str(dtype).removeprefix("torch.")
    works = [name for name, kind in DTYPES.items() if _works(device, kind)]
    kernels = {"plain": _kernels(device, dtype), "masked": _kernels(device, dtype, masked=True)}
    rows = [
        Row("audiolitefocus", __version__),
        Row("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}"),
        Row("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"),
        *(Row(name, _version(name)) for name in PACKAGES),
        Row("device", f"{device}: {_device_name(device)}"),
        Row("memory", _memory(device)),
        Row("dtypes", f"{', '.join(works)}; checked here in {chosen}", chosen in works),
        Row("attention", _kernel_text(kernels), bool(kernels["plain"]), kernels),
    ]
    return Section("Environment", rows)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        version = f"{properties.major}.{properties.minor}"
        return f"{properties.name}, compute capability {version}"
    return f"{_processor()}, {os.cpu_count()} cores, threads: {torch.get_num_threads()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or "processor unknown"


def _memory(device: torch.device) -> str:
    free = available_memory()
    texts = ["main memory unknown" if free is None else f"{free / 1e9:.1f} GB free"]
    if device.type == "cuda":
        there, total = torch.cuda.mem_get_info(device)
        texts.append(f"GPU {there / 1e9:.1f} of {total / 1e9:.1f} GB free")
    return ", ".join(texts)


def _works(device: torch.device, dtype: torch.dtype) -> bool:
    """True if products of matrices and convolutions run in this dtype."""
    try:
        matrix = torch.ones(64, 64, device=device, dtype=dtype)
        F.conv2d((matrix @ matrix).view(1, 64, 8, 8), matrix.view(64, 64, 1, 1))
        synchronize(device)
    except ERRORS:
        return False
    return True


def synchronize(device: torch.device) -> None:
    """Wait for what a device has been given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _kernels(device: torch.device, dtype: torch.dtype, *, masked: bool = False) -> list[str]:
    """PyTorch's kernels of attention that work, without or with a mask as LiteFocus has it."""
    found = []
    for name, backend in KERNELS.items():
        try:
            q = torch.ones(HEAD, device=device, dtype=dtype)
            mask = torch.zeros(HEAD[2], HEAD[2], device=device, dtype=dtype) if masked else None
            with warnings.catch_warnings(), sdpa_kernel(backend):
                warnings.simplefilter("ignore")  # which say why a kernel cannot be used
                F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
                synchronize(device)
        except ERRORS:
            continue
        found.append(name)
    return found


def _kernel_text(kernels: dict[str, list[str]]) -> str:
    plain, masked = (", ".join(names) or "none" for names in kernels.values())
    return plain if plain == masked else f"{plain}; with a mask {masked}"
