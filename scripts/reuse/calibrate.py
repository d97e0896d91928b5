"""A table of reuse by calibration: what has changed little since it was last computed is reused.

python -m scripts.reuse.calibrate --sampler dpm++ --steps 25 --guidance-scale 7 \\
    --cost 0.6 --out table.json

SmoothCache (Liu et al. 2024) on this UNet: along full runs of a few clips, the relative change of
every unit's output since each earlier step. A unit is computed again where it has changed by more
than a threshold, which is the smallest whose table costs no more than `--cost` of a full run.
"""

import sys
from collections.abc import Mapping

import torch
from torch import Tensor

from audiolitefocus.reuse.settings import Table
from scripts.reuse.rollouts import Rollouts, parser

LAGS = 6  # steps back at most


def changes(rollouts: Rollouts, runs: int) -> dict[str, Tensor]:
    """Of every unit: relative L1 change (steps, LAGS) of its output against 1, 2, ... steps back,
    as a mean over runs; infinite where there is no such step.
    """
    found = {unit: torch.zeros(rollouts.steps, LAGS) for unit in rollouts.units}

    for number in range(runs):
        history: list[dict[str, Tensor]] = []

        def compare(latents, inputs, step: int, history=history) -> Tensor:
            noise, outputs = rollouts.outputs(latents, inputs)
            for lag, earlier in enumerate(reversed(history)):
                for unit, output in outputs.items():
                    change = (output - earlier[unit]).abs().sum() / output.abs().sum()
                    found[unit][step, lag] += change / runs
            history.append(outputs)
            del history[:-LAGS]
            return noise

        with torch.inference_mode():
            for _ in rollouts.run(number, compare):
                pass
    for change in found.values():
        for lag in range(LAGS):
            change[: lag + 1, lag] = torch.inf
    return found


def table_of(found: Mapping[str, Tensor], threshold: float) -> Table:
    """Each unit reused until it has changed by more than the threshold, or for `LAGS` steps."""

    def row(change: Tensor) -> tuple[bool, ...]:
        computed, last = [True], 0
        for step in range(1, len(change)):
            lag = step - last
            again = lag > LAGS or bool(change[step, lag - 1] > threshold)
            computed.append(again)
            last = step if again else last
        return tuple(computed)

    return {unit: row(change) for unit, change in found.items()}


def cheapest_within(rollouts: Rollouts, found: Mapping[str, Tensor], cost: float) -> Table:
    """The table of the smallest threshold that costs at most this share of a full run."""
    low, high = 0.0, 10.0
    for _ in range(20):
        middle = (low + high) / 2
        if rollouts.costs.run(table_of(found, middle), rollouts.steps) > cost * rollouts.steps:
            low = middle
        else:
            high = middle
    return table_of(found, high)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=2, help="batches of clips")
    options.add_argument("--cost", type=float, default=0.6, help="of a full run, at most")
    chosen = options.parse_args()
    try:
        rollouts = Rollouts(chosen)
        found = changes(rollouts, chosen.runs)
        table = cheapest_within(rollouts, found, chosen.cost)
        rollouts.save(table)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    share = rollouts.costs.run(table, rollouts.steps) / rollouts.steps
    print(f"{chosen.out}: {share:.3f} of a full run")


if __name__ == "__main__":
    main()
