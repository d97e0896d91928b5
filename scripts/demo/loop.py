"""What the stages of training share: the loop, its learning rates, curves of the losses."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from audiolitefocus.atomic import check_writable
from audiolitefocus.runtime import choose_device
from audiolitefocus.training.updates import Updates, write_table
from audiolitefocus.validation import Number, check_choice, check_rule

CHECKPOINT, CURVE = "checkpoint.pt", "curve.csv"
CHECKPOINT_SECONDS = 120.0
CURVE_STEPS = 25  # of which the curve holds the mean; checkpoints are made after such only
WARM_UP = 200  # steps
LAST_RATE = 0.02  # of the learning rate, at the end of the cosine
STEP_BITS = 22  # of the 32 that PyTorch's CPU generator takes; the others are the seed's
BOUNDS = {
    "steps": Number(1, 2**STEP_BITS, whole=True),
    "minutes": Number(0.0, 1e6, above=True),
    "seed": Number(0, 2 ** (32 - STEP_BITS) - 1, whole=True),
}

Losses = dict[str, Tensor]  # the first is minimised, all are recorded
Trained = TypeVar("Trained", bound=nn.Module)


@dataclass(frozen=True)
class Run:
    """How to train, as the command line says it.

    Attributes:
        out: an existing folder; a stage writes to the folder of its name in it.
        steps, minutes: when a stage ends, counted over all of its runs; both None: after the steps
            that the stage thinks right. The learning rate falls to its last value by then.
        bf16: networks compute in bfloat16 where autocast finds that safe; weights stay float32.
    """

    out: Path
    device: str = "cpu"
    steps: int | None = None
    minutes: float | None = None
    bf16: bool = False
    seed: int = 0

    def __post_init__(self):
        check_choice("device", self.device, ("cpu", "cuda"))
        choose_device(self.device)
        if self.steps is not None and self.minutes is not None:
            raise ValueError("steps and minutes: give one of them")
        for name, rule in BOUNDS.items():
            if (value := getattr(self, name)) is not None:
                check_rule(name, value, rule)
        check_writable(self.out)

    def folder(self, stage: str) -> Path:
        folder = self.out / stage
        folder.mkdir(exist_ok=True)
        return folder

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)


def train(
    run: Run,
    stage: str,
    network: Trained,
    loss: Callable[[], Losses],
    *,
    steps: int,
    rate: float,
    average: float = 0.999,
) -> Trained:
    """Minimise `loss` over the network's parameters; a run that was cut off goes on where its last
    checkpoint stands.

    `loss` draws its batch from PyTorch's global generators, which are seeded again at every step:
    what a step does depends on the seed and its number only, however often training was cut off.

    Args:
        stage: the folder's name in `run.out` for checkpoint.pt and curve.csv.
        steps: how many where `run` does not say.
        rate: highest learning rate, of AdamW.
        average: decay of the moving average of the weights.

    Returns:
        The averaged network, in eval mode.

    Raises ValueError for a checkpoint that is damaged or of another network.
    """
    folder, network = run.folder(stage), network.to(run.device).train()
    updates = Updates(network, rate, average=average)
    found = updates.resume(folder / CHECKPOINT)
    seconds, curve = found.get("seconds", 0.0), Curve(found.get("curve", []))

    def save() -> float:
        write_table(folder / CURVE, curve.rows)
        updates.save(folder / CHECKPOINT, seconds=seconds, curve=curve.rows)
        return time.monotonic()

    # Where time is the limit there is no number of steps.
    limit, saved = None if run.minutes else run.steps or steps, time.monotonic()
    with tqdm(desc=stage, initial=updates.done, total=limit, unit="step") as bar:
        while (done := updates.done / limit if limit else seconds / 60 / run.minutes) < 1:
            began = time.monotonic()
            torch.manual_seed(run.seed << STEP_BITS | updates.done)
            losses, factor = loss(), schedule(done, updates.done)
            next(iter(losses.values())).backward()
            updates.update(factor)
            seconds += time.monotonic() - began
            bar.update()
            mean = curve.add(updates.done, seconds, rate * factor, losses)
            if mean is not None:
                bar.set_postfix_str(f"{done:.0%} loss {mean:.4f}")
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    saved = save()
    save()
    updates.take_average()
    return network.eval().requires_grad_(False)


def schedule(done: float, steps: int) -> float:
    """The learning rate over its highest: a linear warm-up, then half a cosine."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * done)
    return min(1.0, (steps + 1) / WARM_UP) * (LAST_RATE + (1 - LAST_RATE) * cosine)


class Curve:
    """The rows of curve.csv, the first of them its columns."""

    def __init__(self, rows: list[list[str]]):
        self.rows = rows
        self.recent: list[Tensor] = []

    def add(self, step: int, seconds: float, rate: float, losses: Losses) -> float | None:
        """Take a step's losses; the mean of the first one wherever a row is full."""
        self.recent.append(torch.stack([value.detach() for value in losses.values()]))
        if step % CURVE_STEPS:
            return None
        means = torch.stack(self.recent).mean(0).tolist()
        self.recent = []
        if not self.rows:
            self.rows.append(["step", "seconds", "rate", *losses])
        rounded = [f"{value:.6g}" for value in means]
        self.rows.append([str(step), f"{seconds:.1f}", f"{rate:.4g}", *rounded])
        return means[0]
