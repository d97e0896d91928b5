"""What may stay of a UNet's transformers, place by place, and the best of it within a budget.

A place is a residual block with the transformers that follow it ("self", "loa", "t5"). Any of them
may stay, none and all included: that is the choice of the place. The budget is one of all places
together, in operations.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from audiolitefocus.attention.settings import Attention
from audiolitefocus.config import BundleConfig
from scripts.reuse.costs import Costs


@dataclass(frozen=True)
class Part:
    """Choices of some places: operations, the sum of scores, and the number of each choice."""

    operations: int
    score: float
    made: tuple[int, ...]


class Choices:
    """All choices of a model's places.

    Operations are those of one evaluation of one clip, without guidance: there a transformer that
    is left out takes its own operations away and no others, so that they add up.

    Args:
        config: of the model, with all its transformers.
        seconds, attention: of the clip.
        budget: operations that are allowed, as a share of the model's.

    Attributes:
        places: names of the transformers of each place, in the order of running.
        subsets: (choices, n): for each of the n transformers of a place, 1 if it stays.
        costs: (places, choices) float64, operations as shares of the model's.
        fixed: the share that is left when no transformer stays.

    Raises:
        ValueError: a model that has been pruned, or a budget that no choice or every one meets.
    """

    def __init__(self, config: BundleConfig, seconds: float, attention: Attention, budget: float):
        if config.unet.absent:
            raise ValueError(f"{config.name} was pruned: give the model that it was made of")
        self.budget, self.contexts = budget, config.unet.contexts
        counted = Costs(config, seconds, attention, branches=1).counted
        names, width = list(config.unet.transformers), len(self.contexts)
        self.places = [tuple(names[i : i + width]) for i in range(0, len(names), width)]
        self.subsets = torch.tensor(list(product((0.0, 1.0), repeat=width)), dtype=torch.float64)
        self.total = counted.total
        self.operations = [
            [
                int(sum(counted.within[n] for n, stays in zip(place, row, strict=True) if stays))
                for row in self.subsets
            ]
            for place in self.places
        ]
        self.costs = torch.tensor(self.operations, dtype=torch.float64) / self.total
        self.fixed = 1.0 - float(self.costs[:, -1].sum())
        least = self.cost(self.best(-self.costs, limit=self.total))
        if not least <= budget < 1:
            raise ValueError(
                f"budget {budget:g}: must be from {least:.3f}, where one transformer of every text "
                f"source stays, to less than 1"
            )

    def cost(self, made: Sequence[int]) -> float:
        """Operations under these choices, as a share of the model's."""
        return self.fixed + sum(float(self.costs[at, n]) for at, n in enumerate(made))

    def absent(self, made: Sequence[int]) -> list[str]:
        """Names of the transformers that do not stay."""
        return [
            name
            for place, number in zip(self.places, made, strict=True)
            for name, stays in zip(place, self.subsets[number], strict=True)
            if not stays
        ]

    def kept(self, number: int) -> list[str]:
        """Contexts of the transformers that stay under a choice."""
        stays = zip(self.contexts, self.subsets[number], strict=True)
        return [context for context, kept in stays if kept]

    def best(self, scores: Tensor, *, limit: int | None = None) -> tuple[int, ...]:
        """The choices with the largest sum of scores that keep to the budget, exactly.

        Of every text source at least one transformer stays. From place to place, all choices so far
        are kept but those that another one betters in operations and score alike (a knapsack
        problem with several choices, solved by dynamic programming).

        Args:
            scores: (places, choices).
            limit: operations that are allowed; default: the budget.
        """
        fixed = self.total - sum(row[-1] for row in self.operations)
        most = (int(self.budget * self.total) if limit is None else limit) - fixed
        fronts: dict[frozenset[str], list[Part]] = {frozenset(): [Part(0, 0.0, ())]}
        for operations, row in zip(self.operations, scores.tolist(), strict=True):
            longer = defaultdict(list)
            for sources, front in fronts.items():
                for part in front:
                    for number, (count, score) in enumerate(zip(operations, row, strict=True)):
                        if part.operations + count <= most:
                            longer[sources | self._sources(number)].append(
                                Part(
                                    part.operations + count,
                                    part.score + score,
                                    (*part.made, number),
                                )
                            )
            fronts = {sources: _unbettered(parts) for sources, parts in longer.items()}
        every = frozenset(self.contexts) - {"self"}
        return fronts[every][-1].made

    def _sources(self, number: int) -> frozenset[str]:
        """The text sources of the transformers that stay under a choice."""
        return frozenset(self.kept(number)) - {"self"}


def _unbettered(parts: list[Part]) -> list[Part]:
    """Those that no other one betters, by rising operations and rising score."""
    front: list[Part] = []
    for part in sorted(parts, key=lambda part: (part.operations, -part.score)):
        if not front or part.score > front[-1].score:
            front.append(part)
    return front
