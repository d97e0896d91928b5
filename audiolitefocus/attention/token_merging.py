"""Token Merging, the baseline of the LiteFocus paper.

Bolya and Hoffman, "Token Merging for Fast Stable Diffusion", 2023. Shapes as in `dense`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from audiolitefocus.ops.sdpa import sdpa


def tome_attention(
    q: Tensor, k: Tensor, v: Tensor, destinations: Tensor, *, ratio: float = 0.5
) -> Tensor:
    """Dense attention of merged tokens: similar ones are averaged and share the result.

    Bipartite soft matching as in tomesd's defaults: one token of every 2 x 2 block is a
    destination, the `ratio` * N tokens most similar to one are merged into it. Projections are
    linear, so averaging queries, keys and values is averaging tokens. Similarity is the cosine of
    keys, as in ToMe for vision transformers; tomesd, which wraps whole blocks, takes it of the
    block's input.

    Args:
        q, k, v: (b, f, t, h, d).
        destinations: (f // 2, t // 2) of 0..3: which token of the block is the destination.

    Returns:
        (b, f, t, h, d).
    """
    rows, heads = q.shape[1], q.shape[3]
    q, k, v = (rearrange(x, "b f t h d -> b (f t) (h d)") for x in (q, k, v))
    slots, count = merge_slots(k, rows, destinations, ratio)  # b n
    index = slots[..., None].expand_as(q)  # b n c
    empty = q.new_zeros(q.shape[0], count, q.shape[2])
    q, k, v = (
        rearrange(
            empty.scatter_reduce(1, index, x, "mean", include_self=False),
            "b n (h d) -> b h n d",
            h=heads,
        )
        for x in (q, k, v)
    )
    out = sdpa(q, k, v)
    out = rearrange(out, "b h n d -> b n (h d)").gather(1, index)
    return rearrange(out, "b (f t) (h d) -> b f t h d", f=rows, h=heads)


def merge_slots(
    metric: Tensor, rows: int, destinations: Tensor, ratio: float
) -> tuple[Tensor, int]:
    """Bipartite soft matching: the merged sequence's entry of every token, (b, n), and its length.

    Args:
        metric: (b, n, c), what similarity is measured on.
    """
    # 1. Destinations, and all others: sources
    tokens = metric.shape[1]
    target = _destination_mask(rows, tokens // rows, destinations).flatten()
    order = target.argsort(descending=True, stable=True)
    targets, sources = order[: destinations.numel()], order[destinations.numel() :]
    # 2. The destination most similar to each source
    metric = F.normalize(metric.float(), dim=-1)
    towards = metric[:, targets].transpose(1, 2)  # b c targets
    # A slice of sources at a time, so that memory stays linear in the number of tokens.
    best = [(metric[:, part] @ towards).max(-1) for part in sources.split(1024)]
    similarity = torch.cat([b.values for b in best], 1)
    nearest = torch.cat([b.indices for b in best], 1)
    # 3. The most similar are merged; the merged sequence is kept sources, then destinations
    merged = min(sources.numel(), int(tokens * ratio))
    kept = sources.numel() - merged
    rank = similarity.argsort(1, descending=True).argsort(1)  # most similar first
    slot = torch.where(rank < merged, kept + nearest, rank - merged)
    slots = torch.empty_like(slot[:, :1].expand(-1, tokens)).contiguous()
    slots[:, targets] = kept + torch.arange(targets.numel(), device=slots.device)
    slots[:, sources] = slot
    return slots, kept + targets.numel()


def _destination_mask(rows: int, length: int, destinations: Tensor) -> Tensor:
    """(rows, length) bool, true at the one destination of every 2 x 2 block; odd ends have none."""
    blocks = F.one_hot(destinations, 4).bool()
    grid = rearrange(blocks, "f t (y x) -> (f y) (t x)", y=2)
    return F.pad(grid, (0, length - grid.shape[1], 0, rows - grid.shape[0]))


def sample_destinations(rows: int, length: int, calls: int, generator: torch.Generator) -> Tensor:
    """Destinations for `calls` attentions over rows x length: (calls, f // 2, t // 2) of 0..3."""
    return torch.randint(4, (calls, rows // 2, length // 2), generator=generator)
