"""Stage "bundle": what the other stages have trained so far, in half precision, as a bundle.

Needs every stage's last checkpoint only, so that a model can be tried while it is still training.
"""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from audiolitefocus import atomic
from audiolitefocus.checkpoints import bundle as checkpoint
from audiolitefocus.checkpoints.tensors import open_safetensors, save_tensors
from audiolitefocus.config import AttentionRule, BundleConfig
from scripts.demo.loop import CURVE, CURVE_STEPS, Run
from scripts.demo.networks import last_checkpoint, load_vae, progress
from scripts.demo.stages.clap import CHUNKS as CLAP_CHUNKS
from scripts.demo.stages.clap import clap_extractor
from scripts.demo.stages.classifier import CHUNKS as CLASSIFIER_CHUNKS
from scripts.demo.stages.denoiser import LAST_STEP, PROJECTION, SCHEDULE, UNET, build
from scripts.demo.stages.diffusion import CHUNKS
from scripts.demo.stages.vae import CHUNKS as VAE_CHUNKS
from scripts.demo.stages.vocoder import CHUNKS as VOCODER_CHUNKS
from scripts.demo.stages.vocoder import trained_vocoder
from scripts.demo.world.captions import clap_tokenizer, t5_tokenizer
from scripts.demo.world.clips import FRAMES, HARDEST, OFTEN, VOCODER
from scripts.demo.world.sounds import FAMILIES

# As many weighted keys at every length: nearest to dense for their time (docs/attention.md).
ATTENTION_RULE = AttentionRule(sparse_ratio=0.2, weight=1.0, lengths=1.0)

STAGES = {  # and the thousands of clips that they were shown
    "vae": VAE_CHUNKS,
    "vocoder": VOCODER_CHUNKS,
    "clap": CLAP_CHUNKS,
    "diffusion": CHUNKS,
    "classifier": CLASSIFIER_CHUNKS,
}
MAX_BYTES = 20_000_000
LAST_ROWS = 10  # of a loss curve, of which the card tells the mean
CARD = Path(__file__).parents[1] / "model_card.md"


def save_tower(folder: Path, tower: Any, *extras) -> None:
    """A text tower in half precision, with its tokenizer and what else goes beside it."""
    tower.half().save_pretrained(folder)
    for extra in extras:
        extra.save_pretrained(folder)


def write_networks(folder: Path, run: Run) -> None:
    """Write all weights and their config to an empty folder."""
    vae = load_vae(run.out / "vae")
    vocoder = trained_vocoder(run.out)
    denoiser = last_checkpoint(run.out / "diffusion", build(run.seed))
    own = {
        "unet": denoiser.unet,
        "vae": vae,
        "vocoder": vocoder,
        "projection": denoiser.projection,
    }
    for name, network in own.items():
        tensors = {key: value.half() for key, value in network.state_dict().items()}
        save_tensors(folder / f"{name}.safetensors", tensors)
    clap = transformers.ClapModel.from_pretrained(run.out / "clap" / "tower")
    save_tower(folder / "clap", clap, clap_tokenizer(), clap_extractor())
    save_tower(folder / "t5", denoiser.t5, t5_tokenizer())
    save_tower(folder / "gpt2", denoiser.gpt2)
    shutil.copytree(run.out / "classifier" / "model", folder / "classifier")
    config = BundleConfig(
        name="demo",
        unet=UNET,
        vae=vae.config,
        vocoder=vocoder.config,
        projection=PROJECTION,
        schedule=SCHEDULE,
        attention_rule=ATTENTION_RULE,
        trained_seconds=FRAMES * VOCODER.hop_length / VOCODER.sampling_rate,
        provenance={
            "source": "scripts/train_demo.py",
            "seed": run.seed,
            "steps": [f"{stage} {progress(run.out / stage)[0]}" for stage in STAGES],
            "note": "trained on synthetic sounds, which its README.md lists",
        },
        files={checkpoint.bundle_name(p): checkpoint.sha256(p) for p in weights_of(folder)},
    )
    (folder / "config.json").write_text(config.to_json(), encoding="utf-8")


def weights_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def sizes(folder: Path) -> str:
    """Rows of how many numbers every network has."""
    rows = []
    for path in weights_of(folder):
        with open_safetensors(path) as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]
        name = checkpoint.bundle_name(path).removesuffix("/model.safetensors").split(".")[0]
        rows.append(f"| {name} | {sum(map(math.prod, shapes)):,} |")
    return "\n".join(rows)


def training(out: Path) -> str:
    """Rows of how long every stage was trained, and where its loss ended."""
    rows = []
    for stage, chunks in STAGES.items():
        steps, seconds = progress(out / stage)
        with (out / stage / CURVE).open(newline="") as file:
            curve = [row for row in csv.DictReader(file) if int(row["step"]) <= steps]
        loss = np.mean([float(row["loss"]) for row in curve[-LAST_ROWS:]])
        rows.append(f"| {stage} | {chunks},000 | {steps:,} | {seconds / 60:.0f} | {loss:.3f} |")
    return "\n".join(rows)


def reports(out: Path) -> dict[str, Any]:
    """What was measured on held-out sounds, by the names that the card uses."""
    trip, clap, classifier = (
        json.loads((out / name).read_text())
        for name in ("round_trip.json", "clap/report.json", "classifier/accuracy.json")
    )
    errors = {name: f"{trip['all'][name]:.2f}" for name in ("vae", "vocoder", "both", "mean_mel")}
    return {
        **errors,
        "round_trip_clips": trip["clips"],
        **{f"clap_{name}": value for name, value in clap.items()},
        **{f"classifier_{name}": value for name, value in classifier.items()},
    }


def model_card(folder: Path, run: Run) -> str:
    """The README of a bundle: sizes, training and quality, read from what was made. Raises
    ValueError if the bundle is too large.
    """
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes: a bundled model has at most {MAX_BYTES}")
    return CARD.read_text(encoding="utf-8").format(
        sizes=sizes(folder),
        training=training(run.out),
        last_steps=LAST_ROWS * CURVE_STEPS,
        megabytes=f"{size / 1e6:.1f}",
        families=", ".join(FAMILIES),
        seconds=f"{FRAMES * VOCODER.hop_length / VOCODER.sampling_rate:g}",
        often=", ".join(f"{name} {times} times" for name, times in OFTEN.items()),
        hardest=HARDEST,
        seed=run.seed,
        last_step=LAST_STEP,
        **reports(run.out),
    )


def make_bundle(run: Run) -> None:
    with atomic.atomic_folder(run.out / "bundle", force=True) as folder:
        write_networks(folder, run)
        card = model_card(folder, run)
        (folder / "README.md").write_text(card, encoding="utf-8")
