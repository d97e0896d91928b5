"""Classifier-free guidance (Ho and Salimans 2022)."""

from torch import Tensor


def guide(noise: Tensor, scale: float) -> Tensor:
    """(2 b, ...) unconditional, then conditional noise -> guided (b, ...)."""
    unconditional, conditional = noise.chunk(2)
    return unconditional + scale * (conditional - unconditional)
