"""Both halves of guidance at once, each on a device of its own: what one device makes."""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from audiolitefocus.diffusion.branches import OneNetwork
from audiolitefocus.diffusion.denoise import denoise
from audiolitefocus.diffusion.network import Network, Run


def denoise_halves(networks: Sequence[Network], *others, **named) -> Iterator[Tensor]:
    """`denoise` with the first two of the networks; its latents are those of the first device.

    The first one runs under the condition, the second one without. Latents go to the second device
    in every step, and its noise comes back. Steps without guidance run on the first device.
    """

    def branches(run: Run) -> Halves:
        return Halves(run, *networks[:2])

    return denoise(networks[0].unet, *others, **named, branches=branches)


class Halves:
    """Predicts the noise as `Branches` says, each branch by a network of its own."""

    def __init__(self, run: Run, first: Network, second: Network):
        assert run.negative is not None, "checked before"
        without = replace(run, condition=run.negative, negative=None)
        self.conditional = OneNetwork(replace(run, negative=None), first)
        self.unconditional = OneNetwork(without, second)

    def __call__(self, latents: Tensor, step: int, branches: int) -> Tensor:
        if branches == 1:
            return self.conditional(latents, step, branches)
        # the device that has to wait for latents is given its work first; neither is waited for
        there = latents.to(self.unconditional.network.device, non_blocking=True)
        without = self.unconditional(there, step, branches)
        under = self.conditional(latents, step, branches)
        return torch.cat([without.to(latents.device, non_blocking=True), under])

    def afresh(self) -> "Halves":
        other = copy(self)
        other.conditional = self.conditional.afresh()
        other.unconditional = self.unconditional.afresh()
        return other

    def forget(self) -> None:
        self.conditional.forget()
        self.unconditional.forget()
