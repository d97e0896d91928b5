"""Convolutions of features (b, t, c) against `F.conv1d` in float64."""

import pytest
import torch
import torch.nn.functional as F

from audiolitefocus.ops import conv1d as ops
from audiolitefocus.ops.conv1d import conv1d, conv_transpose1d

ROUNDING = 1e-6  # relative, root mean square
PARTS = 1e-5  # 16 bits of features and of the result
PLAIN = 1e-2  # 8 bits of both


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def layer(steps: int, size: int, dtype: torch.dtype, batch: int = 2):
    """Features (b, t, 16), and kernel (24, 16, size) and bias that `dtype` can hold."""
    generator = torch.Generator().manual_seed(steps)
    x = torch.randn(batch, steps, 16, generator=generator)
    weight, bias = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((24, 16, size), (24,))
    )
    return x, weight, bias


def expected(x, weight, bias, dilation: int) -> torch.Tensor:
    padding = dilation * (weight.shape[-1] // 2)
    arguments = x.mT.double(), weight.double(), bias.double()
    return F.conv1d(*arguments, padding=padding, dilation=dilation).mT


@pytest.mark.parametrize("steps, size, dilation", [(1, 3, 1), (50, 1, 1), (50, 7, 3), (9, 11, 5)])
def test_float32(steps, size, dilation):
    given = layer(steps, size, torch.float32)
    assert error(conv1d(*given, dilation), expected(*given, dilation)) < ROUNDING


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("steps", [1, 5, 63, 64, 65, 200])
@pytest.mark.parametrize("size, dilation", [(3, 1), (7, 3), (11, 5)])
def test_half_precision_kernels_with_float32_features(monkeypatch, steps, size, dilation, amx):
    """By products in parts, several at a time, whether or not they are fast here."""
    if amx and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this processor has no products of bfloat16 numbers that add to a result")
    monkeypatch.setattr(ops, "PART_STEPS", 64)
    monkeypatch.setattr(ops, "_bfloat16_pays", lambda products: amx)
    given = layer(steps, size, torch.bfloat16)
    found = conv1d(*given, dilation)
    assert found.dtype == torch.float32
    assert error(found, expected(*given, dilation)) < (PARTS if amx else ROUNDING)


def test_imprecise_products_are_plain_ones(monkeypatch):
    monkeypatch.setattr(ops, "_bfloat16_pays", lambda products: products == 1)
    given = layer(50, 3, torch.bfloat16)
    found = error(conv1d(*given, precise=False), expected(*given, 1))
    assert PARTS < found < PLAIN


@pytest.mark.parametrize("rate, size", [(2, 4), (4, 16), (5, 16)])
def test_transposed(rate, size):
    generator = torch.Generator().manual_seed(rate)
    x, weight, bias = (
        torch.randn(shape, generator=generator) for shape in ((2, 9, 16), (16, 8, size), (8,))
    )
    padding = (size - rate) // 2
    exact = F.conv_transpose1d(x.mT.double(), weight.double(), bias.double(), rate, padding).mT
    found = conv_transpose1d(x, weight, bias, rate, padding)
    assert found.shape == exact.shape and error(found, exact) < ROUNDING


def test_gradients_pass():
    x, weight, bias = layer(20, 3, torch.float64)
    arguments = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
    conv1d(*arguments).square().sum().backward()
    found = [tensor.grad for tensor in arguments]
    exact = torch.autograd.grad(expected(*arguments, 1).square().sum(), arguments)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other)
