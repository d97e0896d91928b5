"""Which function each self-attention runs in one step, with which indices."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from audiolitefocus.attention.litefocus import (
    cross_frequency_attention,
    litefocus_attention,
    sample_compensation,
)
from audiolitefocus.attention.settings import LiteFocus, TokenMerging
from audiolitefocus.attention.token_merging import sample_destinations, tome_attention
from audiolitefocus.ops.transfer import to_device

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v -> out, (b, f, t, h, d)


def sample_indices(
    settings: LiteFocus | TokenMerging,
    rows: int,
    length: int,
    calls: int,
    generator: torch.Generator,
) -> Tensor | None:
    """Fresh indices of `calls` self-attentions over a grid of rows x length; None for no indices.

    They are drawn on the CPU, and are the same for all clips and for both halves of the guidance.
    """
    if isinstance(settings, TokenMerging):
        return sample_destinations(rows, length, calls, generator)
    return sample_compensation(settings, rows, length, calls, generator)


def plan_attention(
    settings: LiteFocus | TokenMerging, sampled: Tensor | None, calls: int, device: torch.device
) -> list[Attend]:
    """Functions for `calls` self-attentions on a device, with the indices of `sample_indices`."""
    if sampled is None:
        return [partial(litefocus_attention, scale=settings.scale)] * calls  # type: ignore[union-attr]
    sampled = to_device(sampled, device)
    if isinstance(settings, TokenMerging):
        return [partial(tome_attention, destinations=d, ratio=settings.ratio) for d in sampled]
    if not settings.same_frequency:
        attend = partial(cross_frequency_attention, scale=settings.scale)
    else:
        attend = partial(
            litefocus_attention,
            duplicates=settings.duplicates,
            weight=settings.weight,
            scale=settings.scale,
        )
    return [partial(attend, compensation=tokens) for tokens in sampled]
