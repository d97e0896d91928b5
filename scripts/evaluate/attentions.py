"""How far from dense attention others lead, clip by clip, how steady their tones are, how long they
take.

python -m scripts.evaluate.attentions --seconds 2.56 20.48 \\
    --attention litefocus:0.1 litefocus:0.1:weight=1 litefocus:0.02:weight=1 --results near.json

With the bundle of another model, give --prompts FILE, and --tones 0: tones are the demo's. The same
command goes on where it was cut off. With `scripts.evaluate.evaluate`, which says how good clips
are, this settles ratio, weight and scale of a model.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.atomic import atomic_file
from audiolitefocus.attention.settings import parse_attention
from audiolitefocus.options import OPTIONS, SHORT, GenerationOptions, flag_of
from scripts.demo.world.sounds import HELD_OUT, draw
from scripts.evaluate.metrics import Estimate, mean_estimate
from scripts.evaluate.recognise import VERDICTS, tone

TONE = "a high steady tone"


@dataclass(frozen=True)
class Distance:
    """One attention at one length.

    Attributes:
        distance: of the latents from those of dense attention with the same prompts and seeds:
            norm of the difference over the norm, mean over clips.
        seconds_per_clip: of denoising, by the clock.
        steady: tones that are recognised, of `tones`.
        ripple: standard deviation of a tone's level, in dB.
    """

    attention: str
    seconds: float
    clips: int
    distance: Estimate | None
    seconds_per_clip: float
    tones: int
    steady: int | None
    ripple: Estimate | None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="demo", help="a bundle")
    add("--seconds", type=float, nargs="+", required=True, help="clip lengths")
    add("--attention", nargs="+", required=True, help="litefocus:RATIO:weight=1, ...")
    add("--prompts", type=Path, help="one a line; default: held-out captions of the demo's world")
    add("--clips", type=int, default=40, help="the first so many prompts")
    add("--tones", type=int, default=10, help=f'seeds of "{TONE}"')
    for name, preset in (("num_inference_steps", 10), ("sampler", "dpm++"), ("guidance_scale", 7)):
        option = OPTIONS[name]
        add(flag_of(name), dest=SHORT[name], type=option.rule.kind, default=preset)
    add("--seed", type=int, default=0, help="of the first clip; others follow")
    add("--batch-size", type=int, default=8)
    add("--device", default="auto")
    add("--dtype", default="auto")
    add("--results", type=Path, required=True, help="JSON file, which keeps what it holds")
    return parser.parse_args()


class Comparison:
    """Makes clips with dense and with other attention, from the same noise."""

    def __init__(self, chosen: argparse.Namespace):
        self.chosen = chosen
        self.pipe = AudioLDM2Pipeline.from_pretrained(
            chosen.model, device=chosen.device, dtype=chosen.dtype
        )
        if chosen.prompts:
            lines = chosen.prompts.read_text(encoding="utf-8").splitlines()
            self.prompts = [line for line in lines if line.strip()][: chosen.clips]
        else:
            self.prompts = [draw(HELD_OUT + i).caption for i in range(chosen.clips)]
        self.options = GenerationOptions.make(
            None, {n: getattr(chosen, n) for n in ("steps", "sampler", "guidance_scale")}
        )
        self.dense: dict[float, np.ndarray] = {}

    def about(self) -> dict:
        chosen = self.chosen
        return {
            "model": self.pipe.config.name,
            "model_files": self.pipe.config.files,
            "dtype": str(self.pipe.unet.conv_in.weight.dtype),
            "prompts": self.prompts,
            "tones": chosen.tones,
            "seed": chosen.seed,
            **{n: getattr(chosen, n) for n in ("steps", "sampler", "guidance_scale")},
        }

    def measure(self, attention: str, seconds: float) -> Distance:
        distance, steady, ripple = None, None, None
        start = time.perf_counter()
        latents = self.make(self.prompts, attention, seconds, "latent")
        spent = (time.perf_counter() - start) / len(self.prompts)
        if attention == "dense":
            self.dense[seconds] = latents
        else:
            if seconds not in self.dense:
                self.dense[seconds] = self.make(self.prompts, "dense", seconds, "latent")
            distance = mean_estimate(relative(latents, self.dense[seconds]))
        if self.chosen.tones:
            waveforms = self.make([TONE] * self.chosen.tones, attention, seconds, "np")
            steady = sum(map(VERDICTS[TONE], waveforms))
            ripple = mean_estimate(np.array([tone(waveform).ripple for waveform in waveforms]))
        clips, tones = len(self.prompts), self.chosen.tones
        return Distance(attention, seconds, clips, distance, spent, tones, steady, ripple)

    def make(self, prompts: list[str], attention: str, seconds: float, kind: str) -> np.ndarray:
        made = []
        for first in range(0, len(prompts), self.chosen.batch_size):
            batch = prompts[first : first + self.chosen.batch_size]
            seeds = range(self.chosen.seed + first, self.chosen.seed + first + len(batch))
            output = self.pipe(
                batch,
                options=self.options,
                audio_length_in_s=seconds,
                attention=attention,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type=kind,
            )
            made.append(np.asarray(output.audios))
        return np.concatenate(made)


def relative(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Norm of the difference over the norm, of every clip: (n,)."""
    difference = np.linalg.norm((found - expected).reshape(len(found), -1), axis=1)
    return difference / np.linalg.norm(expected.reshape(len(expected), -1), axis=1)


def markdown(cells: list[dict]) -> str:
    """A line for each attention and length."""
    lines = [
        "| clip | attention | distance from dense | recognised tones | ripple, dB | s a clip |",
        "|---:|---|---|---:|---|---:|",
    ]
    for cell in sorted(cells, key=lambda cell: cell["seconds"]):
        distance, ripple = (
            str(Estimate(**cell[name])) if cell[name] else "-" for name in ("distance", "ripple")
        )
        steady = "-" if cell["steady"] is None else f"{cell['steady']} of {cell['tones']}"
        lines.append(
            f"| {cell['seconds']:g} s | {cell['attention']} | {distance} | {steady} | {ripple} | "
            f"{cell['seconds_per_clip']:.2f} |"
        )
    return "\n".join(lines)


def kept(path: Path, about: dict) -> list[dict]:
    """The cells in a file of results. Raises ValueError where they were made in another way."""
    if not path.is_file():
        return []
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["about"] != json.loads(json.dumps(about)):
        raise ValueError(f"{path} holds results with other settings; name another file")
    return found["cells"]


def run(chosen: argparse.Namespace) -> list[dict]:
    """All cells, old and new."""
    for text in chosen.attention:
        parse_attention(text)
    comparison = Comparison(chosen)
    about = comparison.about()
    cells = kept(chosen.results, about)
    known = {(cell["attention"], cell["seconds"]) for cell in cells}
    for seconds in chosen.seconds:
        for attention in ("dense", *chosen.attention):
            if (attention, seconds) in known:
                continue
            cell = asdict(comparison.measure(attention, seconds))
            cells.append(cell)
            with atomic_file(chosen.results) as beside:
                beside.write_text(json.dumps({"about": about, "cells": cells}, indent=1) + "\n")
            print(markdown([cell]).splitlines()[-1], file=sys.stderr, flush=True)
    return cells


def main() -> None:
    try:
        print(markdown(run(arguments())))
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
