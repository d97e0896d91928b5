"""How long the parts of AsyncDiff take, one after another on this CPU, beside counted operations.

python -m scripts.benchmark.parts --output scripts/results/parts-cpu.json

A full-size UNet with random weights. One line of JSON: medians over steps of each part's time,
and of its share of the step.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from audiolitefocus.config import UNetConfig
from audiolitefocus.diffusion.network import Draws, Network, Run
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.unet import UNet
from audiolitefocus.options import GenerationOptions
from audiolitefocus.parallel.asyncdiff import Parts
from audiolitefocus.parallel.parts import cut, piece_operations
from audiolitefocus.parallel.settings import AsyncDiff
from scripts.benchmark.parallel import FRAMES_A_SECOND, ROWS, STEPS
from scripts.benchmark.timing import machine, median, seconds_of


def measure_parts(seconds: float, dtype: torch.dtype, repeats: int) -> list[dict]:
    """Times of the parts of a full-size UNet with random weights, one after another on this CPU."""
    config, frames = UNetConfig(), round(seconds * FRAMES_A_SECOND)
    unet = UNet(config).to(dtype).eval().requires_grad_(False)
    loa, t5 = torch.randn(1, 8, config.loa_dim), torch.randn(1, 16, config.t5_dim)
    latents = torch.randn(1, config.in_channels, frames, ROWS)
    found = []
    for count in (2, 3, 4):
        options = GenerationOptions(num_inference_steps=STEPS, parallel=AsyncDiff(count))
        draws = Draws(unet, "dense", *latents.shape[2:])
        text = Condition(loa, t5)
        run = Run(1, text, text, options, [500] * STEPS, [], "dense", draws)
        with torch.inference_mode():
            parts = Parts(run, [Network(unet, unet.evaluate)] * count, frames, ROWS)
            parts(latents, 0, 2)
            turns = [timed_parts(parts, latents, step) for step in range(1, 1 + repeats)]
        shares = [[time / sum(turn) for time in turn] for turn in turns]
        times = [median([turn[n] for turn in turns]) for n in range(count)]
        costs = piece_operations(unet, frames, ROWS, "dense", 2)
        counted = [sum(costs[n] for n in own) / sum(costs) for own in cut(costs, count)]
        found.append(
            {
                "parts": count,
                "seconds": seconds,
                "dtype": str(dtype),
                "times": times,
                "shares": [median([share[n] for share in shares]) for n in range(count)],
                "counted": counted,
            }
        )
    return found


def timed_parts(parts: Parts, latents: Tensor, step: int) -> list[float]:
    """Seconds of every part in one step."""
    return [seconds_of(partial(part, latents, step, 2), "cpu") for part in parts.parts]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seconds", type=float, nargs="+", default=[10.24])
    add("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    add("--repeats", type=int, default=3)
    add("--output", type=Path, help="JSON file, such as scripts/results/NAME.json")
    chosen = parser.parse_args()
    dtype = getattr(torch, chosen.dtype)
    rows = [row for s in chosen.seconds for row in measure_parts(s, dtype, chosen.repeats)]
    found = {"what": "parts, measured", **machine("cpu"), "results": rows}
    if chosen.output:
        chosen.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
