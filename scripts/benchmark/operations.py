"""Floating-point operations of the UNet, counted without doing them."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from audiolitefocus.attention.settings import Attention
from audiolitefocus.config import UNetConfig
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.models.unet import UNet


def counter() -> FlopCounterMode:
    """A counter that knows the CPU's attention kernel too."""

    def attention(q: torch.Size, k: torch.Size, v: torch.Size, *_, **__) -> int:
        return sdpa_flop_count(q, k, v)

    uncounted = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    return FlopCounterMode(display=False, custom_mapping=uncounted)


def operations(
    config: UNetConfig,
    latents: tuple[int, int, int, int],
    attention: Attention,
    *,
    branches: int = 2,
    t5_tokens: int = 16,
    loa_tokens: int = 8,
    device: str = "cpu",
) -> "Operations":
    """Operations of one evaluation in a loop.

    Args:
        latents: shape (b, 8, t, rows).
        branches: of guidance.
        device: "cpu", on which upsampling needs fewer products, or "meta", which stands for others.
    """
    entries = branches * latents[0]
    with FakeTensorMode(), torch.device(device), torch.inference_mode():
        unet = UNet(config).eval()
        condition = Condition(
            torch.empty(entries, loa_tokens, config.loa_dim),
            torch.empty(entries, t5_tokens, config.t5_dim),
        )
        noise, timestep = torch.empty(latents), torch.empty(1)
        inputs = CountingInputs(
            unet.time_biases(timestep), *unet.cross_kv(condition), unet.plan(attention, noise)
        )
        with inputs.counter:
            unet.evaluate(noise, inputs)
    names = {module: name for name, module in unet.named_modules()}
    return Operations(
        inputs.counter.get_total_flops(),
        {names[unit]: count for unit, count in inputs.within.items()},
        {names[unit]: {names[outer] for outer in outside} for unit, outside in inputs.nest.items()},
    )


@dataclass(frozen=True)
class CountingInputs(StepInputs):
    """Counts what every unit and piece does, and which of them it lies in."""

    counter: FlopCounterMode = field(default_factory=counter)
    within: dict[nn.Module, int] = field(default_factory=dict)
    nest: dict[nn.Module, tuple[nn.Module, ...]] = field(default_factory=dict)
    outside: list[nn.Module] = field(default_factory=list)

    def output_of(self, unit: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        self.nest[unit] = tuple(self.outside)
        self.outside.append(unit)
        before = self.counter.get_total_flops()
        output = compute()
        self.within[unit] = self.counter.get_total_flops() - before
        self.outside.pop()
        return output


@dataclass(frozen=True)
class Operations:
    """Counts of one evaluation.

    Attributes:
        total: of all of it.
        within: by unit or piece, of all that it takes to compute it.
        nest: by unit or piece, those that it is a part of.
    """

    total: int
    within: Mapping[str, int]
    nest: Mapping[str, Collection[str]]

    def with_reused(self, units: Collection[str]) -> int:
        """Operations where these units are taken from another step."""
        chosen = set(units)
        outermost = (unit for unit in chosen if not chosen & set(self.nest[unit]))
        return self.total - sum(self.within[unit] for unit in outermost)
