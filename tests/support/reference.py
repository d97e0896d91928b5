"""Slow attention, written from the definitions: what the package is checked against.

Shares no code with the package. All of it holds N x N weights. Tensors are (b, f, t, h, d) and a
token has number n = f * T + t, as in `audiolitefocus.attention`.
"""

import torch
from einops import rearrange
from torch import Tensor

FREQUENCY_MAJOR = "b f t h d -> b h (f t) d"


def multiplicity(
    rows: int,
    length: int,
    sampled: Tensor | None,
    *,
    same_frequency: bool,
    duplicates: bool,
    weight: float = 0.0,
) -> Tensor:
    """How often every key enters the softmax of every query, (n, n).

    Paper, equations (1)-(6): once if it lies in the query's row or in the sample. With `duplicates`
    a key counts once for its row and once for the sample. With `weight`, a sampled key of another
    row counts (keys of other rows / those that are sampled) ** weight times.
    """
    tokens = rows * length
    row = torch.arange(tokens) // length
    in_row = (row[:, None] == row).double() * same_frequency
    in_sample = torch.zeros(tokens, dtype=torch.float64)
    if sampled is not None:
        in_sample = torch.bincount(sampled.flatten().cpu(), minlength=tokens).double()
    count = in_row + in_sample
    if duplicates:
        return count
    elsewhere = in_sample * (row[:, None] != row)
    share = elsewhere.sum(1, keepdim=True).clamp(min=1) / max(tokens - length, 1)
    return torch.where(elsewhere > 0, share**-weight, count.clamp(max=1))


def brute_force_attention(
    q: Tensor, k: Tensor, v: Tensor, count: Tensor, scale: float = 1.0
) -> Tensor:
    """Softmax over all N keys in float64, where key j enters the sum of query i `count[i, j]`
    times.
    """
    rows = q.shape[1]
    q, k, v = (rearrange(x.double(), FREQUENCY_MAJOR) for x in (q, k, v))
    scores = scale * q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5 + count.log().to(q.device)
    return rearrange(scores.softmax(-1) @ v, "b h (f t) d -> b f t h d", f=rows)
