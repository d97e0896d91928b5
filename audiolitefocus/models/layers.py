"""The building blocks of the networks: time embedding, residual block, resampling, GEGLU,
transformer.

Feature maps are b c f t in channels_last memory, which is the b f t c of a transformer's tokens: a
frequency row is one contiguous stretch of time, and nothing is copied on the way in or out.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from audiolitefocus.attention.litefocus import CrossAttention, SelfAttention
from audiolitefocus.ops.cpu import Linear


@dataclass(frozen=True)
class Signals:
    """What the blocks of one UNet evaluation look up, each at its own `index`.

    Attributes:
        time: for every residual block, the bias (b or 1, c, 1, 1) that tells it the diffusion time.
        keys_values: for every cross-attention, its keys and values.
        mask: (b, 1, 1, s) bool over the T5 tokens, or None.
        sampled: for every self-attention, the indices its variant attends by, or None.
    """

    time: list[Tensor]
    keys_values: list[tuple[Tensor, Tensor]]
    mask: Tensor | None
    sampled: list[Tensor | None]


def spread(x: Tensor, entries: int) -> Tensor:
    """(b, ...) -> (entries, ...), a multiple: what is the same under several conditions, and so has
    been computed once, repeated where they part. All clips under the first, then the second.
    """
    return x if len(x) == entries else torch.cat([x] * (entries // len(x)))


class TimeEmbedding(nn.Module):
    """Sinusoids of the timestep, cosines first as in the original, through a two-layer
    perceptron.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.linear_1 = nn.Linear(channels, 4 * channels)
        self.linear_2 = nn.Linear(4 * channels, 4 * channels)

    def forward(self, timestep: Tensor) -> Tensor:
        """(n,) timesteps -> (n, 4 channels)."""
        half = self.channels // 2
        exponents = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
        angles = timestep.float()[:, None] * torch.exp(-math.log(10000) * exponents)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.linear_2(F.silu(self.linear_1(sinusoids.to(self.linear_1.weight.dtype))))


class Conv2d(nn.Conv2d):
    """A convolution of feature maps b c f t. Its kernel is (out, in, t, f), as in checkpoints."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.mT, self.bias, self.stride, self.padding)

    def arrange(self) -> None:
        """Lay the weight out in memory so that the turned kernel is channels_last, not a copy."""
        self.weight.data = self.weight.data.mT.contiguous(memory_format=torch.channels_last).mT


def arrange(network: nn.Module) -> None:
    """Lay out the weights of all convolutions of a network for speed; shapes stay as they are."""
    for module in network.modules():
        arrange_own = getattr(module, "arrange", None)
        if arrange_own:
            arrange_own()


class ResnetBlock(nn.Module):
    """Two convolutions around the diffusion time, with a shortcut; without time channels, the VAE's
    block.
    """

    index: int  # of its entry in `Signals.time`

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        *,
        time_channels: int = 0,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        if time_channels:
            self.time_emb_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        changes = in_channels != out_channels
        self.conv_shortcut = Conv2d(in_channels, out_channels, 1) if changes else nn.Identity()

    def time_bias(self, time_emb: Tensor) -> Tensor:
        """(n, time channels) -> (n, c, 1, 1)."""
        return self.time_emb_proj(F.silu(time_emb))[:, :, None, None]

    def forward(self, x: Tensor, time_bias: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        if time_bias is not None:
            h = h + time_bias
        h = self.conv2(F.silu(self.norm2(h), inplace=True))
        return self.conv_shortcut(x) + h


class Downsample(nn.Module):
    """Halve both axes with a strided convolution. The VAE pads at the far ends only, the UNet on
    both sides.
    """

    def __init__(self, channels: int, *, pad_both: bool = True):
        super().__init__()
        self.pad = (0, 0, 0, 0) if pad_both else (0, 1, 0, 1)
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=1 if pad_both else 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pad))


class Upsample(nn.Module):
    """Nearest neighbours, then a convolution. Doubles both axes, or meets `size` where halving was
    not exact.

    CPUs double by one transposed convolution with 4 x 4 taps, the same in exact arithmetic. Nearest
    neighbours are copies, so that of the nine products of every result four are left once the taps
    on one pixel are added up (256 channels, 16000 -> 64000 pixels, bfloat16, two AMD EPYC cores:
    74 ms against 176 ms).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        doubled = (2 * x.shape[-2], 2 * x.shape[-1])
        if x.device.type == "cpu" and size in (None, doubled):
            return F.conv_transpose2d(x, self.taps(), self.conv.bias, stride=2, padding=1)
        return self.conv(F.interpolate(x, size=size or doubled, mode="nearest"))

    def taps(self) -> Tensor:
        """(in, out, 4, 4): sums over 2 x 2 windows of the kernel, which a transposed convolution
        turns round.
        """
        kernel = F.pad(self.conv.weight.mT.flip(-1, -2), (1, 1, 1, 1))
        return F.avg_pool2d(kernel, 2, stride=1, divisor_override=1).transpose(0, 1)


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020): one half of a wide projection gates the other; factor 4.

    CPUs work on some tokens at a time: the widest tensor of the network then stays in memory that
    is reused, and need not be fetched from the system anew (16000 tokens of 256 channels, float32,
    two AMD EPYC cores: 63 ms against 112 ms).
    """

    CPU_TOKENS = 2048

    def __init__(self, channels: int):
        super().__init__()
        self.proj_in = Linear(channels, 8 * channels)
        self.proj_out = Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return self.gated(x)
        tokens = x.reshape(1, 1, -1, x.shape[-1]).split(self.CPU_TOKENS, dim=2)
        return torch.cat([self.gated(some) for some in tokens], dim=2).view_as(x)

    def gated(self, x: Tensor) -> Tensor:
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(F.gelu(gate).mul_(value))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context (or self-attention again where there is none),
    feed-forward.
    """

    def __init__(self, channels: int, heads: int, context_dim: int | None):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = SelfAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2: SelfAttention | CrossAttention = (
            CrossAttention(channels, context_dim, heads)
            if context_dim
            else SelfAttention(channels, heads)
        )
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, signals: Signals, masked: bool) -> Tensor:
        x = x + self.attn1(self.norm1(x), signals.sampled[self.attn1.index])
        if isinstance(self.attn2, CrossAttention):
            keys_values = signals.keys_values[self.attn2.index]
            x, mask = spread(x, len(keys_values[0])), signals.mask if masked else None
            x = x + self.attn2(self.norm2(x), keys_values, mask)
        else:
            x = x + self.attn2(self.norm2(x), signals.sampled[self.attn2.index])
        return x + self.ff(self.norm3(x))


class Transformer2D(nn.Module):
    """Transformer layers over a feature map, all with one context: "self", "loa" or "t5"."""

    def __init__(
        self,
        channels: int,
        heads: int,
        groups: int,
        depth: int,
        context: str,
        context_dim: int | None,
    ):
        super().__init__()
        self.context = context
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(channels, channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, heads, context_dim) for _ in range(depth)
        )
        self.proj_out = Linear(channels, channels)

    def forward(self, x: Tensor, signals: Signals) -> Tensor:
        h = self.proj_in(rearrange(self.norm(x), "b c f t -> b f t c"))
        for block in self.blocks:
            h = block(h, signals, masked=self.context == "t5")
        return spread(x, len(h)) + rearrange(self.proj_out(h), "b f t c -> b c f t")
