"""Comparing networks and clips that are given the same numbers."""

import torch
from torch import Tensor

from audiolitefocus.models.unet import Condition

# Norm of the difference over the norm, float32: the same sums in another order.
RELATIVE = 1e-5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    error = (found - expected).norm() / expected.norm()
    torch.testing.assert_close(error.item(), 0.0, atol=RELATIVE, rtol=0)


@torch.no_grad()
def compare_unets(theirs, network, *, batch: int, length: int, rows: int, tokens: int) -> None:
    """One evaluation of both, with T5's tokens masked differently in every clip."""
    generator = torch.Generator().manual_seed(2)
    config = network.config
    latents = torch.randn(batch, config.in_channels, length, rows, generator=generator)
    timestep = torch.tensor(981)
    loa = torch.randn(batch, 8, config.loa_dim, generator=generator)
    t5 = mask = None
    if "t5" in config.contexts:
        t5 = torch.randn(batch, tokens, config.t5_dim, generator=generator)
        mask = (torch.arange(tokens) < tokens - torch.arange(batch)[:, None] * 2).long()
    expected = theirs(
        latents,
        timestep,
        encoder_hidden_states=loa,
        encoder_hidden_states_1=t5,
        encoder_attention_mask_1=mask,
    ).sample
    assert_same(network(latents, timestep, Condition(loa=loa, t5=t5, t5_mask=mask)), expected)
