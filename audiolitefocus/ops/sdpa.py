"""Scaled dot-product attention: PyTorch's, and a kernel of our own where PyTorch's is slow.

That is in bfloat16 on processors with AVX512-BF16 but without AMX, such as AMD's Zen 4 and 5: the
BLAS of PyTorch 2.13 multiplies in float32 there. `flash.cpp` is as accurate and more than twice as
fast (1000 queries, 1700 keys, 128 heads, two cores of an AMD EPYC: 95 ms against 222 ms). It is
compiled when it is first needed, in about a second; without a C++ compiler PyTorch's is used.
"""

import ctypes
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

SOURCE = Path(__file__).with_name("flash.cpp")
FLAGS = ("-std=c++17", "-O3", "-w", "-fPIC", "-shared", "-pthread")
WIDTH = 32  # of all heads of AudioLDM2, and of the kernel
LEAST_SCORES = 2**20  # fewer take PyTorch less than starting our threads
COMPILERS = ("c++", "g++", "clang++")


def bfloat16_is_slow() -> bool:
    """Whether the processor has AVX512-BF16 without AMX, as far as Linux tells."""
    try:
        with open("/proc/cpuinfo") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "").split()
    except OSError:
        return False
    return "avx512_bf16" in flags and "amx_bf16" not in flags


PAYS = bfloat16_is_slow()


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v.

    Args:
        q: (b, h, n, d).
        k, v: (b, h, m, d).
        mask: bool, broadcast to (b, h, n, m), true for keys to attend to; None for all.

    Returns:
        (b, h, n, d).
    """
    if PAYS and mask is None and _suits(q, k, v):
        return flash_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _suits(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernel can do this, and it is enough to be worth starting threads."""
    inputs = (q, k, v)
    return (
        all(x.device.type == "cpu" and x.dtype == torch.bfloat16 for x in inputs)
        and all(x.shape[:2] == q.shape[:2] and x.shape[-1] == WIDTH for x in inputs)
        and all(x.stride(-1) == 1 for x in inputs)
        and q.shape[:-1].numel() * k.shape[-2] >= LEAST_SCORES
        and not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs))
    )


@cache
def kernel() -> ctypes.CDLL | None:
    """The compiled kernel; None where it would not run or cannot be compiled."""
    if not PAYS:
        return None
    candidates = (os.environ.get("CXX") or "", *COMPILERS)
    compiler = next(filter(None, map(shutil.which, candidates)), None)
    if compiler is None:
        logging.getLogger(__name__).info("no C++ compiler: attention is PyTorch's")
        return None
    try:
        with tempfile.TemporaryDirectory() as folder:
            built = str(Path(folder, "flash.so"))
            command = [compiler, *FLAGS, str(SOURCE), "-o", built]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
            return ctypes.CDLL(built)
    except (OSError, subprocess.SubprocessError) as error:
        why = getattr(error, "stderr", None) or error
        logging.getLogger(__name__).info("attention is PyTorch's: %s", why)
        return None


@torch.library.custom_op("audiolitefocus::flash_attention", mutates_args=(), device_types="cpu")
def flash_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(32)) v by the kernel, or by PyTorch where there is none. Shapes as in
    `sdpa`, bfloat16, d = 32; memory of the result is in the order b n h d.
    """
    library, out = kernel(), _empty(q)
    if library is None:
        return out.copy_(F.scaled_dot_product_attention(q, k, v))
    tensors = (q, k, v, out)
    strides = [stride for x in tensors for stride in x.stride()[:3]]
    library.flash_attention(
        *(ctypes.c_void_p(x.data_ptr()) for x in tensors),
        *(ctypes.c_int64(n) for n in (*q.shape[:3], k.shape[2])),
        (ctypes.c_int64 * len(strides))(*strides),
        ctypes.c_float(WIDTH**-0.5),
        ctypes.c_int64(torch.get_num_threads()),
    )
    return out


@flash_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _empty(q)


def _empty(q: Tensor) -> Tensor:
    batch, heads, tokens, width = q.shape
    return q.new_empty(batch, tokens, heads, width).transpose(1, 2)
