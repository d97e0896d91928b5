"""A linear layer that is fast on CPUs too."""

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """`nn.Linear`; feature maps on a CPU go through oneDNN's 1x1 convolution, which is the same
    product.

    PyTorch hands `linear` to its BLAS, which on many processors reaches a third of what its own
    convolutions
    do: float32, 16000 tokens, 1024 -> 256 channels on two AMD EPYC cores, 210 GFLOP/s against 498.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4 and x.device.type == "cpu":
            features = x.permute(0, 3, 1, 2)  # b c f t, channels_last in memory: no copy
            return torch.conv2d(features, self.weight[:, :, None, None], self.bias).permute(
                0, 2, 3, 1
            )
        return super().forward(x)
