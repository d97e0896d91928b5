"""Full runs of the sampler with a model's own prompts, looked at step by step.

Calibration and learning go by what happens along them: at each step, latents, inputs and the full
evaluation's outputs.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.atomic import atomic_file
from audiolitefocus.attention.settings import attention_text
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.diffusion.denoise import denoise
from audiolitefocus.diffusion.schedule import alphas_cumprod, timesteps_of
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.options import DEFAULTS, OPTIONS, SHORT, GenerationOptions, flag_of
from audiolitefocus.reuse.settings import LearnedReuse, Table
from scripts.demo.world.sounds import draw
from scripts.reuse.costs import Costs

# called with latents, inputs and step of a full evaluation, before it is guided
OnEvaluation = Callable[[Tensor, StepInputs, int], Tensor]


def parser(description: str | None) -> argparse.ArgumentParser:
    """Options that calibration and learning share."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("--model", default="demo", help="a bundle")
    add("--prompts", type=Path, help="one a line; default: captions of the demo's world")
    add("--seconds", type=float, help="clip length; default: as trained")
    for name in ("num_inference_steps", "sampler", "eta", "guidance_scale", "attention"):
        option, default = OPTIONS[name], DEFAULTS[name]
        add(flag_of(name), dest=SHORT[name], type=option.rule.kind, default=default)
    add("--batch-size", type=int, default=8)
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    add("--out", type=Path, required=True, help="the table, a JSON file")
    return made


class Rollouts:
    """A model, its prompts and how it is run."""

    def __init__(self, chosen: argparse.Namespace):
        self.chosen = chosen
        self.pipe = AudioLDM2Pipeline.from_pretrained(chosen.model, device=chosen.device)
        self.seconds = chosen.seconds or self.pipe.config.trained_seconds
        self.attention = self.pipe.choose_attention(chosen.attention, self.seconds)
        names = ("steps", "sampler", "eta", "guidance_scale")
        self.options = GenerationOptions.make(None, {n: getattr(chosen, n) for n in names})
        self.steps, self.unet = self.options.num_inference_steps, self.pipe.unet
        schedule = self.pipe.config.schedule
        self.timesteps = timesteps_of(self.options.sampler, self.steps, schedule.train_steps)
        self.levels = [alphas_cumprod(schedule)[timestep] for timestep in self.timesteps]
        self.units = self.unet.units()
        self.costs = Costs(self.pipe.config, self.seconds, self.attention)
        self.prompts: list[str] = []
        if chosen.prompts:
            lines = chosen.prompts.read_text(encoding="utf-8").splitlines()
            self.prompts = [line for line in lines if line.strip()]

    def batch(self, number: int) -> list[str]:
        """The prompts of one run."""
        numbers = range(number * self.chosen.batch_size, (number + 1) * self.chosen.batch_size)
        if not self.prompts:
            return [draw(self.chosen.seed + n).caption for n in numbers]
        return [self.prompts[n % len(self.prompts)] for n in numbers]

    def run(self, number: int, on_evaluation: OnEvaluation) -> Iterator[Tensor]:
        """Latents after every step of a run, whose evaluations are `on_evaluation`'s."""
        prompts, config = self.batch(number), self.pipe.config
        condition = self.pipe.encode_prompt(prompts)
        negative = self.pipe.text.negative(None, condition, self.options.unconditional)
        length = ClipLength(self.seconds, config)
        generator = torch.Generator().manual_seed(self.chosen.seed + number)
        shape = config.unet.in_channels, length.latent_frames, length.latent_rows
        noise = torch.randn(len(prompts), *shape, generator=generator)
        step = iter(range(self.steps))
        steps = denoise(
            self.unet,
            noise,
            condition,
            negative,
            self.options,
            config.schedule,
            attention=self.attention,
            evaluate=lambda latents, inputs: on_evaluation(latents, inputs, next(step)),
        )
        yield from steps

    def outputs(self, latents: Tensor, inputs: StepInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """A full evaluation, and the output of every unit."""
        recording = replace(inputs, recorded=dict.fromkeys(self.units.values()))
        noise = self.unet.evaluate(latents, recording)
        return noise, {n: recording.recorded[u] for n, u in self.units.items()}  # type: ignore[misc]

    def save(self, table: Table) -> LearnedReuse:
        """Write a table. Returns it."""
        learned = LearnedReuse(
            str(self.chosen.out),
            self.options.sampler,
            self.steps,
            attention_text(self.attention),
            self.pipe.config.files.get("unet.safetensors", ""),
            table,
        )
        with atomic_file(self.chosen.out) as beside:
            beside.write_text(json.dumps(learned.to_json(), indent=1) + "\n", encoding="utf-8")
        return learned
