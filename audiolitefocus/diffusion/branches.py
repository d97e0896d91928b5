"""The noise that one network predicts in each step, under the branches of guidance."""

from copy import copy
from typing import Protocol

from torch import Tensor

from audiolitefocus.diffusion.held import held_frames
from audiolitefocus.diffusion.network import Network, Run, StepPlanner
from audiolitefocus.diffusion.schedule import half_log_snr
from audiolitefocus.reuse.settings import choose_reuse
from audiolitefocus.reuse.store import ReuseStore


class Branches(Protocol):
    """Predicts the noise of a step under the branches of guidance."""

    def __call__(self, latents: Tensor, step: int, branches: int) -> Tensor:
        """(clips, 8, t, 16) -> (branches clips, 8, t, 16).

        Under the condition alone, or without it and then under it.
        """

    def afresh(self) -> "Branches":
        """The same for other latents, with nothing kept of earlier steps."""

    def forget(self) -> None:
        """Drop what steps have kept for later ones."""


class OneNetwork:
    """All branches by one network, which may take parts of itself from earlier steps, or frames.

    Args:
        run, network: the call, and what it is evaluated by.
    """

    def __init__(self, run: Run, network: Network):
        self.network, self.run = network, run
        self.planner = StepPlanner(network, run)
        self.forget()

    def __call__(self, latents: Tensor, step: int, branches: int) -> Tensor:
        """As `Branches` says; without a negative condition in `run`, under the condition alone."""
        # 1. One evaluation, under both conditions where it is guided
        latents = latents.to(self.network.device, non_blocking=True)
        evaluated = min(branches, len(self.planner.conditioning))
        inputs = self.planner.inputs(
            step,
            evaluated,
            self.store.reused(step, self.run.clips, branches),
            self.store.wanted(step),
        )
        noise = self.held.evaluate(latents, inputs, step, evaluated)
        # 2. What later steps take of it; a compiled graph writes over it when it runs again
        self.store.keep(step, inputs.recorded, copy=self.network.is_compiled)
        return noise

    def afresh(self) -> "OneNetwork":
        other = copy(self)
        other.forget()
        return other

    def forget(self) -> None:
        self.store = reuse_store(self.network, self.run)
        self.held = held_frames(self.network, self.run)


def reuse_store(network: Network, run: Run) -> ReuseStore:
    """What the steps of a call take from each other."""
    positions, steps = [half_log_snr(level) for level in run.levels], run.options.steps_taken
    reuse = choose_reuse(run.options.reuse, run.options.sampler, steps)
    if reuse is None:
        return ReuseStore({}, {}, positions)
    return ReuseStore(reuse.table(steps), network.unet.units(), positions, reuse.order)
