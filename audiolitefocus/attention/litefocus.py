"""Self-attention over a time-frequency grid, dense and LiteFocus; and the modules that use it.

Every variant is a pure function of queries, keys and values (b, f, t, h, d): batch, frequency rows,
time, heads, head width. Token (f, t) has number n = f * T + t of N = F * T.
LiteFocus: Tan et al., "LiteFocus: Accelerated Diffusion Inference for Long Audio Synthesis",
Interspeech 2024. The paper's baseline is in `token_merging`. Which variant runs is chosen by
`UNet.use_attention` alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from audiolitefocus.ops.cpu import Linear
from audiolitefocus.ops.sdpa import sdpa

# Limits of the length rule in `LiteFocus.for_duration`: in trained lengths, and in seconds.
FULL_RATIO_LENGTHS, LEVEL_2_SECONDS, LEVEL_3_SECONDS = 8, 40.96, 163.84


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every token attends to every token. All tensors, and the result, are (b, f, t, h, d)."""
    rows = q.shape[1]
    q, k, v = (rearrange(x, "b f t h d -> b h (f t) d") for x in (q, k, v))
    return rearrange(sdpa(q, k, v), "b h (f t) d -> b f t h d", f=rows)


def litefocus_attention(
    q: Tensor, k: Tensor, v: Tensor, compensation: Tensor | None = None, *, duplicates: bool = False
) -> Tensor:
    """LiteFocus: a token attends to its own frequency row and to a few sampled tokens of the whole
    grid.

    Paper, equations (1)-(6): token i attends to F_i = S_i | C, the same-frequency tokens S_i of its
    row and the cross-frequency compensation C, a random sample of the N tokens. Frequency is folded
    into the batch, the compensation keys are appended to every row, and one dense call does the
    rest.

    Args:
        q, k, v: (b, f, t, h, d).
        compensation: token numbers n = f * T + t. Either (m,), any tokens; or (f, m), entry [i]
            holding m tokens of row i: then every row gets as many keys as every other, and no mask
            is needed. None: S_i alone.
        duplicates: False: the union of the paper, each key once. True: the authors' code, where a
            sampled token of the query's own row enters the softmax twice.

    Returns:
        (b, f, t, h, d).
    """
    rows, mask = q.shape[1], None
    if compensation is not None:
        index, mask = _appended(compensation, rows, q.shape[2], duplicates)  # f m
        k, v = (torch.cat([x, x.flatten(1, 2)[:, index]], dim=2) for x in (k, v))
        if mask is not None:
            mask = mask.expand(q.shape[0], rows, -1).flatten(0, 1)[:, None, None]  # (b f) 1 1 keys
    q, k, v = (rearrange(x, "b f t h d -> (b f) h t d") for x in (q, k, v))
    out = sdpa(q, k, v, mask)
    return rearrange(out, "(b f) h t d -> b f t h d", f=rows)


def _appended(
    compensation: Tensor, rows: int, length: int, duplicates: bool
) -> tuple[Tensor, Tensor | None]:
    """Which tokens join each row's keys, (f, m), and which of the row's keys count, (f, t + m) or
    None for all.
    """
    row = torch.arange(rows, device=compensation.device)[:, None]
    if duplicates:
        return compensation.flatten().expand(rows, -1), None
    if compensation.ndim == 2:  # the sampled tokens of all other rows
        others = (row + torch.arange(1, rows, device=compensation.device)) % rows
        return compensation[others].flatten(1), None
    index = compensation.expand(rows, -1)
    return index, F.pad(index // length != row, (length, 0), value=True)


def cross_frequency_attention(q: Tensor, k: Tensor, v: Tensor, compensation: Tensor) -> Tensor:
    """The ablation of the paper's Table 2: every token attends to the compensation keys C alone.

    Args and result as in `litefocus_attention`; the shape of `compensation` does not matter.
    """
    rows = q.shape[1]
    q, k, v = (rearrange(x, "b f t h d -> b h (f t) d") for x in (q, k, v))
    k, v = (x[:, :, compensation.flatten()] for x in (k, v))
    return rearrange(sdpa(q, k, v), "b h (f t) d -> b f t h d", f=rows)


Attend = Callable[..., Tensor]  # (q, k, v) -> out, or (q, k, v, sampled) -> out


@dataclass(frozen=True)
class LiteFocus:
    """Which self-attentions are sparse, and how.

    Attributes:
        same_frequency: attend to the query's own frequency row.
        cross_frequency: attend to sampled compensation keys.
        sparse_ratio: the share r of all N tokens that is sampled; 0 is no compensation, 1 every
            token.
        levels: UNet levels, going down and up; the middle goes with the deepest. (1,) is the
            paper's choice.
        seed: of the sampling. Indices are fresh in every step and every attention, the same for all
            clips and for both halves of the guidance, and the global random state is not touched.
        uniform: sample all N tokens alike, as equation (6) of the paper; otherwise the same number
            from every row, which needs no mask and is a tenth faster, twice as fast where `flash`
            has a kernel.
        duplicates: count a sampled key of the query's own row twice, as the authors' code does.
    """

    same_frequency: bool = True
    cross_frequency: bool = True
    sparse_ratio: float = 0.1
    levels: tuple[int, ...] = (1,)
    seed: int = 0
    uniform: bool = False
    duplicates: bool = False

    def __post_init__(self):
        if not (self.same_frequency or self.cross_frequency):
            raise ValueError(
                "same_frequency and cross_frequency are both off: nothing to attend to"
            )
        if not 0 <= self.sparse_ratio <= 1:
            raise ValueError(f"sparse_ratio {self.sparse_ratio!r}: must lie in [0, 1]")
        if not self.same_frequency and self.sparse_ratio == 0:
            raise ValueError("sparse_ratio 0 without same_frequency: nothing to attend to")

    @classmethod
    def for_duration(
        cls, seconds: float, *, trained_seconds: float = 10.24, seed: int = 0
    ) -> "LiteFocus":
        """The length rule behind `attention="auto"` for clips beyond the trained length.

        The ratio is the paper's 0.1 as far as it has been measured, up to eight trained lengths
        (82 s), and falls as 1 / length beyond. At 80 s the paper has 0.1 better than dense by every
        measure (Table 1), and FAD a little better without compensation (6.24 against 6.56, Table
        3); but on the demo model at eight lengths KL is worse than dense by 0.46 nats at a ratio of
        0.05 and by 0.53 at 0, and not at 0.1 (weights/demo/README.md).

        A level joins where its dense attention takes longer than the rest of its transformers,
        which the number of tokens over channels decides: level 1 at once, level 2 beyond 41 s
        (45 ms against 27 ms a layer there, PyTorch's attention in bfloat16 on two CPU cores),
        level 3 and the middle beyond 164 s (72 ms against 40 ms). On the demo model that costs
        nothing that is measured.
        """
        if not seconds > 0:
            raise ValueError(f"seconds {seconds!r}: must be positive")
        ratio = 0.1 * min(1.0, FULL_RATIO_LENGTHS * trained_seconds / seconds)
        deepest = 1 + (seconds > LEVEL_2_SECONDS) + (seconds > LEVEL_3_SECONDS)
        return cls(sparse_ratio=ratio, levels=tuple(range(1, deepest + 1)), seed=seed)

    @property
    def attend(self) -> Attend:
        if not self.same_frequency:
            return cross_frequency_attention
        return partial(litefocus_attention, duplicates=self.duplicates)

    def draw(self, rows: int, length: int, calls: int, generator: torch.Generator) -> Tensor | None:
        """Compensation indices for `calls` attentions over a grid of rows x length: (calls, m) or
        (calls, f, m).

        m is int(r * N) in all, or int(r * T) in each row; None if that is nothing. Without the
        query's own row to attend to, it is at least one.
        """
        share = self.sparse_ratio if self.cross_frequency else 0.0
        least = 0 if self.same_frequency else 1
        if self.uniform:
            noise = torch.rand(calls, rows * length, generator=generator)
            sampled = noise.argsort(-1)[..., : max(least, int(share * rows * length))]
        else:
            noise = torch.rand(calls, rows, length, generator=generator)
            sampled = noise.argsort(-1)[..., : max(least, int(share * length))]
            sampled = sampled + length * torch.arange(rows)[:, None]
        return sampled if sampled.numel() else None


class SelfAttention(nn.Module):
    """Multi-head self-attention over (b, f, t, c) by whichever variant `UNet.use_attention` has
    set.
    """

    index: int  # of its entry in `Signals.sampled`

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q = Linear(channels, channels, bias=False)
        self.to_k = Linear(channels, channels, bias=False)
        self.to_v = Linear(channels, channels, bias=False)
        self.to_out = Linear(channels, channels)
        self.attend: Attend = dense_attention

    def forward(self, x: Tensor, sampled: Tensor | None = None) -> Tensor:
        q, k, v = (
            rearrange(project(x), "b f t (h d) -> b f t h d", h=self.heads)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        out = self.attend(q, k, v) if sampled is None else self.attend(q, k, v, sampled)
        return self.to_out(rearrange(out, "b f t h d -> b f t (h d)"))


class CrossAttention(nn.Module):
    """Multi-head attention from (b, f, t, c) to context tokens whose keys and values are computed
    once a prompt.
    """

    index: int  # of its entry in `Signals.keys_values`

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
