"""A table of reuse by learning: Learning-to-Cache (Ma et al., NeurIPS 2024) on this UNet.

python -m scripts.reuse.learn --sampler dpm++ --steps 25 --guidance-scale 7 \\
    --cost 0.6 --runs 40 --out table.json

The weights are frozen. A logit for each step and unit says how much of the unit's output is
computed, w = sigmoid(logit), and how much is taken from the step before: w new + (1 - w) kept. That
is what is kept, too. Along full runs, gradients bring the guided noise near to the full
evaluation's, by the error of the clean latents that it stands for, with a penalty of what the
computed share costs. Then the units of the smallest w are reused, as many as bring the run to
`--cost`.

The paper learns pairs of steps, the first in full, by the unguided noise; here any step may reuse,
and the guided noise is compared, in which errors are multiplied by the scale.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from audiolitefocus.diffusion.guidance import guide
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.reuse.settings import Table
from scripts.reuse.rollouts import Rollouts, parser

RATE, LIMIT = 0.1, 5.0  # of Adam; logits lie within +-LIMIT, as the paper clamps them
FIRST = 2.0  # logits begin at nearly all computed


@dataclass(frozen=True)
class MixedInputs(StepInputs):
    """Inputs under which units mix what they compute with what was kept of the step before."""

    shares: dict[nn.Module, Tensor] = field(default_factory=dict)
    kept: dict[nn.Module, Tensor] = field(default_factory=dict)
    mixed: dict[nn.Module, Tensor] = field(default_factory=dict)

    def output_of(self, unit: nn.Module, compute: Callable[[], Tensor]) -> Tensor:
        output = compute()
        if unit in self.kept:
            output = torch.lerp(self.kept[unit], output, self.shares[unit])
        self.mixed[unit] = output.detach()
        return output


class Learner:
    """Logits (steps, units), and what trains them.

    Args:
        rollouts: of the model.
        penalty: of computing, against the squared error of the clean latents.
    """

    def __init__(self, rollouts: Rollouts, penalty: float):
        self.rollouts, self.penalty = rollouts, penalty
        self.names = list(rollouts.units)
        # the first step has none before it
        self.logits = nn.Parameter(torch.full((rollouts.steps, len(self.names)), FIRST))
        self.optimizer = torch.optim.Adam([self.logits], lr=RATE)
        costs = torch.tensor([rollouts.costs.of_unit(name) for name in self.names])
        self.costs = costs / costs.sum()

    def run(self, number: int) -> float:
        """Learn along one run of a batch of clips. Returns the mean error of the clean latents."""
        kept: dict[nn.Module, Tensor] = {}
        errors: list[float] = []

        def learn(latents: Tensor, inputs: StepInputs, step: int) -> Tensor:
            with torch.inference_mode():
                noise, outputs = self.rollouts.outputs(latents, inputs)
            if step == 0:
                kept.update({self.rollouts.units[n]: x.clone() for n, x in outputs.items()})
            else:
                errors.append(self._learn(latents, inputs, step, noise, kept))
            return noise

        for _ in self.rollouts.run(number, learn):
            pass
        return sum(errors) / len(errors)

    def _learn(self, latents, inputs: StepInputs, step: int, noise: Tensor, kept: dict) -> float:
        """One step of the optimizer. Returns the error."""
        scale, level = self.rollouts.options.guidance_scale, self.rollouts.levels[step]
        shares = torch.sigmoid(self.logits[step])
        units = self.rollouts.units
        mixed = MixedInputs(
            inputs.time_biases,
            inputs.cross_kv,
            inputs.t5_mask,
            inputs.attend,
            shares={units[name]: share for name, share in zip(self.names, shares, strict=True)},
            kept=kept,
        )
        found = self.rollouts.unet.evaluate(latents, mixed)
        # of the clean latents that the noise stands for: the first steps decide the clip
        difference = guide(found, scale) - guide(noise.clone(), scale)
        error = (1 - level) / level * difference.square().mean()
        loss = error + self.penalty * (self.costs * shares).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.logits.clamp_(-LIMIT, LIMIT)
        kept.update(mixed.mixed)
        return float(error.detach())

    def table(self, cost: float) -> Table:
        """Units of the smallest w reused, as many as bring the run to this share of a full one."""
        steps = self.rollouts.steps
        flat = self.logits.detach()[1:].flatten()
        order = flat.argsort()
        low, high = 0, len(order)  # how many are reused
        while low < high:
            middle = (low + high) // 2
            if self.rollouts.costs.run(self._table_of(order[:middle]), steps) > cost * steps:
                low = middle + 1
            else:
                high = middle
        return self._table_of(order[:low])

    def _table_of(self, reused: Tensor) -> Table:
        computed = torch.ones(self.logits.shape, dtype=torch.bool)
        computed[1:].view(-1)[reused] = False
        return {
            name: tuple(row.tolist())
            for name, row in zip(self.names, computed.T, strict=True)
            if not row.all()
        }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=40, help="batches of clips")
    options.add_argument("--cost", type=float, nargs="+", default=[0.6], help="of a full run")
    options.add_argument("--penalty", type=float, default=0.02, help="of computing")
    chosen = options.parse_args()
    if len(chosen.cost) > 1 and "COST" not in chosen.out.name:
        sys.exit("error: several --cost: put COST into the name --out")
    pattern = chosen.out
    try:
        rollouts = Rollouts(chosen)
        learner = Learner(rollouts, chosen.penalty)
        with tqdm(range(chosen.runs)) as bar:
            for number in bar:
                bar.set_postfix(error=f"{learner.run(number):.5f}")
        for cost in chosen.cost:
            chosen.out = pattern.with_name(pattern.name.replace("COST", f"{cost:g}"))
            table = learner.table(cost)
            rollouts.save(table)
            share = rollouts.costs.run(table, rollouts.steps) / rollouts.steps
            print(f"{chosen.out}: {share:.3f} of a full run")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
