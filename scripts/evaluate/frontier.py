"""Quality against cost: what is gained by fewer steps, by reuse between them, by less guidance.

python -m scripts.evaluate.frontier --clips 200 --seconds 2.56 --out frontier \\
    --full steps=25 --variants steps=17 steps=13 reuse=deepcache:3 "guidance_interval=0:0.8"

A variant is a list of options, NAME=VALUE with commas between; what it does not name is --full's.
Those that name a drafter_interval are made with the second model, --drafter; those of the sampler
lcm by weights with the distilled adapter, --lora.
For each: FAD, KL and CLAP of its clips and how they differ from the full run's, clip by clip; the
distance of log-mel spectrograms and of latents; counted operations as a share of the full run's;
and the time of denoising, taken turn by turn. The same command goes on where it was cut off.
"""

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from audiolitefocus.atomic import atomic_file
from audiolitefocus.audio.files import read_sound
from audiolitefocus.batch.names import SLUG_CHARACTERS, slug
from audiolitefocus.codec.mel import log_mel
from audiolitefocus.options import GenerationOptions
from audiolitefocus.pipeline import AudioLDM2Pipeline
from scripts.benchmark.timing import machine, turns
from scripts.evaluate.frontier_report import markdown
from scripts.evaluate.metrics import ClipFeatures, Estimate, mean_estimate
from scripts.evaluate.references import DEMO_WORLD
from scripts.evaluate.run_costs import RunCosts
from scripts.evaluate.runner import Evaluation
from scripts.plots.frontier import plot

TIMED_CLIPS, TURNS = 4, 3


@dataclass(frozen=True)
class Point:
    """One variant at one length.

    Attributes:
        cost: counted operations over those of the full run; None where they depend on the clip, or
            where both models reuse.
        time: of denoising over the full run's, by the clock, taken in turns.
        log_mel: mean absolute difference of log-mel spectrograms from the full run's, in nats.
        over_full: metric by metric, less that of the full run, clip by clip.
    """

    variant: str
    seconds: float
    clips: int
    cost: float | None
    time: float | None
    log_mel: Estimate | None
    fad: Estimate
    kl: Estimate | None
    clap: Estimate | None
    over_full: dict[str, Estimate] | None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--reference", default=DEMO_WORLD, help="as in scripts.evaluate.evaluate")
    add("--reference-sounds", type=Path)
    add("--model", default="demo")
    add("--drafter", help="a second model, as --model")
    add("--lora", help="an adapter for the sampler lcm, as finetune --distill makes them")
    add("--clips", type=int, default=200)
    add("--seconds", type=float, required=True)
    add("--full", default="steps=25", help="the run that others are compared with")
    add("--variants", nargs="*", default=[])
    add("--sampler", default="dpm++")
    add("--steps", type=int, default=25)
    add("--guidance-scale", type=float, default=7.0)
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, default=8)
    add("--embedder")
    add("--classifier")
    add("--resamples", type=int, default=1000)
    add("--device", default="auto")
    add("--dtype", default="auto")
    add("--no-time", action="store_true", help="take no times")
    add("--out", type=Path, required=True, help="folder for clips and all else")
    add("--results", type=Path, help="JSON file; default: frontier.json in that folder")
    chosen = parser.parse_args()
    chosen.sounds = None
    return chosen


class Frontier:
    """Variants of a run, made and compared with the full one."""

    def __init__(self, chosen: argparse.Namespace):
        self.chosen, self.evaluation = chosen, Evaluation(chosen)
        self.pipe = self.evaluation.pipe
        self.drafter: AudioLDM2Pipeline | None = None
        if chosen.drafter:
            self.drafter = AudioLDM2Pipeline.from_pretrained(
                chosen.drafter, device=chosen.device, dtype=chosen.dtype
            )
        self.few_steps: AudioLDM2Pipeline | None = None
        if chosen.lora:
            self.few_steps = AudioLDM2Pipeline.from_pretrained(
                chosen.model, device=chosen.device, dtype=chosen.dtype
            )
            self.few_steps.load_lora(chosen.lora)
        self.references = self.evaluation.references(chosen.seconds)
        self.full = self.options(chosen.full)
        self.costs = RunCosts(self.pipe, self.drafter, chosen.seconds)
        self.full_features: ClipFeatures | None = None
        self.full_sounds: list[Path] = []

    def options(self, variant: str) -> GenerationOptions:
        pairs = [part.partition("=")[::2] for part in variant.split(",")]
        changes: dict[str, object] = {"duration": self.chosen.seconds}
        for name, text in pairs:
            number = text.replace(".", "", 1).isdigit()
            changes[name] = (float(text) if "." in text else int(text)) if number else text
        if variant == self.chosen.full:
            return self.evaluation.options(**changes)
        return GenerationOptions.make(self.full, changes)

    def point(self, variant: str) -> Point:
        options, chosen = self.options(variant), self.chosen
        label = f"{folder_name(variant)}-{chosen.seconds:g}"
        models = self.pipe_of(options), self.drafter_of(options)
        made = self.evaluation.make(self.references, label, options, *models)
        captions = [reference.caption for reference in self.references]
        features = self.evaluation.measure(made, self.references, captions, label, paired=True)
        over_full, log_mels, time = None, None, None
        if self.full_features is None:
            self.full_features, self.full_sounds = features, made
        else:
            over_full = features.over(self.full_features, resamples=chosen.resamples)
            log_mels = mean_estimate(self.distances(made))
            time = None if chosen.no_time else self.time(options)
        found = features.estimates(resamples=chosen.resamples)
        figures = {name: found.get(name) for name in ("fad", "kl", "clap")}
        return Point(
            variant,
            chosen.seconds,
            len(made),
            self.cost(options),
            time,
            log_mels,
            **figures,  # type: ignore[arg-type]
            over_full=over_full,
        )

    def pipe_of(self, options: GenerationOptions) -> AudioLDM2Pipeline:
        """The model, for the sampler lcm with the adapter."""
        few = self.few_steps is not None and options.sampler == "lcm"
        return self.few_steps if few else self.pipe  # type: ignore[return-value]

    def drafter_of(self, options: GenerationOptions) -> AudioLDM2Pipeline | None:
        """The second model, for options that have steps for it."""
        return None if options.drafter_interval is None else self.drafter

    def distances(self, made: list[Path]) -> np.ndarray:
        """Mean absolute difference of log-mel spectrograms, of every clip: (n,)."""
        config = self.pipe.config.vocoder

        def mel(path: Path) -> torch.Tensor:
            return log_mel(read_sound(path, config.sampling_rate)[None], config)

        pairs = zip(made, self.full_sounds, strict=True)
        return np.array([float((mel(x) - mel(y)).abs().mean()) for x, y in pairs])

    def cost(self, options: GenerationOptions) -> float | None:
        """Counted operations over the full run's."""
        own, full = self.costs.of(options), self.costs.of(self.full)
        return None if own is None or full is None else own / full

    def time(self, options: GenerationOptions) -> float:
        """Time of denoising a few clips over the full run's, in turns."""
        prompts = [str(reference.caption) for reference in self.references[:TIMED_CLIPS]]

        def denoise(chosen: GenerationOptions):
            options, drafter = replace(chosen, seed=0), self.drafter_of(chosen)
            return lambda: self.pipe_of(options)(
                prompts, options=options, drafter=drafter, output_type="latent"
            )

        calls = {"full": denoise(self.full), "this": denoise(options)}
        first = dict.fromkeys(calls, 0.0)
        taken = turns(
            calls,
            device=self.pipe.device.type,
            repeats=TURNS,
            first=first,
            deadline=float("inf"),
        )
        return float(np.median(np.array(taken["this"]) / np.array(taken["full"])))


def folder_name(variant: str) -> str:
    """Its slug, with a digest where that is cut off and others might have the same."""
    name = slug(variant)
    if len(name) < SLUG_CHARACTERS - 1:  # a cut may end in a hyphen, which goes too
        return name
    return f"{name}-{hashlib.sha256(variant.encode()).hexdigest()[:8]}"


def run(chosen: argparse.Namespace) -> list[dict]:
    """All points, old and new."""
    if not chosen.drafter and any("drafter_interval=" in text for text in chosen.variants):
        raise ValueError("a variant with drafter_interval needs --drafter")
    if not chosen.lora and any("sampler=lcm" in text for text in chosen.variants):
        raise ValueError("a variant with sampler=lcm needs --lora")
    frontier = Frontier(chosen)
    path = chosen.results or chosen.out / "frontier.json"
    about = {**frontier.evaluation.about(), "full": chosen.full}
    if frontier.drafter is not None:
        config = frontier.drafter.config
        about |= {"drafter": config.name, "drafter_files": config.files}
    if frontier.few_steps is not None:
        about |= {"few_steps_files": frontier.few_steps.config.files}
    found = {"about": about, "machine": machine("cpu"), "points": []}
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["about"] != json.loads(json.dumps(about)):
            raise ValueError(f"{path} holds results with other settings; name another folder")
    points: list[dict] = found["points"]  # type: ignore[assignment]
    known = {(point["variant"], point["seconds"]) for point in points}
    for variant in chosen.variants:
        frontier.options(variant)  # invalid ones are refused before any work
    for variant in (chosen.full, *chosen.variants):
        if (variant, chosen.seconds) in known and variant != chosen.full:
            continue
        point = asdict(frontier.point(variant))
        if (variant, chosen.seconds) not in known:
            points.append(point)
        with atomic_file(path) as beside:
            beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(markdown([point]).splitlines()[-1], file=sys.stderr, flush=True)
    return points


def main() -> None:
    chosen = arguments()
    try:
        points = run(chosen)
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"error: {error}")
    try:
        plot(points, chosen.out / "frontier.png")
    except ModuleNotFoundError:
        print("no plot: pip install 'audiolitefocus[plot]'", file=sys.stderr)
    print(markdown(points))


if __name__ == "__main__":
    main()
