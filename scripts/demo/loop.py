"""What the stages of training share: the loop, with checkpoints to go on from, loss curves, a
learning-rate schedule and averaged weights.
"""

import copy
import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from audiolitefocus.atomic import atomic_file, check_writable

CHECKPOINT_SECONDS = 120.0
CURVE_STEPS = 25  # of which the curve holds the mean; checkpoints are made after such only
WARM_UP = 200  # steps
LAST_RATE = 0.02  # of the learning rate, at the end of the cosine
CLIP = 1.0  # norm of the gradients
BETAS = (0.9, 0.99)
STEP_BITS = 22  # of the 32 that PyTorch's CPU generator takes; the others are the seed's

Losses = dict[str, Tensor]  # the first is minimised, all are recorded


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
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device {self.device!r}: cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device 'cuda': no NVIDIA GPU is at hand; use cpu")
        if self.steps is not None and self.minutes is not None:
            raise ValueError("steps and minutes: give one of them")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps {self.steps}: at least 1")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes {self.minutes}: must be positive")
        if not 0 <= self.seed < 2 ** (32 - STEP_BITS):
            raise ValueError(f"seed {self.seed}: from 0 to {2 ** (32 - STEP_BITS) - 1}")
        check_writable(self.out)

    def folder(self, stage: str) -> Path:
        folder = self.out / stage
        folder.mkdir(exist_ok=True)
        return folder

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.bf16)


@dataclass
class Progress:
    """Where a stage stands: `steps` done in `seconds` of training."""

    steps: int = 0
    seconds: float = 0.0


def train(
    run: Run,
    stage: str,
    network: nn.Module,
    loss: Callable[[], Losses],
    *,
    steps: int,
    rate: float,
    average: float = 0.999,
) -> nn.Module:
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
    averaged = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=BETAS, weight_decay=0.0)
    parts = {"network": network, "averaged": averaged, "optimizer": optimizer}
    progress = load_checkpoint(folder / "checkpoint.pt", parts, run.device)
    # Where time is the limit there is no number of steps.
    limit = None if run.minutes else run.steps or steps
    with (
        Curve(folder / "curve.csv", progress.steps) as curve,
        tqdm(desc=stage, initial=progress.steps, total=limit, unit="step") as bar,
    ):
        saved = time.monotonic()
        while (done := portion(run, limit, progress)) < 1:
            began = time.monotonic()
            torch.manual_seed(run.seed << STEP_BITS | progress.steps)
            factor = schedule(done, progress.steps)
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            losses = step(network, optimizer, loss)
            ramp = (1 + progress.steps) / (10 + progress.steps)
            follow(averaged, network, min(average, ramp))
            progress.steps += 1
            progress.seconds += time.monotonic() - began
            if row := curve.add(progress, rate * factor, losses):
                bar.set_postfix_str(f"{done:.0%} loss {row:.4f}")
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    save_checkpoint(folder / "checkpoint.pt", parts, progress)
                    saved = time.monotonic()
            bar.update()
        save_checkpoint(folder / "checkpoint.pt", parts, progress)
    return averaged.eval()


def portion(run: Run, limit: int | None, progress: Progress) -> float:
    """How much of a stage is done, 1 at its end."""
    if limit is None:
        return progress.seconds / (60 * run.minutes)
    return progress.steps / limit


def schedule(done: float, steps: int) -> float:
    """The learning rate over its highest: a linear warm-up, then half a cosine."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * done)
    return min(1.0, (steps + 1) / WARM_UP) * (LAST_RATE + (1 - LAST_RATE) * cosine)


def step(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable) -> Losses:
    losses = loss()
    optimizer.zero_grad(set_to_none=True)
    next(iter(losses.values())).backward()
    norm = nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    if not norm.isfinite():
        raise ValueError(f"training diverged: the gradient's norm is {norm.item()}")
    optimizer.step()
    return {name: value.detach() for name, value in losses.items()}


@torch.no_grad()
def follow(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    """Move an average of weights towards the network's."""
    torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), 1 - decay)
    for mean, value in zip(averaged.buffers(), network.buffers(), strict=True):
        mean.copy_(value)


class Curve:
    """curve.csv: a row of mean losses every CURVE_STEPS steps. Rows beyond step `start` are cut:
    they were written after the checkpoint that training goes on from.
    """

    def __init__(self, path: Path, start: int):
        self.path, self.start, self.sums, self.count = path, start, {}, 0

    def __enter__(self) -> "Curve":
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = lines[:1] + [row for row in lines[1:] if int(row.split(",")[0]) <= self.start]
        with atomic_file(self.path) as part:
            part.write_text("".join(f"{line}\n" for line in kept))
        self.empty = not kept
        self.file = self.path.open("a", newline="", buffering=1)
        self.writer = csv.writer(self.file, lineterminator="\n")
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def add(self, progress: Progress, rate: float, losses: Losses) -> float | None:
        """Take a step's losses; the mean of the first one wherever a row is full."""
        self.count += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if progress.steps % CURVE_STEPS:
            return None
        means = {name: float(value) / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        if self.empty:
            self.writer.writerow(["step", "seconds", "rate", *means])
            self.empty = False
        rounded = [f"{value:.6g}" for value in means.values()]
        self.writer.writerow([progress.steps, f"{progress.seconds:.1f}", f"{rate:.4g}", *rounded])
        return next(iter(means.values()))


def save_checkpoint(path: Path, parts: dict, progress: Progress) -> None:
    state = {name: part.state_dict() for name, part in parts.items()}
    with atomic_file(path) as part:
        torch.save({**state, "progress": vars(progress)}, part)


def load_checkpoint(path: Path, parts: dict, device: str) -> Progress:
    """Fill `parts` from a checkpoint, if there is one."""
    if not path.exists():
        return Progress()
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return Progress(**state["progress"])
    except Exception as error:  # torch.load raises whatever a damaged file leads it to
        raise ValueError(
            f"{path} is damaged or of another network ({str(error).splitlines()[0]}); "
            "remove it to start again"
        ) from None
