"""Our attention kernel against PyTorch's in float64, and when it is used."""

import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audiolitefocus.ops import sdpa as flash
from audiolitefocus.ops.sdpa import LEAST_SCORES, WIDTH, flash_attention, sdpa

needs_kernel = pytest.mark.skipif(
    flash.kernel() is None, reason="needs AVX512-BF16 without AMX, and a C++ compiler"
)
BIG = (2, 4, 400, 500)  # batch, heads, queries, keys: enough for the kernel


def inputs(
    batch: int, heads: int, queries: int, keys: int, scale: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """In memory as attention has them: b n h d."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int, scale: float) -> Tensor:
        x = torch.randn(batch, length, heads, WIDTH, generator=generator)
        return (scale * x).bfloat16().transpose(1, 2)

    return draw(queries, scale), draw(keys, 1.0), draw(keys, 1.0)


def error(out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    return float((out.double() - exact).norm() / exact.norm())


def assert_as_good(out: Tensor, *tensors: Tensor) -> None:
    """At most a tenth less exact than PyTorch in bfloat16, and a rounding where that is exact."""
    plain = error(F.scaled_dot_product_attention(*tensors), *tensors)
    assert error(out, *tensors) <= 1.1 * plain + 2**-10


@needs_kernel
@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 70), st.integers(1, 1200)),
    scale=st.sampled_from([0.1, 1.0, 4.0, 30.0]),
    seed=st.integers(0, 2**16),
)
def test_any_size_and_scale(sizes, scale, seed):
    tensors = inputs(*sizes, scale, seed)
    assert_as_good(flash_attention(*tensors), *tensors)


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("sizes", [(1, 1, 1000, 700), (2, 3, 9, 1700), BIG])
def test_any_number_of_threads_gives_the_same(sizes, threads):
    tensors, before = inputs(*sizes), torch.get_num_threads()
    one = flash_attention(*tensors)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(flash_attention(*tensors), one)
    finally:
        torch.set_num_threads(before)


@needs_kernel
def test_any_order_in_memory():
    q, k, v = inputs(*BIG)
    expected = flash_attention(q, k, v)
    padded = F.pad(k, (3, 1, 0, 2))[:, :, :-2, 3:-1]  # rows begin at odd addresses
    shared = v[:, :1].expand_as(v)
    assert torch.equal(flash_attention(q.contiguous(), padded, v), expected)
    assert torch.equal(flash_attention(q, k, shared), flash_attention(q, k, shared.contiguous()))
    assert expected.transpose(1, 2).is_contiguous()


@needs_kernel
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(which, value):
    tensors = inputs(1, 1, 20, 600)
    tensors[which][0, 0, 7, 3] = value
    expected = F.scaled_dot_product_attention(*tensors).isfinite()
    assert torch.equal(flash_attention(*tensors).isfinite(), expected)


@needs_kernel
def test_scores_far_apart():
    """A later block of keys whose scores are higher by far takes all the weight; none overflows."""
    q, k, v = inputs(1, 2, 16, 1500)
    k[:, :, 1400] = 100 * q[:, :, 5]
    assert_as_good(flash_attention(q, k, v), q, k, v)
    assert torch.equal(flash_attention(q, k, v)[:, :, 5], v[:, :, 1400])


def test_the_operator_is_described_to_the_compiler():
    torch.library.opcheck(flash_attention, inputs(1, 2, 8, 8))
    tensors = inputs(*BIG)
    torch._dynamo.reset()
    compiled = torch.compile(sdpa, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        assert torch.equal(compiled(*tensors), flash_attention(*tensors))


def test_it_is_used_where_it_pays(monkeypatch):
    monkeypatch.setattr(flash, "PAYS", True)
    calls = []
    monkeypatch.setattr(flash, "flash_attention", lambda *args: calls.append(args))
    q, k, v = inputs(*BIG)
    sdpa(q, k, v)
    assert len(calls) == 1
    mask = torch.ones(1, k.shape[2], dtype=torch.bool)
    few = q[:, :, : LEAST_SCORES // (2 * 4 * 500) - 1]
    wide = [F.pad(x, (0, WIDTH)) for x in (q, k, v)]
    for others in (
        (q, k, v, mask),
        (few, k, v),
        (q.float(), k.float(), v.float()),
        wide,
        (q, k[:1], v[:1]),
        (q.requires_grad_(), k, v),
    ):
        assert sdpa(*others) is not None
    assert len(calls) == 1


@pytest.mark.parametrize("why", ["processor", "compiler", "source"])
def test_without_the_kernel_attention_is_pytorchs(monkeypatch, tmp_path, why):
    monkeypatch.setattr(flash, "PAYS", why != "processor")
    if why == "compiler":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    broken = tmp_path / "flash.cpp"
    broken.write_text("this is not C++")
    monkeypatch.setattr(flash, "SOURCE", broken)
    flash.kernel.cache_clear()
    try:
        tensors = inputs(*BIG)
        expected = F.scaled_dot_product_attention(*tensors)
        assert torch.equal(sdpa(*tensors), expected)
        assert torch.equal(flash_attention(*tensors), expected)
        assert flash.kernel() is None
    finally:
        flash.kernel.cache_clear()
