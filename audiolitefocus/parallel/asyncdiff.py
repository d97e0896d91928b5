"""AsyncDiff (Chen et al., "AsyncDiff: Parallelizing Diffusion Models by Asynchronous Denoising",
NeurIPS 2024): parts of the UNet, each on a device of its own, that work at the same time.

In a whole step a part waits for the one before it. In the others it takes what other parts made in
the step before, hidden state and skip connections alike, as consecutive steps differ little. The
latents themselves are always new: the first part and the sampler see every step.

With stride 2 the parts run once for two steps, under the time of the second. The last part runs for
both, on two devices, on the same inputs.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy

import torch
from torch import Tensor

from audiolitefocus.diffusion.denoise import denoise
from audiolitefocus.diffusion.network import Network, Run, StepPlanner
from audiolitefocus.parallel.parts import cut, piece_operations
from audiolitefocus.parallel.settings import AsyncDiff

# stands for outputs that a part does not use; no operation takes it
ABSENT = torch.empty(0, device="meta")


def denoise_parts(networks: Sequence[Network], noise: Tensor, *others, **named) -> Iterator[Tensor]:
    """`denoise` with a part of the UNet on each device; latents are those of the first one."""

    def branches(run: Run) -> Parts:
        return Parts(run, networks, *noise.shape[2:])

    return denoise(networks[0].unet, noise, *others, **named, branches=branches)


class Parts:
    """Predicts the noise as `Branches` says, by the parts of the UNet.

    Args:
        run: the call, with `AsyncDiff` as its option.
        networks: of the devices; the first so many are used.
        frames, rows: of the latents.
    """

    def __init__(self, run: Run, networks: Sequence[Network], frames: int, rows: int):
        settings, unet = run.options.parallel, networks[0].unet
        assert isinstance(settings, AsyncDiff)
        self.settings, self.steps = settings, len(run.timesteps)
        branches = 1 if run.negative is None else 2
        costs = piece_operations(unet, frames, rows, run.attention, branches)
        ranges = cut(costs, settings.parts)
        self.parts = [
            Part(run, network, own) for network, own in zip(networks, ranges, strict=False)
        ]
        # with stride 2, the last part once more
        others = networks[settings.parts : settings.devices]
        self.second = [Part(run, network, ranges[-1]) for network in others]
        self.branches = 0
        self.ahead: Tensor | None = None  # noise of the next step

    def __call__(self, latents: Tensor, step: int, branches: int) -> Tensor:
        same, self.branches = branches == self.branches, branches
        ahead, self.ahead = self.ahead, None
        if not same or self.settings.is_whole(step, self.steps):
            return self._whole(latents, step).to(latents.device, non_blocking=True)
        if ahead is None:
            ahead = self._at_once(latents, step)
        return ahead.to(latents.device, non_blocking=True)

    def afresh(self) -> "Parts":
        other = copy(self)
        other.parts = [part.afresh() for part in self.parts]
        other.second = [part.afresh() for part in self.second]
        other.forget()
        return other

    def forget(self) -> None:
        self.branches, self.ahead = 0, None  # so that the next step is a whole one

    def _whole(self, latents: Tensor, step: int) -> Tensor:
        """The noise, each part waiting for the one before it."""
        for part in self.parts:
            noise = part(latents, step, self.branches)
            self._send([part])
        return noise

    def _at_once(self, latents: Tensor, step: int) -> Tensor:
        """The noise, all parts at once on what they were sent before; with it that of a next."""
        two = bool(self.second) and not self.settings.is_whole(step + 1, self.steps)
        for part in self.parts:
            noise = part(latents, step + two, self.branches)
        if two:
            self.ahead, noise = noise, self.second[0](latents, step, self.branches)
        self._send(self.parts)
        return noise

    def _send(self, parts: Sequence["Part"]) -> None:
        """What parts have made, to those that take it."""
        for part in parts:
            for other in [*self.parts, *self.second]:
                other.receive(part.made)


class Part:
    """Consecutive pieces of the UNet on one device, in one call.

    Args:
        run, network: the call, and the UNet there.
        own: the pieces, by number.
    """

    def __init__(self, run: Run, network: Network, own: range):
        self.network, self.planner = network, StepPlanner(network, run)
        takes = network.unet.pieces()
        self.pieces = list(takes)
        number = {piece: n for n, piece in enumerate(self.pieces)}
        taken = {number[p] for n in own for p in takes[self.pieces[n]]}
        sent = {number[p] for n in range(own.stop, len(number)) for p in takes[self.pieces[n]]}
        self.taken, self.sent, self.own = taken - set(own), sent & set(own), own
        self.received: dict[int, Tensor] = {}
        self.made: dict[int, Tensor] = {}

    def __call__(self, latents: Tensor, step: int, branches: int) -> Tensor:
        """Compute `made` of what was received; returns the noise, if this is the last part."""
        others = (n for n in range(len(self.pieces)) if n not in self.own)
        reused = {self.pieces[n]: self.received.get(n, ABSENT) for n in others}
        recorded: dict = {self.pieces[n]: None for n in self.sent}
        inputs = self.planner.inputs(step, branches, reused, recorded)
        noise = self.network.evaluate(latents, inputs)
        self.made = {n: recorded[self.pieces[n]] for n in self.sent}
        return noise

    def afresh(self) -> "Part":
        """The same for other latents."""
        other = copy(self)
        other.received, other.made = {}, {}
        return other

    def receive(self, made: Mapping[int, Tensor]) -> None:
        """Take over those outputs of another part that this one uses."""
        for n in self.taken & made.keys():
            self.received[n] = made[n].to(self.network.device, non_blocking=True)
