"""HiFi-GAN (Kong et al., "HiFi-GAN: Generative Adversarial Networks for Efficient and High Fidelity
Speech Synthesis", 2020): the generator that turns log-mel frames into a waveform. Weight norm is
folded at conversion.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolitefocus.config import VocoderConfig
from audiolitefocus.ops.conv1d import conv1d, conv_transpose1d

class Conv1d(nn.Conv1d):
    """A convolution of features (b, t, c) that keeps their length."""

    precise = True  # also where the weights are in half precision

    def arrange(self) -> None:
        """Lay the weight out in memory as `conv1d` works on it: channels next to each other."""
        self.weight.data = self.weight.data.mT.contiguous().mT

    def forward(self, x: Tensor) -> Tensor:
        return conv1d(x, self.weight, self.bias, self.dilation[0], precise=self.precise)


class ConvTranspose1d(nn.ConvTranspose1d):
    """An upsampling of features (b, t, c)."""

    def forward(self, x: Tensor) -> Tensor:
        return conv_transpose1d(x, self.weight, self.bias, self.stride[0], self.padding[0])


class ResidualBlock(nn.Module):
    """Dilated and plain convolutions in pairs, each pair with a shortcut."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], slope: float):
        super().__init__()
        self.slope = slope
        self.convs1 = nn.ModuleList(
            Conv1d(channels, channels, kernel, dilation=d) for d in dilations
        )
        self.convs2 = nn.ModuleList(Conv1d(channels, channels, kernel) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for conv1, conv2 in zip(self.convs1, self.convs2, strict=True):
            h = conv1(F.leaky_relu(x, self.slope))
            x = x + conv2(F.leaky_relu(h, self.slope, inplace=True))
        return x


class HiFiGAN(nn.Module):
    """Log-mel frames (b, t, m) to samples (b, 160 t + 32) in [-1, 1].

    The 32 samples more come from the first upsampling, whose kernel of 16 and rate of 5 do not pad
    evenly; callers cut the waveform to the length they want.
    """

    # Nearer to the waveform than the second level, whose features have 2000 steps a second, half
    # precision fills the silence between the partials of a tone with noise: 1.3 nats of log-mel on
    # the demo's tones, of these 0.8 by the last level and 1.0 by `conv_post` alone. `conv_pre` reads
    # log-mels, which bfloat16 rounds to steps of up to 0.06: 0.1 nats.
    float32_weights = (
        "conv_pre.", "upsampler.", "conv_post.", *(f"resblocks.{i}." for i in range(2, 16))
    )  # fmt: skip

    def __init__(self, config: VocoderConfig):
        super().__init__()
        self.config = config
        widths = [config.initial_channels // 2**i for i in range(len(config.upsample_rates) + 1)]
        self.conv_pre = Conv1d(config.mel_bins, widths[0], 7)
        self.upsampler = nn.ModuleList(
            ConvTranspose1d(wide, narrow, kernel, stride=rate, padding=(kernel - rate) // 2)
            for wide, narrow, kernel, rate in zip(
                widths[:-1], widths[1:], config.upsample_kernels, config.upsample_rates, strict=True
            )
        )
        self.resblocks = nn.ModuleList(
            nn.ModuleList(
                ResidualBlock(width, kernel, dilations, config.slope)
                for kernel, dilations in zip(
                    config.resblock_kernels, config.resblock_dilations, strict=True
                )
            )
            for width in widths[1:]
        )
        # Of the first level, the first pairs alone are audible: 0.037 nats of 0.037.
        for block in self.resblocks[0].children():
            for conv in (*block.convs1[1:], *block.convs2[1:]):
                conv.precise = False
        self.conv_post = Conv1d(widths[-1], 1, 7)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel)
        kinds = len(self.config.resblock_kernels)
        for upsample, resblocks in zip(self.upsampler, self.resblocks, strict=True):
            x = upsample(F.leaky_relu(x, self.config.slope))
            x = sum(block(x) for block in resblocks.children()) / kinds
        # The last activation has PyTorch's default slope of 0.01, in the original as here.
        return torch.tanh(self.conv_post(F.leaky_relu(x)))[..., 0]
