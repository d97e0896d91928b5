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


def plan_attention(
    settings: LiteFocus | TokenMerging,
    rows: int,
    length: int,
    calls: int,
    generator: torch.Generator,
    device: torch.device,
) -> list[Attend]:
    """Functions for `calls` self-attentions over a grid of rows x length, each with fresh indices.

    Indices are drawn on the CPU by `generator` and are the same for all clips and for both halves
    of the guidance.
    """
    if isinstance(settings, TokenMerging):
        drawn = to_device(sample_destinations(rows, length, calls, generator), device)
        return [partial(tome_attention, destinations=d, ratio=settings.ratio) for d in drawn]
    sampled = sample_compensation(settings, rows, length, calls, generator)
    if sampled is None:
        return [partial(litefocus_attention, scale=settings.scale)] * calls
    sampled = to_device(sampled, device)
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
