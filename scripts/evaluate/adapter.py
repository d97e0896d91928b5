"""What an adapter of the demo model does to its own prompt, and to all others.

python -m scripts.evaluate.adapter my-sounds --prompt "a tabla" --family tabla \\
    --sounds out/real/judged --out out/adapter --results adapter.json

Clips of the prompt, before and after, get the family of the nearest sound by an outside judge's
embeddings (`scripts.evaluate.aisfx`), among SOUNDS: a folder of folders, one a family, without
those that were trained on; and again among the same sounds after autoencoder and vocoder, whose
quality no adapter changes. The family's own sounds are judged as well, each by all others.

Of other prompts, held-out captions of the demo world, the measures of `scripts.evaluate.evaluate`
are computed before and after, with the judge's Fréchet distance beside CLAP's, and what
`scripts.evaluate.recognise` recognises. Clips and embeddings are kept: the same command goes on
where it was cut off.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

from audiolitefocus.atomic import atomic_file
from audiolitefocus.audio.files import read_sound, write_sound
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.checkpoints.adapters import Adapter
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.training.data import Example
from audiolitefocus.training.encoded import encode_examples
from scripts.evaluate import evaluate
from scripts.evaluate.aisfx import Aisfx
from scripts.evaluate.embedders import embed_all
from scripts.evaluate.judge import Judge
from scripts.evaluate.metrics import ClipFeatures, Estimate, share_estimate
from scripts.evaluate.recognise import VERDICTS
from scripts.evaluate.references import DEMO_WORLD, Reference
from scripts.evaluate.runner import Evaluation

BEFORE, AFTER = "before", "after"
GUIDANCE = 7.0  # of other prompts, as wherever the demo model is measured
SEEDS = 10  # of every prompt whose sound is measured
TITLES = {"fad": "FAD", "fad_judge": "FAD, the judge's", "kl": "KL", "clap": "CLAP %"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("adapter", type=Path, help="a folder that `audiolitefocus finetune` wrote")
    add("--prompt", required=True, help="what it was trained on")
    add("--family", required=True, help="the folder in SOUNDS that its clips should be like")
    add("--sounds", type=Path, required=True, help="a folder with one of sounds for each family")
    add("--clips", type=int, default=60, help="of the prompt")
    add("--others", type=int, default=200, help="of other prompts")
    add("--guidance-scale", type=float, nargs="+", default=[1.0, 3.0, 7.0], help="of the prompt")
    add("--steps", type=int, default=25, help="of dpm++")
    add("--batch-size", type=int, default=8)
    add("--out", type=Path, required=True, help="folder for clips and embeddings")
    add("--results", type=Path, required=True, help="JSON file")
    return parser.parse_args()


class Comparison:
    """Makes and judges clips, of the model as it is and then with an adapter."""

    def __init__(self, chosen: argparse.Namespace):
        self.chosen, self.cache = chosen, chosen.out / "embeddings"
        self.adapter, self.network = Adapter.read(chosen.adapter), Aisfx()
        self.judges = {"real": Judge.read(chosen.sounds, self.network, self.cache)}
        if chosen.family not in self.judges["real"].families:
            raise ValueError(f"{chosen.sounds} has no sounds of the family {chosen.family!r}")
        flags = ["--reference", DEMO_WORLD, "--clips", chosen.others, "--sampler", "dpm++"]
        flags += ["--steps", chosen.steps, "--guidance-scale", GUIDANCE]
        flags += ["--batch-size", chosen.batch_size, "--device", "cpu", "--out", chosen.out]
        options = evaluate.options([str(flag) for flag in flags])
        evaluate.check(options)
        self.evaluation = Evaluation(options)
        self.pipe: AudioLDM2Pipeline = self.evaluation.pipe
        self.seconds = self.pipe.config.trained_seconds
        self.adapter.check(self.pipe.unet)
        coded = coded_sounds(self.pipe, self.judges["real"], chosen.out)
        self.judges["coded"] = Judge.read(coded, self.network, self.cache)

    def about(self) -> dict:
        own = ("prompt", "family", "clips", "others", "guidance_scale", "steps")
        return {
            "model_files": self.pipe.config.files,
            "adapter": self.adapter.sha256,
            "judge": self.network.name,
            **{name: getattr(self.chosen, name) for name in own},
        }

    def real(self) -> dict[str, dict]:
        """The judges' verdicts on the family's own sounds, as they are and coded."""
        own = np.flatnonzero(self.judges["real"].families == self.chosen.family)
        sets = {f"{name} sounds": judge for name, judge in self.judges.items()}
        return {k: self.verdict([judge.paths[i] for i in own], own) for k, judge in sets.items()}

    def verdict(self, sounds: list[Path], own: np.ndarray | None = None) -> dict:
        """How many are of the family, and which families are found, by each judge."""
        found: dict = {"clips": len(sounds)}
        for name, judge in self.judges.items():
            families = judge.family_of(embed_all(self.network, sounds, self.cache), own)
            count = int((families == self.chosen.family).sum())
            share = asdict(share_estimate(count, len(sounds)))
            found[name] = {"of_family": share, "families": Counter(families.tolist())}
        return found

    def own(self, when: str) -> dict[str, dict]:
        """The judges' verdicts on clips of the adapter's prompt, by guidance scale."""
        prompts, found = [self.chosen.prompt] * self.chosen.clips, {}
        for scale in self.chosen.guidance_scale:
            made = self.made(prompts, f"own-{when}-{scale:g}", guidance_scale=scale)
            found[f"{when}, guidance {scale:g}"] = self.verdict(made)
        return found

    def others(self, when: str) -> tuple[dict[str, ClipFeatures], dict]:
        """Features of clips of other prompts, by the bundle's CLAP and the judge, and a verdict."""
        evaluation = self.evaluation
        references = evaluation.references(self.seconds)
        captions = [reference.caption for reference in references]
        made = self.made(captions, f"others-{when}")
        features = {}
        for name, embedder in (("fad", evaluation.clap), ("fad_judge", self.network)):
            evaluation.embedder = embedder
            label = f"others-{when}-{name}"
            features[name] = evaluation.measure(made, references, captions, label, paired=True)
        return features, self.verdict(made)

    def recognised(self, when: str) -> dict[str, int]:
        """How many of SEEDS clips are recognised by measurement, by prompt."""
        prompts = [prompt for prompt in VERDICTS for _ in range(SEEDS)]
        found = dict.fromkeys(VERDICTS, 0)
        made = self.made(prompts, f"recognised-{when}")
        for prompt, path in zip(prompts, made, strict=True):
            waveform = read_sound(path, self.pipe.sampling_rate).numpy()
            found[prompt] += int(VERDICTS[prompt](waveform))
        return found

    def made(self, prompts: list, label: str, **changes) -> list[Path]:
        """A clip for each prompt, in a folder of that name."""
        named = [Reference(Path(f"{number:04d}.wav"), text) for number, text in enumerate(prompts)]
        options = self.evaluation.options(duration=self.seconds, **changes)
        return self.evaluation.make(named, label, options)


def coded_sounds(pipe: AudioLDM2Pipeline, judge: Judge, folder: Path) -> Path:
    """A folder of the judge's sounds after autoencoder and vocoder, encoded as for training."""
    seconds = pipe.config.trained_seconds
    frames = ClipLength(seconds, pipe.config).latent_frames
    examples = [Example(path, path.stem) for path in judge.paths]
    encoded = encode_examples(pipe, examples, seconds, folder / "encoded")
    for path, family, example in zip(judge.paths, judge.families, encoded, strict=True):
        target = folder / "coded" / family / f"{path.stem}.wav"
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            waveform = pipe.decode(example.latents[None, :, :frames])[0]
            write_sound(target, waveform, pipe.sampling_rate)
    return folder / "coded"


def run(chosen: argparse.Namespace) -> dict:
    """Everything that is found, as it is written to the results."""
    comparison = Comparison(chosen)
    found: dict = {"about": comparison.about(), "own": comparison.real()}
    found |= {"others": {}, "recognised": {}}
    features = {}
    for when in (BEFORE, AFTER):
        if when == AFTER:
            comparison.pipe.load_lora(chosen.adapter)
        found["own"] |= comparison.own(when)
        features[when], found["others"][when] = comparison.others(when)
        found["recognised"][when] = comparison.recognised(when)
    found["figures"] = figures(features[BEFORE], features[AFTER])
    with atomic_file(chosen.results) as beside:
        beside.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def figures(before: dict[str, ClipFeatures], after: dict[str, ClipFeatures]) -> dict[str, dict]:
    """By measure: before, after, and the difference, clip by clip."""
    rows: dict[str, dict] = {}
    for name in before:  # an embedder's distance; what it does not change is the same in both
        estimates = before[name].estimates(), after[name].estimates()
        difference = after[name].over(before[name])
        for measure in difference:
            columns = (*(found[measure] for found in estimates), difference[measure])
            key = name if measure == "fad" else measure
            rows[key] = dict(zip((BEFORE, AFTER, "difference"), map(asdict, columns), strict=True))
    return rows


def markdown(found: dict) -> str:
    family = found["about"]["family"]
    lines = [
        f"| | {family}, among real sounds | among coded ones | others most often, of real ones |",
        "|---|---|---|---|",
    ]
    sets = {**found["own"], **{f"other prompts, {k}": v for k, v in found["others"].items()}}
    for title, verdict in sets.items():
        shares = [Estimate(**verdict[name]["of_family"]) for name in ("real", "coded")]
        most = sorted(verdict["real"]["families"].items(), key=lambda item: -item[1])
        others = ", ".join(f"{name} {count}" for name, count in most if name != family)
        columns = (f"{verdict['clips']} {title}", *map(percent, shares), others[:60])
        lines.append(f"| {' | '.join(columns)} |")
    lines += ["", "| other prompts | before | after | difference |", "|---|---|---|---|"]
    for name, row in found["figures"].items():
        entries = " | ".join(str(Estimate(**row[key])) for key in (BEFORE, AFTER, "difference"))
        lines.append(f"| {TITLES[name]} | {entries} |")
    lines += ["", f"| recognised of {SEEDS} | before | after |", "|---|---:|---:|"]
    for prompt in VERDICTS:
        counts = " | ".join(str(found["recognised"][when][prompt]) for when in (BEFORE, AFTER))
        lines.append(f"| {prompt} | {counts} |")
    return "\n".join(lines)


def percent(share: Estimate) -> str:
    value, low, high = (round(100 * x) for x in (share.value, share.low, share.high))
    return f"{value} % ({low} to {high})"


def main() -> None:
    try:
        print(markdown(run(arguments())))
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
