"""Every attention, and every operation that CPUs do their own way, has its gradient."""

from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from audiolitefocus.attention.dense import dense_attention
from audiolitefocus.attention.plan import plan_attention, sample_indices
from audiolitefocus.attention.settings import parse_attention
from audiolitefocus.models.layers import FeedForward, ResnetBlock
from audiolitefocus.ops.cpu import Linear, map_tokens, upsample_conv
from tests.support.compare import seeded

ATTENTIONS = (
    "litefocus:0",
    "litefocus:0.5",
    "litefocus:0.5:weight=1",
    "litefocus:0.5:uniform=true:weight=0.5",
    "litefocus:0.5:duplicates=true",
    "litefocus:0.5:scale=1.2",
    "cross-frequency:0.5",
)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    x = torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))
    return x.requires_grad_()


def qkv() -> tuple[torch.Tensor, ...]:
    return tuple(numbers(1, 3, 4, 2, 2, seed=seed) for seed in range(3))


def planned(text: str, rows: int, length: int):
    """One attention's function, with indices."""
    settings = parse_attention(text)
    sampled = sample_indices(settings, rows, length, 1, seeded())
    return plan_attention(settings, sampled, 1, torch.device("cpu"))[0]


@pytest.mark.parametrize("text", ATTENTIONS)
def test_sparse_attention_has_its_gradient(text):
    assert gradcheck(planned(text, 3, 4), qkv())


def test_dense_attention_has_its_gradient():
    assert gradcheck(dense_attention, qkv())


def test_token_merging_has_its_gradient():
    """While no token changes its partner."""
    attend = planned("tome:0.5", 4, 4)
    inputs = tuple(numbers(1, 4, 4, 1, 2, seed=seed) for seed in range(3))
    assert gradcheck(attend, inputs, eps=1e-7, atol=1e-4)


def test_linear_layers_over_feature_maps_have_their_gradient():
    layer = Linear(3, 2).double()
    assert gradcheck(
        lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, (x,)),
        (numbers(1, 2, 3, 3), numbers(2, 3), numbers(2)),
    )


@pytest.mark.parametrize("size", [None, (3, 5)])
def test_upsampling_has_its_gradient(size):
    run = partial(upsample_conv, size=size)
    assert gradcheck(run, (numbers(1, 2, 2, 3), numbers(2, 2, 3, 3), numbers(2)))


def test_blocks_have_their_gradient():
    block, feed_forward = ResnetBlock(4, 4, 2).double(), FeedForward(2).double()
    assert gradcheck(block, numbers(1, 4, 2, 3))
    assert gradcheck(lambda x: map_tokens(feed_forward.gated, x), numbers(1, 2, 2, 2))
