"""Frames of a recording that stay: steps take what others need of them from an earlier step.

dKV-Cache (Ma et al., NeurIPS 2025) keeps keys and values of tokens that are decoded, and computes
the others alone. Where a recording is continued or inpainted, the frames that stay are such tokens:
their latents are known in every step, and only their level of noise falls.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from audiolitefocus.diffusion.network import Evaluate, Network, Run
from audiolitefocus.diffusion.stretch import (
    KeepingFrames,
    Kept,
    Stretch,
    StretchFrames,
    stretch_around,
)
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.reuse.settings import full_steps

MARGIN = 16  # latent frames (0.64 s) beside the changed ones that are computed too
START = 1 / 5  # share of the steps that are taken in full at the beginning


def held_frames(network: Network, run: Run) -> "HeldFrames":
    """How the steps of a call evaluate a network."""
    options, known, stretch = run.options, run.known, None
    if options.refresh > 1 and known is not None and known.changed is not None:
        stretch = stretch_around(known.changed.cpu(), network.unet.config.time_multiple, MARGIN)
    # in the first step latents are nothing but noise, in held frames too
    full = full_steps(options.refresh, START, options.steps_taken, least=2)
    levels = len(network.unet.config.channels)
    return HeldFrames(
        network.evaluate, stretch, full, levels, run.clips, compiled=network.is_compiled
    )


class HeldFrames:
    """Evaluates a UNet step by step, in some steps for a stretch of frames alone.

    One call of `denoise` has one.

    Args:
        evaluate: `UNet.evaluate`, or a compiled form of it, which overwrites its results when it
            runs again.
        stretch: what every step computes; None: all frames.
        full: of every step, if it computes all frames. The first one has to.
        levels: of the UNet.
        clips: their number.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        stretch: Stretch | None,
        full: Sequence[bool],
        levels: int,
        clips: int,
        *,
        compiled: bool = False,
    ):
        self.evaluate_frames, self.stretch, self.full = evaluate, stretch, full
        self.levels, self.clips, self.compiled = levels, clips, compiled
        self.kept, self.noise = Kept(), torch.empty(0)

    def evaluate(self, latents: Tensor, inputs: StepInputs, step: int, branches: int) -> Tensor:
        """(clips, 8, t, 16) -> (branches * clips, 8, t, 16): the noise in step `step`.

        In held frames it may be that of an earlier step: their latents are put back anyway.
        """
        if self.stretch is None:
            return self.evaluate_frames(latents, inputs)
        self._adapt(branches * self.clips)
        if self.full[step] or not self.kept:
            return self._evaluate_all(latents, inputs, last=all(self.full[step + 1 : step + 2]))
        own = latents[:, :, self.stretch.start : self.stretch.stop]
        frames = StretchFrames(self._by_length(own.shape[2]), self.kept)
        noise = self.evaluate_frames(own, dataclasses.replace(inputs, frames=frames))
        before, _, after = self.stretch.cut(self.noise, 2)
        return torch.cat([before, noise, after], dim=2)

    def _evaluate_all(self, latents: Tensor, inputs: StepInputs, *, last: bool) -> Tensor:
        """A full evaluation; kept of it is what the next one needs, unless that is full too."""
        if last:
            return self.evaluate_frames(latents, inputs)
        self.kept = Kept()  # before as much is made again
        frames = KeepingFrames(self._by_length(latents.shape[2]))
        noise = self.evaluate_frames(latents, dataclasses.replace(inputs, frames=frames))
        self.kept, self.noise = frames.kept, noise
        if self.compiled:
            copies = {m: tuple(x.clone() for x in kept) for m, kept in frames.kept.items()}
            self.kept, self.noise = copies, noise.clone()
        return noise

    def _by_length(self, length: int) -> dict[int, Stretch]:
        """The stretch on every level, by the length of the level's feature maps."""
        stretch, found = self.stretch, {}
        for _ in range(self.levels):
            assert stretch is not None
            found[length] = stretch
            length, stretch = -(-length // 2), stretch.halved()
        return found

    def _adapt(self, entries: int) -> None:
        """To the branches of guidance: where it ends, the condition's half of what is kept goes on,
        which stands second; where it begins, nothing does.
        """
        if entries > len(self.noise):
            self.kept = Kept()
        elif entries < len(self.noise):
            self.noise = self.noise[-entries:]
            self.kept = {m: tuple(x[-entries:] for x in kept) for m, kept in self.kept.items()}
