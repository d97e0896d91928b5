"""What CPUs do another way than GPUs, to the same result. Networks call these without asking.

Figures are of two AMD EPYC cores and PyTorch 2.13.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALF_TOKENS = 4096  # of a feature map, from which a convolution pays in half precision
SLICE_TOKENS = 2048  # worked on at a time in `map_tokens`


class Linear(nn.Linear):
    """`nn.Linear`; over feature maps (b, f, t, c) on a CPU as oneDNN's 1x1 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        # PyTorch hands `linear` to its BLAS, which in float32 on many processors reaches a third of
        # what its own convolutions do: 16000 tokens, 1024 -> 256 channels, 210 against 498 GFLOP/s.
        # Half precision goes through oneDNN either way.
        if x.ndim != 4 or x.device.type != "cpu":
            return super().forward(x)
        if x.dtype != torch.float32 and x.shape[:-1].numel() < HALF_TOKENS:
            return super().forward(x)
        features = x.permute(0, 3, 1, 2)  # b c f t, channels_last in memory: no copy
        return torch.conv2d(features, self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)


def map_tokens(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function`, which treats tokens alike and keeps their shape, of (b, f, t, c)."""
    if x.device.type != "cpu":
        return function(x)
    # In slices, so that its widest tensor stays in memory that is reused and need not be fetched
    # from the system each time (GEGLU, 16000 tokens of 256 channels, float32: 63 against 112 ms).
    slices = x.reshape(1, 1, -1, x.shape[-1]).split(SLICE_TOKENS, dim=2)
    return torch.cat([function(tokens) for tokens in slices], dim=2).view_as(x)


def upsample_conv(
    x: Tensor, kernel: Tensor, bias: Tensor | None, size: Sequence[int] | None = None
) -> Tensor:
    """Nearest neighbours, then a 3x3 convolution: (b, c, f, t) doubled in f and t, or to `size`.

    Args:
        kernel: (out, in, 3, 3), its last axes f and t.
    """
    doubled = (2 * x.shape[-2], 2 * x.shape[-1])
    if x.device.type == "cpu" and (size is None or tuple(size) == doubled):
        # Neighbours are copies: of the nine products of a result four are left once the taps on one
        # pixel are added up (256 channels, 16000 -> 64000 pixels, bfloat16: 74 against 176 ms).
        return F.conv_transpose2d(x, _four_taps(kernel), bias, stride=2, padding=1)
    wider = F.interpolate(x, size=tuple(size or doubled), mode="nearest")
    return F.conv2d(wider, kernel, bias, padding=1)


def _four_taps(kernel: Tensor) -> Tensor:
    """(in, out, 4, 4): sums over 2x2 windows of the kernel, turned round for a transposed one."""
    padded = F.pad(kernel.flip(-1, -2), (1, 1, 1, 1))
    return F.avg_pool2d(padded, 2, stride=1, divisor_override=1).transpose(0, 1)
