"""What the denoiser is told of the text, and how such conditions are batched."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """What the denoiser is told of the text.

    Attributes:
        loa: (b, n, 768), the "language of audio" tokens of GPT-2.
        t5: (b, s, 1024), the encoding of T5. None for checkpoints without it (speech).
        t5_mask: (b, s), nonzero for tokens to attend to. None: all.
    """

    loa: Tensor
    t5: Tensor | None = None
    t5_mask: Tensor | None = None


def stack_conditions(conditions: list[Condition]) -> Condition:
    """Concatenate along the batch, with T5's tokens padded to the longest and masked."""
    longest = max(c.t5.shape[1] for c in conditions)
    short = [longest - c.t5.shape[1] for c in conditions]
    masks = [
        c.t5.new_ones(c.t5.shape[:2], dtype=torch.long) if c.t5_mask is None else c.t5_mask
        for c in conditions
    ]
    return Condition(
        loa=torch.cat([c.loa for c in conditions]),
        t5=torch.cat([F.pad(c.t5, (0, 0, 0, n)) for c, n in zip(conditions, short, strict=True)]),
        t5_mask=torch.cat([F.pad(mask, (0, n)) for mask, n in zip(masks, short, strict=True)]),
    )


def repeat_condition(condition: Condition, times: int) -> Condition:
    """Every entry `times` times, one after the other."""
    t5_mask = condition.t5_mask
    return Condition(
        loa=condition.loa.repeat_interleave(times, 0),
        t5=condition.t5.repeat_interleave(times, 0),
        t5_mask=None if t5_mask is None else t5_mask.repeat_interleave(times, 0),
    )
