"""Token Merging against tomesd: the same destinations, merges and attention."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from audiolitefocus.attention.dense import dense_attention
from audiolitefocus.attention.settings import TokenMerging
from audiolitefocus.attention.token_merging import (
    merge_slots,
    sample_destinations,
    tome_attention,
)

tomesd_merge = pytest.importorskip("tomesd.merge")

FLOAT32 = 1e-5  # float32 averages and softmax over some hundred tokens, summed in another order

many = settings(max_examples=60, deadline=None, derandomize=True)
shapes = st.tuples(
    st.integers(1, 3), st.integers(2, 9), st.integers(2, 20), st.integers(1, 3), st.integers(4, 16)
)


def tomesd(metric: torch.Tensor, rows: int, ratio: float, seed: int):
    """tomesd's merge and unmerge. It draws its destinations from a generator, as we do."""
    tokens = metric.shape[1]
    return tomesd_merge.bipartite_soft_matching_random2d(
        metric,
        w=tokens // rows,
        h=rows,
        sx=2,
        sy=2,
        r=int(tokens * ratio),
        generator=torch.Generator().manual_seed(seed),
    )


def destinations(rows: int, length: int, seed: int) -> torch.Tensor:
    return sample_destinations(rows, length, 1, torch.Generator().manual_seed(seed))[0]


@many
@given(shapes, st.floats(0, 0.99), st.integers(0, 2**31))
def test_the_same_tokens_are_merged(shape, ratio, seed):
    batch, rows, length, _, channels = shape
    generator = torch.Generator().manual_seed(seed)
    metric = torch.randn(batch, rows * length, channels, generator=generator)
    merge, unmerge = tomesd(metric, rows, ratio, seed)
    slots, count = merge_slots(metric, rows, destinations(rows, length, seed), ratio)

    assert merge(metric).shape[1] == count
    assert slots.min() == 0 and slots.max() == count - 1
    together = slots[:, :, None] == slots[:, None]  # b n n
    mean = together.float() / together.sum(-1, keepdim=True) @ metric
    assert_close(mean, unmerge(merge(metric)), rtol=0, atol=FLOAT32)


@many
@given(shapes, st.floats(0, 0.99), st.integers(0, 2**31))
def test_attention_over_merged_tokens(shape, ratio, seed):
    rows, length, heads = shape[1:4]
    q, k, v = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))
    tokens = [rearrange(x, "b f t h d -> b (f t) (h d)") for x in (q, k, v)]
    merge, unmerge = tomesd(tokens[1], rows, ratio, seed)
    merged = (rearrange(merge(x), "b n (h d) -> b h n d", h=heads) for x in tokens)
    out = rearrange(F.scaled_dot_product_attention(*merged), "b h n d -> b n (h d)")
    expected = rearrange(unmerge(out), "b (f t) (h d) -> b f t h d", f=rows, h=heads)
    ours = tome_attention(q, k, v, destinations(rows, length, seed), ratio=ratio)
    assert_close(ours, expected, rtol=0, atol=FLOAT32)


def test_slices_of_a_long_sequence_give_the_same():
    """More tokens than the slice of sources that is compared at a time."""
    metric, value = torch.randn(2, 1, 3200, 8, generator=torch.Generator().manual_seed(0))
    merge, unmerge = tomesd(metric, 8, 0.5, 0)
    slots, count = merge_slots(metric, 8, destinations(8, 400, 0), 0.5)
    assert count == 1600 == merge(metric).shape[1]
    index = slots[..., None].expand_as(value)
    mean = torch.zeros(1, count, 8).scatter_reduce(1, index, value, "mean", include_self=False)
    assert_close(mean.gather(1, index), unmerge(merge(value)), rtol=0, atol=FLOAT32)


def test_ratio_zero_is_dense():
    q, k, v = torch.randn(3, 2, 4, 10, 2, 8, generator=torch.Generator().manual_seed(0))
    out = tome_attention(q, k, v, destinations(4, 10, 0), ratio=0)
    assert_close(out, dense_attention(q, k, v), rtol=0, atol=FLOAT32)


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_ratios_out_of_range(ratio):
    with pytest.raises(ValueError, match="ratio"):
        TokenMerging(ratio=ratio)
