"""From options to figures: find or make the clips of a cell, embed them, compute."""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from audiolitefocus.atomic import atomic_file
from audiolitefocus.batch.names import slug
from audiolitefocus.batch.requests import ClipRequest
from audiolitefocus.batch.run import BatchRun
from audiolitefocus.checkpoints.bundle import check_sha256
from audiolitefocus.options import GenerationOptions
from audiolitefocus.pipeline import AudioLDM2Pipeline
from scripts.evaluate.embedders import Clap, Embedder, Network, embed_all, load_embedder
from scripts.evaluate.metrics import ClipFeatures, cosine_similarities, kl_divergences
from scripts.evaluate.references import Reference, read_references, recorded_caption, sound_files
from scripts.evaluate.results import GIVEN, Cell

MADE_WITH = ("steps", "sampler", "guidance_scale", "seed")  # all cells of a file of results


class Evaluation:
    """Makes and measures the clips of cells that belong together.

    Args:
        chosen: the options of `evaluate.py`.

    Attributes:
        dense: by length, features of clips made with dense attention: others are compared with it.
    """

    def __init__(self, chosen: argparse.Namespace):
        self.chosen, self.cache = chosen, chosen.out / "embeddings"
        chosen.out.mkdir(parents=True, exist_ok=True)
        self.pipe = AudioLDM2Pipeline.from_pretrained(
            chosen.model, device=chosen.device, dtype=chosen.dtype
        )
        device, own = self.pipe.device, self.pipe.folder / "classifier"
        if own.is_dir():
            check_sha256(own / "model.safetensors", self.pipe.config)
        classifier = chosen.classifier or (str(own) if own.is_dir() else None)
        self.classifier = Network(classifier, "classifier", device) if classifier else None
        self.clap = Clap(self.pipe)
        self.embedder: Embedder = self.clap
        if chosen.embedder:
            self.embedder = load_embedder(chosen.embedder, device)
        self.dense: dict[float, ClipFeatures] = {}

    def about(self) -> dict:
        """How cells are made and measured."""
        chosen = self.chosen
        made = {name: getattr(chosen, name) for name in MADE_WITH} if not chosen.sounds else {}
        return {
            "reference": chosen.reference,
            "sounds": chosen.sounds and str(chosen.sounds),
            "model": self.pipe.config.name,
            "model_files": self.pipe.config.files,
            "embedder": self.embedder.name,
            "classifier": self.classifier and self.classifier.name,
            "resamples": chosen.resamples,
            **made,
        }

    def cell(self, attention: str, seconds: float) -> Cell:
        """Of clips that are made now, or have been made before."""
        references = self.references(seconds)
        if missing := [reference.path for reference in references if not reference.caption]:
            raise ValueError(
                f"{missing[0]} has no caption to make a clip of; give --sounds instead"
            )
        label = f"{slug(attention)}-{seconds:g}"
        options = self.options(duration=seconds, attention=attention)
        made = self.make(references, label, options)
        features = self.measure(
            made, references, [r.caption for r in references], label, paired=True
        )
        if attention == "dense":
            self.dense[seconds] = features
        over_dense, resamples = None, self.chosen.resamples
        if attention != "dense" and seconds in self.dense:
            over_dense = features.over(self.dense[seconds], resamples=resamples)
        found = features.estimates(resamples=resamples)
        return Cell(attention, seconds, len(made), **found, over_dense=over_dense)

    def cell_of(self, folder: Path, seconds: float | None) -> Cell:
        """Of a folder of sounds. They are pairs with the references of the same names if all of
        them have one; else there is no KL.
        """
        references = self.references(seconds)
        if not folder.is_dir() or len(sounds := sound_files(folder)) < 2:
            raise ValueError(f"{folder} is not a folder of two sounds or more")
        by_name = {reference.name: reference for reference in references}
        captions = [
            recorded_caption(path) or (by_name[path.stem].caption if path.stem in by_name else None)
            for path in sounds
        ]
        if paired := all(path.stem in by_name for path in sounds):
            references = [by_name[path.stem] for path in sounds]
        features = self.measure(sounds, references, captions, GIVEN, paired=paired)
        found = features.estimates(resamples=self.chosen.resamples)
        return Cell(GIVEN, seconds, len(sounds), **found, over_dense=None)

    def references(self, seconds: float | None) -> list[Reference]:
        chosen = self.chosen
        return read_references(
            chosen.reference,
            sounds=chosen.reference_sounds,
            cache=chosen.out,
            seconds=seconds,
            count=chosen.clips,
        )

    def options(self, **changes) -> GenerationOptions:
        """Those that all cells share, with changes by name."""
        shared = {name: getattr(self.chosen, name) for name in MADE_WITH}
        return GenerationOptions.make(None, {**shared, **changes})

    def make(
        self,
        references: list[Reference],
        label: str,
        options: GenerationOptions,
        pipe: AudioLDM2Pipeline | None = None,
        drafter: AudioLDM2Pipeline | None = None,
    ) -> list[Path]:
        """A clip for every reference, by `pipe` or the own one; only those that are missing."""
        folder = self.chosen.out / label
        folder.mkdir(exist_ok=True)
        clips = [
            ClipRequest(
                str(r.caption),
                folder / f"{r.name}.wav",
                replace(options, seed=self.chosen.seed + i),
            )
            for i, r in enumerate(references)
        ]
        size = self.chosen.batch_size
        run = BatchRun(pipe or self.pipe, clips, batch_size=size, drafter=drafter)
        with tqdm(total=run.steps, desc=label, unit="step", disable=not run.batches) as bar:
            report = run.run(bar.update)
        for path, reason in report.failed.items():
            raise ValueError(f"{len(report.failed)} clips failed; {path}: {reason}")
        return [clip.path for clip in clips]

    def measure(
        self,
        made: list[Path],
        references: list[Reference],
        captions: list[str | None],
        label: str,
        *,
        paired: bool,
    ) -> ClipFeatures:
        """Embed clips and references; the figures of each clip go to clips-LABEL.csv."""
        theirs, of_clips = [reference.path for reference in references], {}
        embedded, reference = (embed_all(self.embedder, p, self.cache) for p in (made, theirs))
        if paired and self.classifier:
            classes = (embed_all(self.classifier, paths, self.cache) for paths in (theirs, made))
            of_clips["kl"] = kl_divergences(*classes)
        if all(captions):
            texts = self.clap.embed_texts([str(caption) for caption in captions])
            similar = cosine_similarities(texts, embed_all(self.clap, made, self.cache))
            of_clips["clap"] = 100 * similar
        with (
            atomic_file(self.chosen.out / f"clips-{label}.csv") as beside,
            open(beside, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["name", "caption", *of_clips])
            for path, caption, *row in zip(made, captions, *of_clips.values(), strict=True):
                writer.writerow([path.stem, caption, *(f"{value:.4f}" for value in row)])
        return ClipFeatures(embedded, reference, paired, of_clips)
