"""Scaled dot-product attention: the one place where a kernel is chosen."""

import torch.nn.functional as F
from torch import Tensor


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v by PyTorch's fused kernels; nothing of size n x m is held.

    Args:
        q: (b, h, n, d).
        k, v: (b, h, m, d).
        mask: bool, broadcast to (b, h, n, m), true for keys to attend to; None for all.

    Returns:
        (b, h, n, d).
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
