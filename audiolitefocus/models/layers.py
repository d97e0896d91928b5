"""The building blocks of UNet and VAE: time embedding, residual block, resampling, transformer.

Feature maps are b c f t in channels_last memory, which is the b f t c of a transformer's tokens: a
frequency row is one contiguous stretch of time, and nothing is copied on the way in or out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from audiolitefocus.attention.dense import dense_attention
from audiolitefocus.attention.modules import CrossAttention, SelfAttention
from audiolitefocus.attention.plan import Attend
from audiolitefocus.models.frames import ALL_FRAMES, Frames
from audiolitefocus.ops.cpu import Linear, map_tokens, upsample_conv


@dataclass(frozen=True)
class StepInputs:
    """What the blocks of one UNet evaluation look up, each under itself.

    Attributes:
        time_biases: the bias (b or 1, c, 1, 1) by which a residual block knows the diffusion time.
        cross_kv: keys and values of the context, of every cross-attention.
        t5_mask: (b, 1, 1, s) bool over the T5 tokens, or None.
        attend: the functions of the self-attentions that are not dense.
        reused: outputs of units that an earlier evaluation computed, or another device, taken in
            place of theirs.
        recorded: units whose outputs are wanted, and after the evaluation the outputs.
        frames: how what looks beyond one frame is computed.
    """

    time_biases: "Mapping[ResnetBlock, Tensor]"
    cross_kv: Mapping[CrossAttention, tuple[Tensor, Tensor]]
    t5_mask: Tensor | None
    attend: Mapping[SelfAttention, Attend]
    reused: Mapping[nn.Module, Tensor] = field(default_factory=dict)
    recorded: dict[nn.Module, Tensor | None] = field(default_factory=dict)
    frames: Frames = ALL_FRAMES

    def attention(self, module: SelfAttention) -> Attend:
        """The function that a self-attention runs."""
        return self.frames.attention(module, self.attend.get(module, dense_attention))

    def output_of(self, unit: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        """The output of a unit (`UNet.units`, `UNet.pieces`): an earlier one, or computed now."""
        if unit in self.reused:
            return self.reused[unit]
        output = compute()
        if unit in self.recorded:
            self.recorded[unit] = output
        return output


def repeat_for_guidance(x: Tensor, entries: int) -> Tensor:
    """(b, ...) -> (entries, ...): a batch the guidance branches shared so far, now that they part.

    All clips under the first condition, then all under the second.
    """
    return x if len(x) == entries else torch.cat([x] * (entries // len(x)))


class TimeEmbedding(nn.Module):
    """Sinusoids of the timestep, cosines first as in the original, through two linear layers."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels
        self.linear_1 = nn.Linear(channels, 4 * channels)
        self.linear_2 = nn.Linear(4 * channels, 4 * channels)

    def forward(self, timestep: Tensor) -> Tensor:
        """(n,) timesteps -> (n, 4 channels)."""
        # Vaswani et al. 2017, with wavelengths from 2 pi to 20000 pi
        half = self.channels // 2
        exponents = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
        angles = timestep.float()[:, None] * torch.exp(-math.log(10000) * exponents)
        sinusoids = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.linear_2(F.silu(self.linear_1(sinusoids.to(self.linear_1.weight.dtype))))


class Conv2d(nn.Conv2d):
    """A convolution of feature maps b c f t. Its kernel is (out, in, t, f), as in checkpoints."""

    bias: Tensor

    def forward(self, x: Tensor, padding: tuple[int, int] | None = None) -> Tensor:
        """`padding`: zeros at either end of f and t, in place of the convolution's own."""
        return F.conv2d(x, self.weight.mT, self.bias, self.stride, padding or self.padding)

    def to_channels_last(self) -> None:
        # so that the turned kernel is channels_last, and not a copy at every call
        turned = self.weight.data.mT.contiguous(memory_format=torch.channels_last)
        self.weight.data = turned.mT


def to_channels_last(network: nn.Module) -> None:
    """Lay out the kernels of all convolutions of a network for speed; their shapes stay."""
    for module in network.modules():
        if lay_out := getattr(module, "to_channels_last", None):
            lay_out()


class ResnetBlock(nn.Module):
    """Two convolutions and a shortcut, with a bias by diffusion time between them (UNet only)."""

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
        return self.conv_shortcut(x) + self.branch(x, time_bias)

    def branch(
        self, x: Tensor, time_bias: Tensor | None = None, frames: Frames = ALL_FRAMES
    ) -> Tensor:
        """What is added to the shortcut."""
        # SiLU overwrites what the norm has just made: these are the largest tensors of all
        h = frames.conv(self.conv1, F.silu(frames.norm(self.norm1, x), inplace=True))
        if time_bias is not None:
            h = h + time_bias
        return frames.conv(self.conv2, F.silu(frames.norm(self.norm2, h), inplace=True))


class Downsample(nn.Module):
    """Halve both axes. The VAE pads its strided convolution at the far ends, the UNet on all."""

    def __init__(self, channels: int, *, pad_both: bool = True):
        super().__init__()
        # t, then f; before, then after
        self.pad = (0, 0, 0, 0) if pad_both else (0, 1, 0, 1)
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=1 if pad_both else 0)

    def forward(self, x: Tensor, frames: Frames = ALL_FRAMES) -> Tensor:
        return frames.conv(self.conv, F.pad(x, self.pad))


class Upsample(nn.Module):
    """Double both axes, or meet `size` where halving was not exact: neighbours, then 3x3."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        # the kernel's axes are t, f and the map's f, t
        return upsample_conv(x, self.conv.weight.mT, self.conv.bias, size)


class FeedForward(nn.Module):
    """GEGLU (Shazeer 2020): one half of a wide projection gates the other; factor 4."""

    def __init__(self, channels: int):
        super().__init__()
        self.proj_in = Linear(channels, 8 * channels)
        self.proj_out = Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return map_tokens(self.gated, x)

    def gated(self, x: Tensor) -> Tensor:
        value, gate = self.proj_in(x).chunk(2, dim=-1)  # b f t 4c, both
        return self.proj_out(F.gelu(gate).mul_(value))


class TransformerBlock(nn.Module):
    """Self-attention, attention to the context (self-attention where it has none), feed-forward."""

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

    def forward(self, x: Tensor, inputs: StepInputs, masked: bool) -> Tensor:
        # to the clip itself
        x = x + self.attn1(self.norm1(x), inputs.attention(self.attn1))
        # to the text, from where on guidance needs the batch twice
        if isinstance(self.attn2, CrossAttention):
            keys_values, mask = inputs.cross_kv[self.attn2], inputs.t5_mask if masked else None
            x = repeat_for_guidance(x, len(keys_values[0]))
            x = x + self.attn2(self.norm2(x), keys_values, mask)
        else:
            x = x + self.attn2(self.norm2(x), inputs.attention(self.attn2))
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

    def forward(self, x: Tensor, inputs: StepInputs) -> Tensor:
        h = inputs.output_of(self, lambda: self.branch(x, inputs))
        return repeat_for_guidance(x, len(h)) + h

    def branch(self, x: Tensor, inputs: StepInputs) -> Tensor:
        """What is added to the input."""
        h = inputs.frames.norm(self.norm, x)
        h = self.proj_in(rearrange(h, "b c f t -> b f t c"))  # a view: no copy
        for block in self.blocks:
            h = block(h, inputs, masked=self.context == "t5")
        return rearrange(self.proj_out(h), "b f t c -> b c f t")
