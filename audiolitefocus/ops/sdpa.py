"""Scaled dot-product attention: the one place where a kernel is chosen."""

import math

import torch
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
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=_factor(q, scale))


def joint_sdpa(
    q: Tensor,
    keys_values: tuple[Tensor, Tensor],
    more: tuple[Tensor, Tensor],
    gain: float | Tensor = 0.0,
    *,
    scale: float = 1.0,
) -> Tensor:
    """`sdpa` over two sets of keys as over one, with `gain` added to the scores of the second.

    Args:
        q: (b, h, n, d).
        keys_values: two of (b, h, m, d).
        more: two of (b, h, l, d).
        gain: a number, or broadcast to (b, h, n, l).

    Returns:
        (b, h, n, d).
    """
    if isinstance(gain, float):
        trained = torch.is_grad_enabled() and q.requires_grad
        if gain and q.device.type == "cpu" and not trained:
            return _merged(q, keys_values, more, gain, scale)
        bias = q.new_full((1, 1, 1, more[0].shape[2]), gain) if gain else None
    else:
        bias = gain.to(q.dtype)
    mask = None if bias is None else F.pad(bias, (keys_values[0].shape[2], 0))
    k, v = (_concatenated(x, y) for x, y in zip(keys_values, more, strict=True))
    return sdpa(q, k, v, mask, scale=scale)


def _merged(
    q: Tensor,
    keys_values: tuple[Tensor, Tensor],
    more: tuple[Tensor, Tensor],
    gain: float,
    scale: float,
) -> Tensor:
    """Two attentions, of which each counts for the sum of its exponentials.

    A mask costs this kernel a pass over the scores, up to 7 % of its time, and the copy of all keys
    into one tensor some more; merging costs up to 4 % (AMD EPYC, 80 s). The kernel's gradient
    leaves the sums out, so training takes the mask.
    """
    attend, factor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, _factor(q, scale)
    out, log_sum = attend(q, *keys_values, scale=factor)
    more_out, more_log_sum = attend(q, *more, scale=factor)  # b h n d, b h n
    share = torch.sigmoid(more_log_sum + gain - log_sum)
    return out.lerp_(more_out, share.to(out.dtype)[..., None])


def _concatenated(x: Tensor, y: Tensor) -> Tensor:
    """(b, h, m + l, d); as features lie in memory, tokens before heads, so that rows are copied."""
    return torch.cat([x.transpose(1, 2), y.transpose(1, 2)], dim=1).transpose(1, 2)


def _factor(q: Tensor, scale: float) -> float | None:
    return None if scale == 1.0 else scale / math.sqrt(q.shape[-1])
