"""LiteFocus: a token attends to its own frequency row and to a few sampled tokens of all.

Tan et al., "LiteFocus: Accelerated Diffusion Inference for Long Audio Synthesis", Interspeech 2024.
Shapes and token numbers as in `dense`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from audiolitefocus.attention.settings import LiteFocus
from audiolitefocus.ops.sdpa import sdpa


def litefocus_attention(
    q: Tensor, k: Tensor, v: Tensor, compensation: Tensor | None = None, *, duplicates: bool = False
) -> Tensor:
    """Attention of every token to its frequency row and to the compensation tokens.

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


def cross_frequency_attention(q: Tensor, k: Tensor, v: Tensor, compensation: Tensor) -> Tensor:
    """Attention of every token to the compensation keys C alone: the ablation of Table 2.

    Args and result as in `litefocus_attention`; the shape of `compensation` does not matter.
    """
    rows = q.shape[1]
    q, k, v = (rearrange(x, "b f t h d -> b h (f t) d") for x in (q, k, v))
    k, v = (x[:, :, compensation.flatten()] for x in (k, v))
    return rearrange(sdpa(q, k, v), "b h (f t) d -> b f t h d", f=rows)


def sample_compensation(
    settings: LiteFocus, rows: int, length: int, calls: int, generator: torch.Generator
) -> Tensor | None:
    """Compensation tokens for `calls` attentions over rows x length: (calls, m) or (calls, f, m).

    m is int(r * N) in all, or int(r * T) in each row; None if that is nothing. Without the query's
    own row to attend to, it is at least one.
    """
    share = settings.sparse_ratio if settings.cross_frequency else 0.0
    least = 0 if settings.same_frequency else 1
    if settings.uniform:
        order = torch.rand(calls, rows * length, generator=generator).argsort(-1)
        sampled = order[..., : max(least, int(share * rows * length))]
    else:
        order = torch.rand(calls, rows, length, generator=generator).argsort(-1)
        sampled = order[..., : max(least, int(share * length))]
        sampled = sampled + length * torch.arange(rows)[:, None]
    return sampled if sampled.numel() else None


def _appended(
    compensation: Tensor, rows: int, length: int, duplicates: bool
) -> tuple[Tensor, Tensor | None]:
    """Tokens that join each row's keys, (f, m); which keys count, (f, t + m) or None for all."""
    row = torch.arange(rows, device=compensation.device)[:, None]
    if duplicates:
        return compensation.flatten().expand(rows, -1), None
    if compensation.ndim == 2:  # the sampled tokens of all other rows
        others = (row + torch.arange(1, rows, device=compensation.device)) % rows
        return compensation[others].flatten(1), None
    index = compensation.expand(rows, -1)
    return index, F.pad(index // length != row, (length, 0), value=True)
