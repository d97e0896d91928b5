"""How far AsyncDiff's clips lie from those of one device, beside fewer steps in the same time.

python -m scripts.evaluate.parallel --output scripts/results/parallel-demo.json

Distances of the latents, relative to their norm, and of log-mel spectrograms, mean absolute in
nats; means over clips. The time is predicted from counted operations, without exchange, in
evaluations of the whole UNet. A table for people, then one line of JSON. The same command goes on
where it was cut off.
"""

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiolitefocus import AudioLDM2Pipeline, GenerationOptions
from audiolitefocus.atomic import atomic_file
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.codec.mel import log_mel
from audiolitefocus.parallel.parts import cut, piece_operations
from audiolitefocus.parallel.settings import AsyncDiff
from scripts.benchmark.parallel import evaluations
from scripts.benchmark.timing import machine
from scripts.demo.world.captions import draw

PARTS, WARMUPS, STRIDES = (2, 3, 4), (1, 3, 6), (1, 2)
SAMPLERS: dict[str, dict[str, Any]] = {
    "dpm++ 25": {"sampler": "dpm++", "num_inference_steps": 25},
    "ddim 50, eta 0": {"sampler": "ddim", "num_inference_steps": 50, "eta": 0.0},
    "ddim 50, eta 1": {"sampler": "ddim", "num_inference_steps": 50, "eta": 1.0},
}


class Distances:
    """Variants of one sampler's run, compared with the run on one device.

    Args:
        pipe: on five devices, which may all be the CPU.
        prompts: of the clips.
        options: of the run.
    """

    def __init__(self, pipe: AudioLDM2Pipeline, prompts: list[str], options: GenerationOptions):
        self.pipe, self.prompts, self.options = pipe, prompts, options
        self.full = self.latents(options)
        self.full_mel = self.mel(self.full)

    def latents(self, options: GenerationOptions) -> Tensor:
        streams = [torch.Generator().manual_seed(n) for n in range(len(self.prompts))]
        out = self.pipe(self.prompts, options=options, generator=streams, output_type="latent")
        return torch.as_tensor(out.audios)

    def mel(self, latents: Tensor) -> Tensor:
        return log_mel(self.pipe.decode(latents), self.pipe.config.vocoder)

    def of(self, options: GenerationOptions) -> dict[str, float]:
        """Distances from the full run."""
        found = self.latents(options)
        difference = (found - self.full).flatten(1).norm(dim=1) / self.full.flatten(1).norm(dim=1)
        mels = (self.mel(found) - self.full_mel).abs().mean()
        return {"latents": float(difference.mean()), "log_mel": float(mels)}


def largest_share(pipe: AudioLDM2Pipeline, seconds: float, parts: int) -> float:
    """Of the operations, that of the most expensive part."""
    length = ClipLength(seconds, pipe.config)
    attention = pipe.choose_attention("auto", seconds)
    grid = length.latent_frames, length.latent_rows
    costs = piece_operations(pipe.unet, *grid, attention, 2)
    return max(sum(costs[n] for n in own) for own in cut(costs, parts)) / sum(costs)


def label(settings: AsyncDiff) -> str:
    """The option's text, complete, so that it stays true when defaults change."""
    return f"asyncdiff:{settings.parts}:warmup={settings.warmup}:stride={settings.stride}"


def markdown(results: list[dict]) -> str:
    lines = [
        "| sampler | variant | time | latents | log-mel | fewer steps | latents | log-mel |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        lines.append(
            f"| {r['sampler']} | `{r['parallel']}` | {r['time']:.1f} | {r['latents']:.3f} | "
            f"{r['log_mel']:.3f} | {r['steps']} | {r['steps_latents']:.3f} | "
            f"{r['steps_log_mel']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="demo")
    add("--clips", type=int, default=4)
    add("--seconds", type=float, default=2.56)
    add("--guidance-scale", type=float, default=7.0)
    add("--warmups", type=int, nargs="+", default=WARMUPS)
    add("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    add("--output", type=Path, required=True, help="JSON file, such as scripts/results/NAME.json")
    chosen = parser.parse_args()
    pipe = AudioLDM2Pipeline.from_pretrained(chosen.model, device=["cpu"] * 5)
    about = {"model": chosen.model, "clips": chosen.clips, "seconds": chosen.seconds}
    about |= {"guidance_scale": chosen.guidance_scale, **machine("cpu")}
    known = json.loads(chosen.output.read_text()) if chosen.output.is_file() else {"results": []}
    results = known["results"]
    for name in chosen.samplers:
        made = {r["parallel"] for r in results if r["sampler"] == name}
        for result in compare(pipe, chosen, name, made):
            results.append(result)
            with atomic_file(chosen.output) as beside:
                beside.write_text(json.dumps({**about, "results": results}, indent=1) + "\n")
    print(markdown(results))
    print(json.dumps({**about, "results": results}))


def compare(pipe: AudioLDM2Pipeline, chosen: argparse.Namespace, name: str, made: set[str]):
    """A result for every variant that is not there yet."""
    prompts = [draw(n).caption for n in range(chosen.clips)]
    options = GenerationOptions(
        **SAMPLERS[name], audio_length_in_s=chosen.seconds, guidance_scale=chosen.guidance_scale
    )
    variants = [
        AsyncDiff(parts, warmup=warmup, stride=stride)
        for parts, stride, warmup in itertools.product(PARTS, STRIDES, chosen.warmups)
    ]
    waiting = [variant for variant in variants if label(variant) not in made]
    if not waiting:
        return
    distances, steps = Distances(pipe, prompts, options), options.num_inference_steps
    fewer: dict[int, dict[str, float]] = {}
    for variant in waiting:
        share = largest_share(pipe, chosen.seconds, variant.parts)
        time = evaluations(variant, steps, share)
        if (few := round(time)) not in fewer:
            fewer[few] = distances.of(replace(options, num_inference_steps=few))
        found = distances.of(replace(options, parallel=variant))
        others = {f"steps_{key}": value for key, value in fewer[few].items()}
        about = {"sampler": name, "parallel": label(variant), "time": time, "steps": few}
        yield {**about, **found, **others}


if __name__ == "__main__":
    main()
