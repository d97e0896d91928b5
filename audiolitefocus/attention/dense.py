"""Dense self-attention over a time-frequency grid.

Every variant is a pure function of queries, keys and values (b, f, t, h, d): batch, frequency rows,
time, heads, head width. Token (f, t) has number n = f * T + t of N = F * T.
"""

from einops import rearrange
from torch import Tensor

from audiolitefocus.ops.sdpa import sdpa


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every token attends to every token. All tensors, and the result, are (b, f, t, h, d); q, and
    so the result, may have some of the times only.
    """
    rows = q.shape[1]
    q, k, v = (rearrange(x, "b f t h d -> b h (f t) d") for x in (q, k, v))
    return rearrange(sdpa(q, k, v), "b h (f t) d -> b f t h d", f=rows)
