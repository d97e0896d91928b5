"""LiteFocus: a token attends to its own frequency row and to a few sampled tokens of all.

Tan et al., "LiteFocus: Accelerated Diffusion Inference for Long Audio Synthesis", Interspeech 2024.
Shapes and token numbers as in `dense`.
"""

import math
from functools import partial

import torch
from einops import rearrange, repeat
from torch import Tensor

from audiolitefocus.attention.settings import LiteFocus
from audiolitefocus.ops.sdpa import joint_sdpa, sdpa


def litefocus_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    compensation: Tensor | None = None,
    *,
    duplicates: bool = False,
    weight: float = 0.0,
    scale: float = 1.0,
) -> Tensor:
    """Attention of every token to its frequency row and to the compensation tokens.

    Paper, equations (1)-(6): token i attends to F_i = S_i | C, the same-frequency tokens S_i of its
    row and the cross-frequency compensation C, a random sample of the N tokens. Frequency is folded
    into the batch, the compensation keys are appended to every row, and one dense call does the
    rest.

    With a weight, which the paper does not have, a sampled key stands for all those that it was
    drawn from. Of the keys O_i of other rows, C_i = C & O_i are sampled, and

        out_i = (sum_{S_i} e^{s_ij} v_j + w_i sum_{C_i} e^{s_ij} v_j)
                / (sum_{S_i} e^{s_ij} + w_i sum_{C_i} e^{s_ij}),   w_i = (|O_i| / |C_i|)^weight

    With weight 1, numerator and denominator have dense attention's as their expectations over
    samples, as every key of O_i is drawn with probability |C_i| / |O_i|. With weight 0 other rows
    count for less the fewer of their keys are drawn.

    Args:
        q, k, v: (b, f, t, h, d); q may have some of the times only.
        compensation: token numbers n = f * T + t. Either (m,), any tokens; or (f, m), entry [i]
            holding m tokens of row i: then every row gets as many keys as every other. None: S_i
            alone.
        duplicates: False: the union of the paper, each key once. True: the authors' code, where a
            sampled token of the query's own row enters the softmax twice.
        weight: of the sampled keys of other rows, from 0, the paper's, to 1. Not with `duplicates`.
        scale: factor of the scores, beside 1 / sqrt(d).

    Returns:
        (b, f, t, h, d), as q.
    """
    rows, length = q.shape[1], k.shape[2]
    fold = partial(rearrange, pattern="b f t h d -> (b f) h t d")
    if compensation is None:
        out = sdpa(fold(q), fold(k), fold(v), scale=scale)
    else:
        index, gain = _appended(compensation, rows, length, duplicates, weight)  # f m
        sampled = tuple(fold(x.flatten(1, 2)[:, index]) for x in (k, v))
        if isinstance(gain, Tensor):
            gain = repeat(gain, "f m -> (b f) 1 1 m", b=q.shape[0])
        out = joint_sdpa(fold(q), (fold(k), fold(v)), sampled, gain, scale=scale)
    return rearrange(out, "(b f) h t d -> b f t h d", f=rows)


def cross_frequency_attention(
    q: Tensor, k: Tensor, v: Tensor, compensation: Tensor, *, scale: float = 1.0
) -> Tensor:
    """Attention of every token to the compensation keys C alone: the ablation of Table 2.

    Args and result as in `litefocus_attention`; the shape of `compensation` does not matter.
    """
    rows = q.shape[1]
    q, k, v = (rearrange(x, "b f t h d -> b h (f t) d") for x in (q, k, v))
    k, v = (x[:, :, compensation.flatten()] for x in (k, v))
    return rearrange(sdpa(q, k, v, scale=scale), "b h (f t) d -> b f t h d", f=rows)


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
        chance = torch.rand(calls, rows * length, generator=generator)
        sampled = _lowest(chance, max(least, int(share * rows * length)))
    else:
        chance = torch.rand(calls, rows, length, generator=generator)
        sampled = _lowest(chance, max(least, int(share * length)))
        sampled = sampled + length * torch.arange(rows)[:, None]
    return sampled if sampled.numel() else None


def _lowest(values: Tensor, count: int) -> Tensor:
    """Where the lowest of the last dimension are, in rising order: (..., count)."""
    return values.topk(count, largest=False).indices  # a quarter of a full sort's time


def _appended(
    compensation: Tensor, rows: int, length: int, duplicates: bool, weight: float
) -> tuple[Tensor, float | Tensor]:
    """Tokens that join each row's keys, (f, m), and what is added to their scores.

    That is weight * log(|O| / |C|), one number where every row gets as many, else (f, m), with -inf
    for tokens of the row itself, which are among its keys already.
    """
    row = torch.arange(rows, device=compensation.device)[:, None]
    others = (rows - 1) * length
    if duplicates:
        return compensation.flatten().expand(rows, -1), 0.0
    if compensation.ndim == 2:  # the sampled tokens of all other rows
        following = (row + torch.arange(1, rows, device=compensation.device)) % rows
        index = compensation[following].flatten(1)
        return index, weight * math.log(others / index.shape[1]) if others else 0.0
    # those of a sample that are in other rows: not as many for every row
    index = compensation.expand(rows, -1)
    elsewhere = index // length != row
    count = elsewhere.sum(1, keepdim=True).clamp(min=1)
    return index, torch.where(elsewhere, weight * (max(others, 1) / count).log(), -math.inf)
