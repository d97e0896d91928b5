"""HiFi-GAN's generator, which turns log-mel frames into a waveform.

Kong et al., "HiFi-GAN: Generative Adversarial Networks for Efficient and High Fidelity Speech
Synthesis", 2020. Weight norm is folded at conversion.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolitefocus.config import VocoderConfig
from audiolitefocus.ops.conv1d import conv1d, conv_transpose1d


class Conv1d(nn.Conv1d):
    """A convolution of features (b, t, c) that keeps their length.

    With `precise` it is exact to 16 bits even where its weights have 8 (`ops.conv1d`).
    """

    bias: Tensor

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, dilation: int = 1, precise: bool = True
    ):
        super().__init__(inputs, outputs, kernel, dilation=dilation)
        self.precise = precise

    def to_channels_last(self) -> None:
        """Lay the weight out in memory as `conv1d` works on it: channels next to each other."""
        self.weight.data = self.weight.data.mT.contiguous().mT

    def forward(self, x: Tensor) -> Tensor:
        return conv1d(x, self.weight, self.bias, self.dilation[0], precise=self.precise)


class ConvTranspose1d(nn.ConvTranspose1d):
    """An upsampling of features (b, t, c)."""

    bias: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, rate: int):
        super().__init__(inputs, outputs, kernel, stride=rate)
        self.rate, self.trim = rate, (kernel - rate) // 2

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return conv_transpose1d(x, self.weight, self.bias, self.rate, self.trim)


class ResidualBlock(nn.Module):
    """Dilated and plain convolutions in pairs, each pair with a shortcut.

    All are `precise`, or only the first one.
    """

    def __init__(
        self, channels: int, kernel: int, dilations: tuple[int, ...], slope: float, precise: bool
    ):
        super().__init__()
        self.slope = slope
        self.convs1, self.convs2 = nn.ModuleList(), nn.ModuleList()
        for pair, dilation in enumerate(dilations):
            first = Conv1d(
                channels, channels, kernel, dilation=dilation, precise=precise or pair == 0
            )
            self.convs1.append(first)
            self.convs2.append(Conv1d(channels, channels, kernel, precise=precise))

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

    # What half precision makes audible on the demo's tones, in nats of the waveform's log-mel (in
    # bfloat16): noise between the partials, 1.0 by `conv_post`, 0.9 by the last upsampling, 0.7 by
    # the last level, 0.4 by the one before; and 0.1 by `conv_pre`, as log-mels are rounded to steps
    # of up to 0.06. The first two levels, with 500 and 2000 features a second, do most of the work;
    # there the weights may be rounded (0.006), and products too but for those that are `precise`.
    float32_weights = (
        *("conv_pre.", "upsampler.", "conv_post."),
        *(f"resblocks.{level}." for level in range(2, 16)),
    )

    def __init__(self, config: VocoderConfig):
        super().__init__()
        self.config = config
        widths = [config.initial_channels // 2**i for i in range(len(config.upsample_rates) + 1)]
        self.conv_pre = Conv1d(config.mel_bins, widths[0], 7)
        self.upsampler = nn.ModuleList(
            ConvTranspose1d(wide, narrow, kernel, rate)
            for wide, narrow, kernel, rate in zip(
                widths[:-1], widths[1:], config.upsample_kernels, config.upsample_rates, strict=True
            )
        )
        kinds = list(zip(config.resblock_kernels, config.resblock_dilations, strict=True))
        # Of the first level only the first convolutions are audible: with them rounded too, clips
        # are up to 0.043 nats off, else 0.029. All of the next one is: 3 dB of noise under a tone.
        self.resblocks = nn.ModuleList(
            nn.ModuleList(
                ResidualBlock(width, kernel, dilations, config.slope, precise=level > 0)
                for kernel, dilations in kinds
            )
            for level, width in enumerate(widths[1:])
        )
        self.conv_post = Conv1d(widths[-1], 1, 7)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel)
        kinds = len(self.config.resblock_kernels)
        for upsample, resblocks in zip(self.upsampler, self.resblocks, strict=True):
            x = upsample(F.leaky_relu(x, self.config.slope))
            # multi-receptive field fusion: the mean over kernel sizes
            x = sum(block(x) for block in resblocks.children()) / kinds
        # The last activation has PyTorch's default slope of 0.01, in the original as here.
        return torch.tanh(self.conv_post(F.leaky_relu(x)))[..., 0]
