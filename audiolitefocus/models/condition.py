"""Text conditioning for the UNet, and its batching."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Text conditioning for the UNet.

    Attributes:
        loa: (b, n, 768), the "language of audio" tokens of GPT-2.
        t5: (b, s, 1024), the encoding of T5. None for checkpoints without it (speech).
        t5_mask: (b, s), nonzero for tokens to attend to. None: all.
    """

    loa: Tensor
    t5: Tensor | None = None
    t5_mask: Tensor | None = None

    def __len__(self) -> int:
        """Entries of the batch."""
        return len(self.loa)

    def to(self, device: torch.device | str) -> "Condition":
        """The same on a device."""
        t5, mask = (None if x is None else x.to(device) for x in (self.t5, self.t5_mask))
        return Condition(self.loa.to(device), t5, mask)

    def __getitem__(self, clips: slice) -> "Condition":
        """Some entries of the batch."""
        t5, mask = (None if x is None else x[clips] for x in (self.t5, self.t5_mask))
        return Condition(self.loa[clips], t5, mask)


def stack_conditions(conditions: list[Condition]) -> Condition:
    """Concatenate along the batch, with T5's tokens padded to the longest and masked."""
    loa = torch.cat([c.loa for c in conditions])
    tokens = [c.t5 for c in conditions if c.t5 is not None]
    if len(tokens) < len(conditions):
        return Condition(loa=loa)
    masks = [
        t5.new_ones(t5.shape[:2], dtype=torch.long) if c.t5_mask is None else c.t5_mask
        for c, t5 in zip(conditions, tokens, strict=True)
    ]
    longest = max(t5.shape[1] for t5 in tokens)
    return Condition(
        loa=loa,
        t5=torch.cat([F.pad(t5, (0, 0, 0, longest - t5.shape[1])) for t5 in tokens]),
        t5_mask=torch.cat([F.pad(mask, (0, longest - mask.shape[1])) for mask in masks]),
    )


def pad_tokens(condition: Condition, steps: tuple[int, ...] = (16, 32, 64, 128)) -> Condition:
    """Pad T5's tokens under the mask to the next of a few lengths, for graphs of few shapes."""
    if condition.t5 is None:
        return condition
    tokens = condition.t5.shape[1]
    more = next((step for step in steps if step >= tokens), tokens) - tokens
    mask = condition.t5_mask
    if mask is None:
        mask = condition.t5.new_ones(condition.t5.shape[:2], dtype=torch.long)
    return Condition(condition.loa, F.pad(condition.t5, (0, 0, 0, more)), F.pad(mask, (0, more)))


def repeat_condition(condition: Condition, times: int) -> Condition:
    """Every entry `times` times, one after the other."""
    parts = (condition.loa, condition.t5, condition.t5_mask)
    t5, mask = (None if x is None else x.repeat_interleave(times, 0) for x in parts[1:])
    return Condition(condition.loa.repeat_interleave(times, 0), t5, mask)
