"""LiteFocus and dense attention against brute force, the authors' algorithm and each other."""

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from audiolitefocus.attention.dense import dense_attention
from audiolitefocus.attention.litefocus import (
    cross_frequency_attention,
    litefocus_attention,
    sample_compensation,
)
from audiolitefocus.attention.plan import Attend, plan_attention, sample_indices
from audiolitefocus.attention.settings import LiteFocus, TokenMerging
from scripts.benchmark.written_out import authors_attention, naive_attention
from tests.support.compare import seeded
from tests.support.reference import FREQUENCY_MAJOR, brute_force_attention, multiplicity

# Share of the largest output. float32 rounds at 6e-8; a softmax over some hundred keys adds a few.
FLOAT32 = 1e-5
# Two in a million independent means lie further than this many standard errors from the truth.
DEVIATIONS = 4.75
# A half-precision variant may be off by twice what plain attention of that precision is off by.
HALF = 2.0

many = settings(max_examples=60, deadline=None, derandomize=True)
shapes = st.tuples(
    st.integers(1, 3), st.integers(1, 8), st.integers(1, 20), st.integers(1, 3), st.integers(1, 16)
)
ratios = st.one_of(st.sampled_from([0.0, 0.1, 1.0]), st.floats(0, 1))
weights = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
scales = st.sampled_from([1.0, 0.8, 1.2])
seeds = st.integers(0, 2**31)


def qkv(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32):
    """Queries wide enough that some softmax weights are near 1 and some near 0."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, *shape, generator=generator)
    return (3 * q).to(dtype), k.to(dtype), v.to(dtype)


def draw(lite: LiteFocus, shape: tuple[int, ...], seed: int = 0):
    """The indices of one call, or None."""
    generator = torch.Generator().manual_seed(seed)
    drawn = sample_compensation(lite, shape[1], shape[2], 1, generator)
    return None if drawn is None else drawn[0]


def planned(variant: LiteFocus | TokenMerging, shape: tuple[int, ...], seed: int = 0) -> Attend:
    """The function of one call, with the indices of `draw`."""
    generator = torch.Generator().manual_seed(seed)
    sampled = sample_indices(variant, shape[1], shape[2], 1, generator)
    return plan_attention(variant, sampled, 1, torch.device("cpu"))[0]


def assert_near(out: Tensor, expected: Tensor, tolerance: float = FLOAT32):
    largest = float(expected.abs().max())
    assert_close(out.double(), expected.double(), rtol=0, atol=tolerance * largest)


@many
@given(shapes, ratios, seeds, st.booleans(), st.one_of(weights, st.just("duplicates")), scales)
def test_litefocus_is_a_masked_softmax_over_all_keys(shape, ratio, seed, uniform, weight, scale):
    q, k, v = qkv(shape, seed)
    counted = {"duplicates": True} if weight == "duplicates" else {"weight": weight}
    lite = LiteFocus(sparse_ratio=ratio, uniform=uniform, scale=scale, **counted)
    sampled = draw(lite, shape, seed)
    counted = {"duplicates": False, **counted}
    count = multiplicity(*shape[1:3], sampled, same_frequency=True, **counted)
    out = planned(lite, shape, seed)(q, k, v)
    assert_near(out, brute_force_attention(q, k, v, count, scale))


@many
@given(shapes, ratios, seeds, st.booleans())
def test_cross_frequency_attends_to_the_sample_alone(shape, ratio, seed, uniform):
    q, k, v = qkv(shape, seed)
    lite = LiteFocus(same_frequency=False, sparse_ratio=max(ratio, 1e-9), uniform=uniform)
    sampled = draw(lite, shape, seed)
    count = multiplicity(*shape[1:3], sampled, same_frequency=False, duplicates=False)
    out = planned(lite, shape, seed)(q, k, v)
    assert_near(out, brute_force_attention(q, k, v, count))


@many
@given(shapes, st.floats(0.05, 1), seeds, st.booleans())
def test_duplicates_are_the_authors_algorithm(shape, ratio, seed, uniform):
    q, k, v = qkv(shape, seed)
    lite = LiteFocus(sparse_ratio=ratio, uniform=uniform, duplicates=True)
    sampled = draw(lite, shape, seed)
    if sampled is not None:
        assert_near(planned(lite, shape, seed)(q, k, v), authors_attention(q, k, v, sampled))


@many
@given(shapes, seeds)
def test_dense_is_the_naive_softmax(shape, seed):
    q, k, v = qkv(shape, seed)
    everything = torch.ones(shape[1] * shape[2], shape[1] * shape[2])
    assert_near(dense_attention(q, k, v), brute_force_attention(q, k, v, everything))
    assert_near(naive_attention(q, k, v), brute_force_attention(q, k, v, everything))


@many
@given(shapes, seeds, st.booleans(), weights)
def test_ratio_one_is_dense(shape, seed, uniform, weight):
    q, k, v = qkv(shape, seed)
    everything = draw(LiteFocus(sparse_ratio=1.0, uniform=uniform), shape, seed)
    dense = dense_attention(q, k, v)
    assert_near(litefocus_attention(q, k, v, everything, weight=weight), dense)
    assert_near(cross_frequency_attention(q, k, v, everything), dense)


@pytest.mark.parametrize("uniform", [False, True])
def test_with_weight_1_numerator_and_denominator_are_unbiased(uniform):
    """Over samples, those of the softmax have dense attention's as their means.

    With a unit matrix as values, the result is the softmax, (n, n). Its own key enters that of a
    query with weight one, whatever is sampled: so e ^ s_ii over its share is the denominator.
    """
    rows, length, draws = 3, 6, 4000
    shape = (1, rows, length, 1, rows * length)
    q, k = torch.randn(2, *shape, generator=seeded(), dtype=torch.float64)
    v = torch.eye(rows * length, dtype=torch.float64).view(shape)
    scores = torch.einsum("bfthd,bxyhd->ftxy", q, k).flatten(2).flatten(0, 1) / shape[-1] ** 0.5
    dense = scores.exp()  # n n: numerators of v = 1 at one key; their sum is the denominator
    lite = LiteFocus(sparse_ratio=0.5, uniform=uniform, weight=1.0)
    sampled = sample_compensation(lite, rows, length, draws, seeded(1))
    found = []
    for tokens in sampled:
        out = litefocus_attention(q, k, v, tokens, weight=1.0).view(rows * length, -1)
        found.append(out / out.diagonal()[:, None] * dense.diagonal()[:, None])
    numerators = torch.stack(found)
    denominators = numerators.sum(-1)
    for estimate, truth in ((numerators, dense), (denominators, dense.sum(-1))):
        error = (estimate.mean(0) - truth) / (estimate.std(0) / draws**0.5).clamp(min=1e-12)
        assert error.abs().max() < DEVIATIONS
    # without the weight, other rows count for half of what they do
    bare = litefocus_attention(q, k, v, sampled[0]).view(rows * length, -1)
    bare = bare / bare.diagonal()[:, None] * dense.diagonal()[:, None]
    assert (bare.sum(-1) < 0.8 * dense.sum(-1)).any()


@pytest.mark.parametrize("uniform", [False, True])
def test_gradients_of_weighted_attention(uniform):
    """Those of the softmax written out."""
    shape = (2, 4, 12, 2, 8)
    inputs = [x.double().requires_grad_() for x in qkv(shape)]
    sampled = draw(LiteFocus(sparse_ratio=0.3, uniform=uniform), shape)
    count = multiplicity(4, 12, sampled, same_frequency=True, duplicates=False, weight=1.0)
    towards = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    expected = torch.autograd.grad((brute_force_attention(*inputs, count) * towards).sum(), inputs)
    out = litefocus_attention(*inputs, sampled, weight=1.0)
    for found, truth in zip(
        torch.autograd.grad((out * towards).sum(), inputs), expected, strict=True
    ):
        assert_near(found, truth)


def test_ratio_one_with_duplicates_is_not_dense():
    q, k, v = qkv(shape := (2, 4, 12, 2, 8))
    out = litefocus_attention(q, k, v, draw(LiteFocus(sparse_ratio=1.0), shape), duplicates=True)
    assert (out - dense_attention(q, k, v)).abs().max() > 0.01


@pytest.mark.parametrize("off", [{"sparse_ratio": 0.0}, {"cross_frequency": False}])
@pytest.mark.parametrize("uniform", [False, True])
def test_without_compensation_every_row_attends_to_itself(off, uniform):
    q, k, v = qkv(shape := (2, 3, 10, 2, 8))
    lite = LiteFocus(uniform=uniform, **off)
    assert draw(lite, shape) is None
    rows = [dense_attention(*(x[:, i : i + 1] for x in (q, k, v))) for i in range(3)]
    assert_near(planned(lite, shape)(q, k, v), torch.cat(rows, dim=1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_half_precision_is_as_good_as_plain_attention(dtype, uniform, duplicates, ratio, weight):
    q, k, v = qkv(shape := (2, 8, 40, 4, 32), dtype=dtype)
    sampled = draw(LiteFocus(sparse_ratio=ratio, uniform=uniform), shape)
    counted = {"duplicates": duplicates, "weight": 0.0 if duplicates else weight}
    count = multiplicity(8, 40, sampled, same_frequency=True, **counted)
    exact = brute_force_attention(q, k, v, count)
    plain = F.scaled_dot_product_attention(
        *(rearrange(x, FREQUENCY_MAJOR) for x in (q, k, v)), attn_mask=count.log().to(dtype)
    )
    plain = rearrange(plain, "b h (f t) d -> b f t h d", f=8)
    out = litefocus_attention(q, k, v, sampled, **counted)
    assert out.dtype == dtype
    assert (out - exact).abs().max() <= HALF * (plain - exact).abs().max()


VARIANTS = {
    "dense": None,
    "row only": LiteFocus(cross_frequency=False),
    "litefocus": LiteFocus(),
    "weighted": LiteFocus(weight=1.0),
    "uniform": LiteFocus(uniform=True),
    "uniform, weighted": LiteFocus(uniform=True, weight=1.0),
    "duplicates": LiteFocus(duplicates=True),
    "cross-frequency": LiteFocus(same_frequency=False),
    "tome": TokenMerging(),
}


def call(name: str, shape: tuple[int, ...]):
    """A variant with its indices bound, and inputs for it."""
    variant = VARIANTS[name]
    return (dense_attention if variant is None else planned(variant, shape)), qkv(shape)


@pytest.mark.parametrize("name", VARIANTS)
def test_clips_of_a_batch_do_not_see_each_other(name):
    attend, inputs = call(name, (4, 4, 30, 2, 8))
    order = torch.tensor([2, 0, 3, 1])
    out = attend(*inputs)
    assert_near(attend(*(x[order] for x in inputs)), out[order])
    assert_near(attend(*(x[1:2] for x in inputs)), out[1:2])


class Largest(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operator returns.

    PyTorch's fused attention is one operator; its fallback, which writes the weights out, is seen
    as the operators it is made of.
    """

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("name", VARIANTS)
def test_memory_grows_no_faster_than_the_clip(name):
    sizes = []
    for length in (512, 1024):
        attend, inputs = call(name, (1, 8, length, 1, 8))
        with Largest() as largest, torch.inference_mode():
            attend(*inputs)
        sizes.append(largest.bytes)
    assert sizes[1] <= 2.1 * sizes[0]
    tokens = 8 * 1024
    assert sizes[1] < tokens * tokens  # of the N x N weights, not even a byte each


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_compiles_to_one_graph(name):
    attend, inputs = call(name, (2, 4, 16, 2, 8))
    compiled = torch.compile(attend, fullgraph=True, dynamic=False, backend="aot_eager")
    assert_near(compiled(*inputs), attend(*inputs))


def test_drawing_and_attending_leave_the_global_random_states_alone():
    shape = (1, 4, 20, 1, 8)
    inputs = qkv(shape)
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    for variant in (LiteFocus(), LiteFocus(uniform=True), TokenMerging()):
        planned(variant, shape)(*inputs)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert str(np.random.get_state()) == str(before[1])
    assert random.getstate() == before[2]


@pytest.mark.parametrize("ratio", [-0.1, 1.01, math.nan, math.inf])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ValueError, match="sparse_ratio"):
        LiteFocus(sparse_ratio=ratio)


def test_settings_that_leave_no_key_are_refused():
    with pytest.raises(ValueError, match="both off"):
        LiteFocus(same_frequency=False, cross_frequency=False)
    with pytest.raises(ValueError, match="sparse_ratio 0"):
        LiteFocus(same_frequency=False, sparse_ratio=0)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"weight": 1.5}, "weight 1.5"),
        ({"weight": -0.1}, "weight -0.1"),
        ({"weight": math.nan}, "weight nan"),
        ({"weight": 1.0, "duplicates": True}, "each of its keys once"),
        ({"weight": 1.0, "same_frequency": False}, "own row"),
        ({"scale": 0.0}, "scale 0.0"),
        ({"scale": math.inf}, "scale inf"),
    ],
)
def test_weights_and_scales_that_mean_nothing_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        LiteFocus(**changes)
