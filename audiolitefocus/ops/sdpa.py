"""Scaled dot-product attention: the one place where a kernel is chosen."""

import math

import torch.nn.functional as F
from torch import Tensor


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float = 1.0
) -> Tensor:
    """softmax(scale q k^T / sqrt(d) + mask) v by PyTorch's fused kernels; no n x m is held.

    Args:
        q: (b, h, n, d).
        k, v: (b, h, m, d).
        mask: broadcast to (b, h, n, m). Bool: true for keys to attend to; or in the dtype of q,
            added to the scores. None: attend to all.

    Returns:
        (b, h, n, d).
    """
    factor = None if scale == 1.0 else scale / math.sqrt(q.shape[-1])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=factor)
