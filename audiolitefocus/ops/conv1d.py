"""Convolutions along time of features (b, t, c), as fast as two-dimensional ones are.

Features in channels_last memory, one row high, are what PyTorch's and oneDNN's two-dimensional
convolutions are made for: on two cores of an Intel Xeon with AMX they reach 350 to 430 GFLOP/s in
float32 and 1500 to 3400 in bfloat16, where `F.conv1d` reaches 60 to 350 and 90 to 900.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

PART_STEPS = 4096  # time steps that are multiplied in parts at once: what they take stays in cache


def conv1d(
    x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1, *, precise: bool = True
) -> Tensor:
    """Convolve features (b, t, i) with a kernel (o, i, k) of odd size: (b, t, o), zero padded.

    A kernel in half precision may come with float32 features; the result then is float32. Devices
    other than CPUs multiply in float16, which holds three more bits than bfloat16; CPUs in bfloat16
    where that pays, and if `precise` in three parts (`_in_parts`), else in float32.
    """
    if x.dtype == weight.dtype:
        return _conv(x, weight, bias, dilation)
    if x.device.type != "cpu":
        return _conv(x.half(), weight.half(), bias.half(), dilation).float()
    if weight.dtype != torch.bfloat16 or not _bfloat16_pays(3 if precise else 1):
        return _conv(x, weight.to(x.dtype), bias.to(x.dtype), dilation)
    if precise:
        return _in_parts(x, weight, bias, dilation)
    return _conv(x.bfloat16(), weight, bias, dilation).float()


def conv_transpose1d(x: Tensor, weight: Tensor, bias: Tensor, rate: int, padding: int) -> Tensor:
    """Upsample features (b, t, i) with a kernel (i, o, k): (b, (t - 1) rate - 2 padding + k, o)."""
    kernel, bias = weight[:, :, None].to(x.dtype), bias.to(x.dtype)
    row = F.conv_transpose2d(_row(x), kernel, bias, (1, rate), (0, padding))
    return _features(row)


def _conv(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    padding = 0, dilation * (weight.shape[-1] // 2)
    row = F.conv2d(_row(x), weight[:, :, None], bias, padding=padding, dilation=(1, dilation))
    return _features(row)


def _in_parts(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """The product of float32 features with a bfloat16 kernel to 16 bits, by products of 8 bits.

    A bfloat16 product rounds the features before and the result after. So what rounding takes from
    the features is multiplied too, and so that nothing is lost of the result, a second product has
    the first one subtracted before it is rounded. Relative error: 5e-6, where bfloat16 has 3e-3.
    """
    steps = x.shape[1]
    count = math.ceil(steps / PART_STEPS)
    width = min(steps, 16 * math.ceil(steps / count / 16))  # AMX wants multiples of 16
    reach = dilation * (weight.shape[-1] // 2)
    out = x.new_empty(*x.shape[:2], len(weight))  # b t o
    for start in range(0, steps, width):
        start = min(start, steps - width)  # the last part overlaps: all have one width
        low, high = max(0, start - reach), min(steps, start + width + reach)
        missing = low - (start - reach), start + width + reach - high
        # x = upper + lower, to 16 bits
        upper = x[:, low:high].bfloat16()
        lower = (x[:, low:high] - upper).bfloat16()
        if any(missing):
            upper, lower = (F.pad(part, (0, 0, *missing)) for part in (upper, lower))
        product, rest = _product_and_rest(_row(upper), _row(lower), weight, bias, dilation)
        torch.add(product, rest.float(), out=out[:, start : start + width])
    return out


def _product_and_rest(
    upper: Tensor, lower: Tensor, weight: Tensor, bias: Tensor, dilation: int
) -> tuple[Tensor, Tensor]:
    """The rounded product of rows (b, c, 1, t) in two parts, and what it lacks."""
    kernel, ops = weight[:, :, None], torch.ops.mkldnn
    shape = (0, 0), (1, 1), (1, dilation), 1  # padding, stride, dilation, groups
    product = F.conv2d(upper, kernel, bias, dilation=(1, dilation))
    # upper * weight - product, in one rounding; then + lower * weight
    rest = ops._convolution_pointwise.binary(
        upper, product, kernel, bias, *shape, "sub", None, None, [], None
    )
    ops._convolution_pointwise_.binary(
        rest, lower, kernel, None, *shape, "add", None, None, [], None
    )
    return _features(product), _features(rest)


@functools.cache
def _bfloat16_pays(products: int) -> bool:
    """True if so many products in bfloat16 take less time than one in float32.

    With AMX three do; where AVX-512 multiplies bfloat16 one does, in half the time (AMD EPYC, 512
    channels: 490 to 530 against 240 to 255 GFLOP/s of a core).
    """

    def has(feature: str) -> bool:
        return getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)()

    if has("amx_tile"):
        return products == 1 or hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
    return products == 1 and has("avx512_bf16")


def _row(x: Tensor) -> Tensor:
    """(b, t, c) -> (b, c, 1, t), in channels_last memory."""
    return x[:, None].permute(0, 3, 1, 2)


def _features(row: Tensor) -> Tensor:
    """(b, c, 1, t) -> (b, t, c)."""
    return row[:, :, 0].mT
