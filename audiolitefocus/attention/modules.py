"""Multi-head attention over feature maps (b, f, t, c): the modules that hold its weights."""

from einops import rearrange
from torch import Tensor, nn

from audiolitefocus.attention.dense import dense_attention
from audiolitefocus.attention.plan import Attend
from audiolitefocus.ops.cpu import Linear
from audiolitefocus.ops.sdpa import sdpa


class SelfAttention(nn.Module):
    """Multi-head self-attention, by whichever variant the caller hands down."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(channels, channels, bias=False)
        self.to_v = Linear(channels, channels, bias=False)
        self.to_out = Linear(channels, channels)

    def forward(self, x: Tensor, attend: Attend = dense_attention) -> Tensor:
        q, k, v = (
            rearrange(project(x), "b f t (h d) -> b f t h d", h=self.heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(rearrange(attend(q, k, v), "b f t h d -> b f t (h d)"))


class CrossAttention(nn.Module):
    """Multi-head attention to context tokens, whose keys and values are computed once a prompt."""

    def __init__(self, channels: int, context_dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(context_dim, channels, bias=False)
        self.to_v = Linear(context_dim, channels, bias=False)
        self.to_out = Linear(channels, channels)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(b, s, context_dim) -> keys and values, (b, h, s, d) each."""
        k, v = (
            rearrange(project(context), "b s (h d) -> b h s d", h=self.heads)
            for project in (self.to_k, self.to_v)
        )
        return k, v

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """mask: (b, 1, 1, s) bool, true for tokens to attend to; None for all."""
        q = rearrange(self.to_q(x), "b f t (h d) -> b h (f t) d", h=self.heads)
        out = sdpa(q, *keys_values, mask)
        return self.to_out(rearrange(out, "b h (f t) d -> b f t (h d)", f=x.shape[1]))
