"""One evaluation of the full-size UNet in full, keeping what `refresh` needs, and of the changed
stretch alone: counted operations, and the time that processors spent on each, in turns.

python -m scripts.benchmark.stretch --seconds 70 --changed 10 --output scripts/results/NAME.json
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from audiolitefocus.diffusion.held import MARGIN, HeldFrames
from audiolitefocus.diffusion.stretch import Stretch, stretch_around
from audiolitefocus.models.layers import StepInputs
from scripts.benchmark.contenders import STEP, Models, attention_of, latent_frames
from scripts.benchmark.operations import counter
from scripts.benchmark.timing import machine


def evaluations(
    models: Models, seconds: float, changed: float, attention: str
) -> tuple[dict[str, Callable[[], object]], Stretch]:
    """What is timed, by name, and the stretch."""
    unet, (latents, condition) = models.unet, models.inputs(seconds)
    with torch.inference_mode():
        inputs = StepInputs(
            unet.time_biases(torch.tensor(STEP)),
            *unet.cross_kv(condition),
            unet.plan(attention_of(attention, seconds), latents),
        )
    frames = torch.arange(latent_frames(seconds))
    last = frames >= len(frames) - round(len(frames) * changed / seconds)
    stretch = stretch_around(last, unet.config.time_multiple, MARGIN)
    if stretch is None:
        raise SystemExit("all of the clip changes: give a shorter --changed")
    levels = len(unet.config.channels)
    steps = HeldFrames(unet.evaluate, stretch, (True, False), levels, clips=1)
    names = {"full": None, "keeping": 0, "stretch": 1}

    def evaluate(step: int | None) -> object:
        if step is None:
            return unet.evaluate(latents, inputs)
        return steps.evaluate(latents, inputs, step, 2)

    return {name: partial(evaluate, step) for name, step in names.items()}, stretch


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=70.0, help="of the clip")
    add("--changed", type=float, default=10.0, help="of them, at the end")
    add("--attention", default="auto", help="a contender of scripts.benchmark.speed")
    add("--dtype", default="float32")
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=1)
    add("--output", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    models = Models("cpu", getattr(torch, chosen.dtype), "default")
    calls, stretch = evaluations(models, chosen.seconds, chosen.changed, chosen.attention)
    operations = {}
    for name, call in calls.items():  # a warm-up too
        with counter() as counted:
            call()
        operations[name] = counted.get_total_flops()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(chosen.repeats):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name].append(time.process_time() - start)
    about = {"seconds": chosen.seconds, "changed": chosen.changed, "dtype": chosen.dtype}
    about |= {"attention": chosen.attention}
    about |= {
        **machine("cpu"),
        "attention": chosen.attention,
        "stretch": [stretch.start, stretch.stop],
    }
    print("            GFLOP    of full    processor s    of full")
    medians = {name: statistics.median(each) for name, each in times.items()}
    for name, count in operations.items():
        done, spent = count / operations["full"], medians[name] / medians["full"]
        print(f"{name:8} {count / 1e9:8.0f} {done:10.3f} {medians[name]:14.2f} {spent:10.3f}")
    result = json.dumps({**about, "operations": operations, "times": times, "medians": medians})
    if chosen.output:
        chosen.output.write_text(result + "\n", encoding="utf-8")
    print(result)


if __name__ == "__main__":
    main()
