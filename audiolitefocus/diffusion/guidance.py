"""Classifier-free guidance (Ho and Salimans 2022): how much of it in which step, of which clip."""

import math

import torch
from torch import Tensor

FADE = 2  # steps in which the scale rises and falls inside an interval of guidance


def guide(noise: Tensor, scale: float | Tensor) -> Tensor:
    """(2 b, ...) unconditional, then conditional noise -> guided (b, ...)."""
    unconditional, conditional = noise.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def guidance_scales(scale: float, interval: tuple[float, float], steps: int) -> list[float]:
    """The guidance scale of every step; 1 needs no unconditional half (Kynkäänniemi et al. 2024).

    Args:
        interval: shares of the steps, from where on and up to where there is guidance. The scale
            rises and falls over `FADE` steps inside, as a multistep sampler goes by differences
            between steps.
    """
    first, end = (round(share * steps) for share in interval)

    def at(step: int) -> float:
        if not first <= step < end:
            return 1.0
        rise = 1.0 if first == 0 else (step - first + 1) / (FADE + 1)
        fall = 1.0 if end == steps else (end - step) / (FADE + 1)
        return 1 + (scale - 1) * min(1.0, rise, fall)

    return [at(step) for step in range(steps)]


class Agreement:
    """Adaptive guidance (Castillo et al. 2023): a clip whose halves agree needs no more of it.

    They agree where the clean latents that both predict point the same way. The noise that they
    predict does so from the beginning, when latents are little but noise.

    Args:
        threshold: cosine beyond which a clip goes on with the conditional half alone; None: all
            clips stay guided.
        clips: their number.
    """

    def __init__(self, threshold: float | None, clips: int):
        self.threshold, self.agreed = threshold, torch.zeros(clips, dtype=torch.bool)

    def afresh(self) -> "Agreement":
        """The same for as many other clips."""
        return Agreement(self.threshold, len(self.agreed))

    def of_all(self) -> bool:
        """True once no clip needs guidance."""
        return self.threshold is not None and bool(self.agreed.all())

    def guide(self, noise: Tensor, scale: float, latents: Tensor, alpha: float) -> Tensor:
        """As `guide`, but for clips that have agreed before.

        Args:
            noise: (2 b, ...), predicted of `latents` (b, ...), of which the share `alpha` is
                signal.
        """
        if self.threshold is None:
            return guide(noise, scale)
        scales = torch.where(self.agreed, 1.0, scale).to(noise.device)[:, None, None, None]
        without, under = (latents - math.sqrt(1 - alpha) * half for half in noise.chunk(2))
        cosine = torch.cosine_similarity(without.flatten(1), under.flatten(1))
        self.agreed |= cosine.cpu() > self.threshold
        return guide(noise, scales)
