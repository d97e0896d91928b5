"""A UNet on its device, and what it needs in the steps of one call."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from audiolitefocus.attention.modules import CrossAttention
from audiolitefocus.attention.settings import Attention
from audiolitefocus.diffusion.inpaint import KnownLatents
from audiolitefocus.models.condition import Condition, repeat_condition, stack_conditions
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.models.unet import UNet
from audiolitefocus.options import GenerationOptions

Evaluate = Callable[[Tensor, StepInputs], Tensor]


@dataclass(frozen=True)
class Network:
    """A UNet, and `unet.evaluate` or a compiled form of it."""

    unet: UNet
    evaluate: Evaluate

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def is_compiled(self) -> bool:
        return self.evaluate != self.unet.evaluate


class Draws:
    """Indices of sparse attention, drawn once in a step for all networks of a call.

    Args:
        unet, attention: of the call.
        frames, rows: of the latents that are evaluated at once.
    """

    def __init__(self, unet: UNet, attention: Attention, frames: int, rows: int):
        self.unet, self.attention, self.shape = unet, attention, (frames, rows)
        self.latents = torch.empty(1, unet.config.in_channels, frames, rows, device="meta")
        self.generator = unet.sampling_generator(attention)
        self.steps: dict[int, list[Tensor | None]] = {}
        self.next = 0

    def of(self, step: int) -> list[Tensor | None]:
        """Those of a step, on the CPU: of a new one, of the last or of the one before it."""
        while self.next <= step:
            drawn = self.unet.draw(self.attention, self.latents, self.generator)
            self.steps = {n: old for n, old in self.steps.items() if n == self.next - 1}
            self.steps[self.next] = drawn
            self.next += 1
        return self.steps[step]


@dataclass(frozen=True)
class Run:
    """What all evaluations of one call have in common.

    Attributes:
        clips: their number.
        condition, negative: one entry a clip; without `negative` there is no guidance.
        options: of the call.
        timesteps, levels: the training step, and the share of signal, of every step.
        attention: "dense", settings, or their text.
        draws: indices of it.
        known: latents of a recording, of which frames may stay as they are.
    """

    clips: int
    condition: Condition
    negative: Condition | None
    options: GenerationOptions
    timesteps: Sequence[float]
    levels: Sequence[float]
    attention: Attention
    draws: Draws
    known: KnownLatents | None = None

    def repeated(self, copies: int) -> "Run":
        """For so many windows of every clip, those of one clip together."""
        if copies == 1:
            return self
        negative = None if self.negative is None else repeat_condition(self.negative, copies)
        return replace(
            self,
            clips=copies * self.clips,
            condition=repeat_condition(self.condition, copies),
            negative=negative,
        )


class StepPlanner:
    """Prepares the evaluations of one network in one call: what is constant is computed once."""

    def __init__(self, network: Network, run: Run):
        unet = network.unet
        self.network, self.attention, self.draws = network, run.attention, run.draws
        self.biases = unet.time_biases(torch.tensor(run.timesteps))
        # by branches of guidance: the conditional one alone, or both
        if run.negative is None:
            self.conditioning = {1: unet.cross_kv(run.condition)}
        else:
            both = unet.cross_kv(stack_conditions([run.negative, run.condition]))
            self.conditioning = {1: conditional_half(*both), 2: both}

    def inputs(
        self,
        step: int,
        branches: int,
        reused: Mapping[nn.Module, Tensor],
        recorded: dict[nn.Module, Tensor | None],
    ) -> StepInputs:
        """Inputs of an evaluation in a step."""
        return StepInputs(
            {block: bias[step : step + 1] for block, bias in self.biases.items()},
            *self.conditioning[branches],
            self.network.unet.place(self.attention, self.draws.of(step)),
            reused,
            recorded,
        )


def conditional_half(
    cross_kv: Mapping[CrossAttention, tuple[Tensor, Tensor]], mask: Tensor | None
) -> tuple[dict[CrossAttention, tuple[Tensor, Tensor]], Tensor | None]:
    """Keys, values and mask of the condition alone, which stands second."""
    half = {module: (k.chunk(2)[1], v.chunk(2)[1]) for module, (k, v) in cross_kv.items()}
    return half, None if mask is None else mask.chunk(2)[1]
