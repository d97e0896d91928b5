"""Attention with its weights written out, as before fused kernels: what LiteFocus is timed with.

Shares no code with the package. Tensors are (b, f, t, h, d) and a token has number n = f * T + t,
as in `audiolitefocus.attention`.
"""

import torch
from einops import rearrange
from torch import Tensor

TIME_MAJOR = "b f t h d -> b h (t f) d"


def naive_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dense attention with its N x N weights written out, as before fused kernels."""
    rows, scale = q.shape[1], q.shape[-1] ** -0.5
    q, k, v = (rearrange(x, TIME_MAJOR) for x in (q, k, v))
    weights = (torch.einsum("bhid,bhjd->bhij", q, k) * scale).softmax(-1)
    return rearrange(
        torch.einsum("bhij,bhjd->bhid", weights, v), "b h (t f) d -> b f t h d", f=rows
    )


def authors_attention(q: Tensor, k: Tensor, v: Tensor, sampled: Tensor) -> Tensor:
    """LiteFocus as its authors' code computes it, for the `sampled` tokens n = f * T + t.

    Their tokens are time-major, t * F + f. Scores against the row and against the sample are
    written out side by side, share one softmax, and are then split again to weigh two sets of
    values. Nothing notices a sampled key that is also in the row.
    """
    rows, length = q.shape[1:3]
    sampled = sampled.flatten() % length * rows + sampled.flatten() // length
    q, k, v = (rearrange(x, TIME_MAJOR) * s for x, s in ((q, q.shape[-1] ** -0.5), (k, 1), (v, 1)))
    k_sample, v_sample = k[:, :, sampled], v[:, :, sampled]
    q, k, v = (rearrange(x, "b h (t f) d -> b h f t d", f=rows) for x in (q, k, v))
    in_row = torch.einsum("bhftd,bhfsd->bhfts", q, k)
    in_sample = torch.einsum("bhftd,bhmd->bhftm", q, k_sample)
    weights = torch.cat([in_row, in_sample], -1).softmax(-1)
    in_row, in_sample = weights.split([length, sampled.numel()], -1)
    out = torch.einsum("bhfts,bhfsd->bhftd", in_row, v)
    out = out + torch.einsum("bhftm,bhmd->bhftd", in_sample, v_sample)
    return rearrange(out, "b h f t d -> b f t h d")
