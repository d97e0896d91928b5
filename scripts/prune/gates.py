"""A UNet whose transformers are chosen at random, by probabilities that are learnt."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolitefocus.attention.settings import Attention
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.models.unet import UNet
from scripts.prune.choices import Choices

HALVINGS = 60


@dataclass(frozen=True)
class MaskedInputs(StepInputs):
    """Inputs under which the outputs of transformers are multiplied, (b, 1, 1, 1) each."""

    stays: Mapping[nn.Module, Tensor] = field(default_factory=dict)

    def output_of(self, unit: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        output = super().output_of(unit, compute)
        return output * self.stays[unit] if unit in self.stays else output


class MaskedUNet(nn.Module):
    """Called as a UNet is: every clip gets choices of its own, drawn from learnt probabilities.

    Args:
        unet: whose transformers are chosen.
        choices: of its places.

    Attributes:
        logits: (places, choices) float64, all zero in the beginning.
        temperature: of the relaxed choice, through which gradients go.
    """

    def __init__(self, unet: UNet, choices: Choices):
        super().__init__()
        self.unet, self.choices, self.temperature = unet, choices, 1.0
        self.logits = nn.Parameter(torch.zeros_like(choices.costs))

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        condition: Condition,
        *,
        attention: Attention,
        generator: torch.Generator,
    ) -> Tensor:
        """As `UNet.forward`; `generator`, on the CPU, also draws the choices."""
        unet, choices = self.unet, self.choices
        attend = unet.plan(attention, latents, generator)
        drawn = draw(self.log_probabilities(), len(latents), self.temperature, generator)
        stays = (drawn @ choices.subsets.to(drawn.device)).to(latents)  # clips, places, n
        modules = [unet.get_submodule(name) for place in choices.places for name in place]
        masks = stays.flatten(1).T[..., None, None, None]
        inputs = MaskedInputs(
            unet.time_biases(timestep),
            *unet.cross_kv(condition),
            attend,
            stays=dict(zip(modules, masks, strict=True)),
        )
        return unet.evaluate(latents, inputs)

    def log_probabilities(self) -> Tensor:
        """Of the choices of every place, (places, choices)."""
        choices = self.choices
        costs = choices.costs.to(self.logits.device)
        return within_budget(self.logits, costs, choices.budget - choices.fixed)


def within_budget(logits: Tensor, costs: Tensor, budget: float) -> Tensor:
    """Log-probabilities of the choices of every place whose expected cost is the budget.

    They are log softmax(logits - l costs), with the l that meets the budget: of all distributions
    that do, the one nearest to softmax(logits) (by the divergence KL(p, softmax(logits))). So the
    budget holds at every update, and there is no penalty to weigh. The gradient takes into account
    how l follows the logits, so that it never asks for more of everything.

    Args:
        logits, costs: (places, choices).
        budget: more than the cheapest choices cost together, less than the dearest ones.
    """
    with torch.no_grad():
        price = _price(logits, costs, budget)
        p = (logits - price * costs).softmax(-1)
        variance = (p * costs.square()).sum() - (p * costs).sum(-1).square().sum()
    # a step of Newton's method: l stays as it is, and has its gradient (implicit function theorem)
    expected = ((logits - price * costs).softmax(-1) * costs).sum()
    exact = price + (expected - budget) / variance
    return (logits - exact * costs).log_softmax(-1)


def _price(logits: Tensor, costs: Tensor, budget: float) -> float:
    """l of `within_budget`, by bisection: the expected cost falls as it rises."""

    def too_dear(price: float) -> bool:
        return float(((logits - price * costs).softmax(-1) * costs).sum()) > budget

    low, high = -1.0, 1.0
    while too_dear(high):
        high *= 2
    while not too_dear(low):
        low *= 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if too_dear(middle) else (low, middle)
    return (low + high) / 2


def draw(
    log_probabilities: Tensor, clips: int, temperature: float, generator: torch.Generator
) -> Tensor:
    """Choices for every clip, one-hot, with the gradient of the relaxed choice.

    Gumbel-softmax, straight through (Jang et al., "Categorical reparameterization with
    Gumbel-softmax", ICLR 2017, section 2.2).

    Returns:
        (clips, places, choices)
    """
    uniform = torch.rand(clips, *log_probabilities.shape, dtype=torch.float64, generator=generator)
    tiny = torch.finfo(torch.float64).tiny
    gumbel = -(-uniform.clamp(min=tiny).log()).log()
    noisy = log_probabilities + gumbel.to(log_probabilities)
    relaxed = (noisy / temperature).softmax(-1)
    hard = F.one_hot(relaxed.argmax(-1), relaxed.shape[-1])
    return hard - relaxed.detach() + relaxed
