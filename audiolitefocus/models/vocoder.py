"""HiFi-GAN (Kong et al., "HiFi-GAN: Generative Adversarial Networks for Efficient and High Fidelity
Speech
Synthesis", 2020): the generator that turns log-mel frames into a waveform. Weight norm is folded at
conversion.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolitefocus.config import VocoderConfig

CHUNK_FRAMES = 2048  # mel frames of a long clip that are vocoded at a time: 20.48 s


class ResidualBlock(nn.Module):
    """Dilated and plain convolutions in pairs, each pair with a shortcut."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], slope: float):
        super().__init__()
        self.slope = slope
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2)
            for d in dilations
        )
        self.convs2 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        for conv1, conv2 in zip(self.convs1, self.convs2, strict=True):
            h = conv1(F.leaky_relu(x, self.slope))
            x = x + conv2(F.leaky_relu(h, self.slope))
        return x


class HiFiGAN(nn.Module):
    """Log-mel frames (b, t, m) to samples (b, 160 t + 32) in [-1, 1].

    The 32 samples more come from the first upsampling, whose kernel of 16 and rate of 5 do not pad
    evenly; callers cut the waveform to the length they want.
    """

    def __init__(self, config: VocoderConfig):
        super().__init__()
        self.config = config
        widths = [config.initial_channels // 2**i for i in range(len(config.upsample_rates) + 1)]
        self.conv_pre = nn.Conv1d(config.mel_bins, widths[0], 7, padding=3)
        self.upsampler = nn.ModuleList(
            nn.ConvTranspose1d(wide, narrow, kernel, stride=rate, padding=(kernel - rate) // 2)
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
        self.conv_post = nn.Conv1d(widths[-1], 1, 7, padding=3)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel.transpose(1, 2))
        kinds = len(self.config.resblock_kernels)
        for upsample, resblocks in zip(self.upsampler, self.resblocks, strict=True):
            x = upsample(F.leaky_relu(x, self.config.slope))
            x = sum(block(x) for block in resblocks.children()) / kinds
        # The last activation has PyTorch's default slope of 0.01, in the original as here.
        return torch.tanh(self.conv_post(F.leaky_relu(x)))[:, 0]
