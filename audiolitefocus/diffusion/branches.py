"""The noise that one network predicts in each step, under the branches of guidance."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

from audiolitefocus.diffusion.network import Network, Run, StepPlanner
from audiolitefocus.diffusion.schedule import half_log_snr
from audiolitefocus.models.unet import UNet
from audiolitefocus.options import GenerationOptions
from audiolitefocus.reuse.settings import choose_reuse
from audiolitefocus.reuse.store import ReuseStore

# (clips, 8, t, 16), step, branches -> (branches clips, 8, t, 16): under the condition alone, or
# without it and then under it
Branches: TypeAlias = Callable[[Tensor, int, int], Tensor]


class OneNetwork:
    """All branches by one network, which may take parts of itself from earlier steps.

    Args:
        run, network: the call, and what it is evaluated by.
    """

    def __init__(self, run: Run, network: Network):
        self.network, self.clips = network, run.clips
        self.planner = StepPlanner(network, run)
        positions = [half_log_snr(level) for level in run.levels]
        self.store = reuse_store(network.unet, run.options, positions)

    def __call__(self, latents: Tensor, step: int, branches: int) -> Tensor:
        """As `Branches` says; without a negative condition in `run`, under the condition alone."""
        # 1. One evaluation, under both conditions where it is guided
        inputs = self.planner.inputs(
            step,
            min(branches, len(self.planner.conditioning)),
            self.store.reused(step, self.clips, branches),
            self.store.wanted(step),
        )
        noise = self.network.evaluate(latents, inputs)
        # 2. What later steps take of it; a compiled graph writes over it when it runs again
        self.store.keep(step, inputs.recorded, copy=self.network.is_compiled)
        return noise


def reuse_store(unet: UNet, options: GenerationOptions, positions: Sequence[float]) -> ReuseStore:
    """What the steps of this call take from each other, with `positions` in half log SNR."""
    steps = options.steps_taken
    reuse = choose_reuse(options.reuse, options.sampler, steps)
    if reuse is None:
        return ReuseStore({}, {}, positions)
    return ReuseStore(reuse.table(steps), unet.units(), positions, reuse.order)
