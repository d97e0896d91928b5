"""What `refresh` is worth: distance from full steps against operations, beside fewer steps.

python -m scripts.reuse.refresh --out scripts/results/refresh-demo.json

Clips of a model's own are continued, and a span of them is inpainted: with every step in full, with
fewer such steps, and with steps that compute a stretch of frames alone. The distance is that of the
changed frames' latents from the full run's, over their norm; the cost is counted operations over
the full run's. The same command goes on where it was cut off.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.atomic import atomic_file
from audiolitefocus.attention.settings import Attention
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.config import UNetConfig
from audiolitefocus.diffusion import held
from audiolitefocus.diffusion.held import HeldFrames
from audiolitefocus.diffusion.stretch import Stretch, stretch_around
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.models.unet import UNet
from audiolitefocus.reuse.settings import full_steps
from scripts.benchmark.operations import counter
from scripts.benchmark.timing import machine
from scripts.demo.world.sounds import draw

STEPS = 25
FEWER = (17, 13, 10, 8)
# refresh, share of steps in full at the beginning, margin
PARTIAL = (
    *((refresh, 0.2, 16) for refresh in (2, 4, 8, 16)),
    *((4, 0.2, margin) for margin in (0, 32)),
    *((refresh, start, 16) for start in (0.08, 1 / 3) for refresh in (2, 4, 8, 16)),
)
# seconds of the recording, of the clip, and of what changes of it
TASKS = {
    "7.68 s continued to 10.24 s": (7.68, 10.24, (7.68, 10.24)),
    "2 to 3.28 s of 5.12 s inpainted": (5.12, 5.12, (2.0, 3.28)),
}


@dataclass(frozen=True)
class Variant:
    steps: int = STEPS
    refresh: int = 1
    start: float = held.START
    margin: int = held.MARGIN


@dataclass(frozen=True)
class Row:
    """A variant of one task; distances clip by clip."""

    task: str
    variant: Variant
    cost: float
    distance: float
    error: float
    distances: list[float]


def variants() -> list[Variant]:
    return [Variant(), *map(Variant, FEWER), *(Variant(STEPS, *partial) for partial in PARTIAL)]


def evaluation_operations(
    config: UNetConfig, frames: int, stretch: Stretch | None, attention: Attention
) -> tuple[int, int]:
    """Operations of one guided evaluation in full, and of one of the stretch."""
    with FakeTensorMode(), torch.inference_mode():
        unet = UNet(config).eval()
        latents = torch.empty(1, config.in_channels, frames, 16)
        texts = torch.empty(2, 8, config.loa_dim), torch.empty(2, 16, config.t5_dim)
        inputs = StepInputs(
            unet.time_biases(torch.empty(1)),
            *unet.cross_kv(Condition(*texts)),
            unet.plan(attention, latents),
        )
        steps = HeldFrames(unet.evaluate, stretch, (True, False), len(config.channels), 1)
        counted = []
        for step in (0, 1):
            with counter() as count:
                steps.evaluate(latents, inputs, step, 2)
            counted.append(count.get_total_flops())
    return counted[0], counted[1]


class Trial:
    """One task on several clips."""

    def __init__(self, pipe: AudioLDM2Pipeline, task: str, clips: int):
        self.pipe, self.task = pipe, task
        recorded, seconds, (start, stop) = TASKS[task]
        self.length, self.span = ClipLength(seconds, pipe.config), (start, stop)
        self.captions = [draw(number).caption for number in range(clips)]
        self.continued = recorded < seconds
        common: dict[str, Any] = {
            "sampler": "dpm++",
            "num_inference_steps": STEPS,
            "guidance_scale": 7.0,
        }
        self.recordings = [
            pipe(caption, seed=100 + n, audio_length_in_s=recorded, **common).audios[0]
            for n, caption in enumerate(self.captions)
        ]
        frames = torch.arange(self.length.latent_frames)
        self.changed = (frames >= int(start * 25)) & (frames < int(stop * 25 + 0.999))
        self.full: list[Tensor] = []

    def latents(self, variant: Variant) -> list[Tensor]:
        """The changed frames of every clip."""
        with mock.patch.multiple(held, START=variant.start, MARGIN=variant.margin):
            return [self.clip(number, variant) for number in range(len(self.captions))]

    def clip(self, number: int, variant: Variant) -> Tensor:
        recording = self.recordings[number]
        given: dict = {"continue_audio": recording, "audio_length_in_s": self.length.seconds}
        if not self.continued:
            given = {"init_audio": recording, "inpaint": self.span}
        out = self.pipe(
            self.captions[number],
            seed=number,
            sampler="dpm++",
            num_inference_steps=variant.steps,
            guidance_scale=7.0,
            refresh=variant.refresh,
            output_type="latent",
            **given,
        )
        return torch.as_tensor(out.audios)[0, :, self.changed]

    def cost(self, variant: Variant) -> float:
        """Operations over those of all steps in full."""
        if variant.refresh == 1:
            return variant.steps / STEPS
        stretch = stretch_around(self.changed, self.pipe.config.unet.time_multiple, variant.margin)
        attention = self.pipe.choose_attention("auto", self.length.seconds)
        frames = self.length.latent_frames
        full, part = evaluation_operations(self.pipe.config.unet, frames, stretch, attention)
        computed = sum(full_steps(variant.refresh, variant.start, STEPS, least=2))
        return (computed + (STEPS - computed) * part / full) / STEPS

    def row(self, variant: Variant) -> Row:
        self.full = self.full or self.latents(Variant())
        made = self.full if variant == Variant() else self.latents(variant)
        distances = [float((a - b).norm() / b.norm()) for a, b in zip(made, self.full, strict=True)]
        error = stdev(distances) / len(distances) ** 0.5
        return Row(self.task, variant, self.cost(variant), mean(distances), error, distances)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    pipe = AudioLDM2Pipeline.from_pretrained(chosen.model, device="cpu")
    rows = json.loads(chosen.out.read_text())["rows"] if chosen.out.exists() else []
    done = {(row["task"], Variant(**row["variant"])) for row in rows}
    for task in TASKS:
        trial = Trial(pipe, task, chosen.clips)
        for variant in variants():
            if (task, variant) in done:
                continue
            row = trial.row(variant)
            rows.append(asdict(row))
            print(f"{task} {variant}: cost {row.cost:.2f}, {row.distance:.3f}", flush=True)
            with atomic_file(chosen.out) as beside:
                text = json.dumps({"machine": machine("cpu"), "rows": rows}, indent=1)
                beside.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
