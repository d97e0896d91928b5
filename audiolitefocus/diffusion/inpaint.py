"""Keeping parts of a recording: its latents take their place again after every step.

Masked sampling as in Lugmayr et al., "RePaint", 2022, without its jumps back in time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audiolitefocus.diffusion.samplers import Restore, restore_nothing
from audiolitefocus.diffusion.schedule import add_noise


@dataclass(frozen=True, eq=False)
class KnownLatents:
    """The latents of a recording, of which clips are made.

    Attributes:
        latents: (1, 8, t, 16), clean.
        changed: (t,) bool, frames that are generated; the others are restored after every step.
            None: all of them are generated.
    """

    latents: Tensor
    changed: Tensor | None = None

    def to(self, device: torch.device) -> "KnownLatents":
        changed = None if self.changed is None else self.changed.to(device)
        return KnownLatents(self.latents.to(device), changed)

    def restore(self, noise: Tensor, levels: Sequence[float]) -> Restore:
        """A function that overwrites the known frames with the recording, re-noised to a step.

        Args:
            noise: the initial noise (b, 8, t, 16); diffusers' inpainting uses it throughout.
            levels: share of signal, of `alphas_cumprod`, after every step; at the end 1.
        """
        if self.changed is None:
            return restore_nothing
        changed = self.changed[:, None]

        def restore_known(latents: Tensor, step: int) -> Tensor:
            known = add_noise(self.latents, noise, levels[step])
            return torch.where(changed, latents, known)

        return restore_known
