"""Stage "bundle": what the other stages have trained so far, in half precision, as a bundle.

Needs every stage's last checkpoint only, so that a model can be tried while it is still training.
"""

import csv
import json
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from clips import FRAMES, OFTEN, TIMES, VOCODER
from demo_text import clap_tokenizer, t5_tokenizer
from networks import load_network
from sounds import FAMILIES
from torch import nn
from train_clap import CHUNKS as CLAP_CHUNKS
from train_clap import clap_ears
from train_diffusion import CHUNKS, PROJECTION, UNET, Denoiser, build
from train_vae import CHUNKS as VAE_CHUNKS
from train_vocoder import CHUNKS as VOCODER_CHUNKS
from training import Run

from audiolitefocus import atomic, checkpoint
from audiolitefocus.config import BundleConfig, VAEConfig, VocoderConfig
from audiolitefocus.vae import VAE
from audiolitefocus.vocoder import HiFiGAN
from audiolitefocus.weights import open_safetensors, save_tensors

STAGES = ("vae", "vocoder", "clap", "diffusion")
MAX_BYTES = 20_000_000
CARD = Path(__file__).with_name("model_card.md")


def trained_denoiser(out: Path) -> Denoiser:
    """The averaged weights of the last checkpoint. Raises ValueError if there is none."""
    path = out / "diffusion" / "checkpoint.pt"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run the stage 'diffusion'")
    denoiser = build(seed=0)
    state = torch.load(path, map_location="cpu", weights_only=True)
    denoiser.load_state_dict(state["averaged"])
    return denoiser.eval()


def save_tower(folder: Path, tower: nn.Module, *extras) -> None:
    """A text tower in half precision, with its tokenizer and what else goes beside it."""
    tower.half().save_pretrained(folder)
    for extra in extras:
        extra.save_pretrained(folder)


def last_rows(out: Path) -> dict[str, dict[str, str]]:
    """Of every stage's loss curve."""
    rows = {}
    for stage in STAGES:
        with (out / stage / "curve.csv").open(newline="") as file:
            rows[stage] = list(csv.DictReader(file))[-1]
    return rows


def write_bundle(folder: Path, run: Run) -> None:
    """Write the parts, their config and the card to an empty folder."""
    vae = load_network(run.out / "vae", "vae", VAE, VAEConfig)
    vocoder = load_network(run.out / "vocoder", "vocoder", HiFiGAN, VocoderConfig)
    clap = transformers.ClapModel.from_pretrained(run.out / "clap" / "tower")
    denoiser = trained_denoiser(run.out)
    own = {
        "unet": denoiser.unet,
        "vae": vae,
        "vocoder": vocoder,
        "projection": denoiser.projection,
    }
    for name, network in own.items():
        tensors = {key: value.half() for key, value in network.state_dict().items()}
        save_tensors(folder / f"{name}.safetensors", tensors)
    save_tower(folder / "clap", clap, clap_tokenizer(), clap_ears())
    save_tower(folder / "t5", denoiser.t5, t5_tokenizer())
    save_tower(folder / "gpt2", denoiser.gpt2)
    weights = sorted(folder.rglob("*.safetensors"))
    rows = last_rows(run.out)
    config = BundleConfig(
        name="demo",
        unet=UNET,
        vae=vae.config,
        vocoder=vocoder.config,
        projection=PROJECTION,
        trained_seconds=FRAMES * VOCODER.hop_length / VOCODER.sampling_rate,
        provenance={
            "source": "scripts/train_demo.py",
            "seed": run.seed,
            "steps": {stage: int(row["step"]) for stage, row in rows.items()},
            "note": "trained on synthetic sounds; see its README.md",
        },
        files={checkpoint.bundle_name(path): checkpoint.sha256(path) for path in weights},
    )
    (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
    (folder / "README.md").write_text(model_card(folder, run, rows), encoding="utf-8")


def model_card(folder: Path, run: Run, rows: dict[str, dict[str, str]]) -> str:
    """The README of a bundle: sizes and training read from what was made."""
    sizes, size = [], 0
    for path in sorted(folder.rglob("*.safetensors")):
        with open_safetensors(path) as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]
        name = checkpoint.bundle_name(path).removesuffix("/model.safetensors").split(".")[0]
        sizes.append(f"| {name} | {sum(map(math.prod, shapes)):,} |")
        size += path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{size} bytes of weights: a bundled model has at most {MAX_BYTES}")
    clips = dict(zip(STAGES, (VAE_CHUNKS, VOCODER_CHUNKS, CLAP_CHUNKS, CHUNKS), strict=True))
    training = [
        f"| {stage} | {clips[stage]},000 | {int(row['step']):,} | {float(row['seconds']) / 60:.0f} "
        f"| {float(row['loss']):.3f} |"
        for stage, row in rows.items()
    ]
    return CARD.read_text(encoding="utf-8").format(
        sizes="\n".join(sizes),
        training="\n".join(training),
        megabytes=f"{size / 1e6:.1f}",
        families=", ".join(FAMILIES),
        seconds=f"{FRAMES * VOCODER.hop_length / VOCODER.sampling_rate:g}",
        often=", ".join(OFTEN),
        times=TIMES,
        seed=run.seed,
        **reports(run.out),
    )


def reports(out: Path) -> dict[str, Any]:
    """What was measured on held-out sounds, by the names that the card uses."""
    trip = json.loads((out / "round_trip.json").read_text())
    clap = json.loads((out / "clap" / "report.json").read_text())
    errors = {name: f"{trip['all'][name]:.2f}" for name in ("vae", "vocoder", "both", "mean_mel")}
    return {
        **errors,
        "round_trip_clips": trip["clips"],
        **{f"clap_{name}": value for name, value in clap.items()},
    }


def make_bundle(run: Run) -> None:
    with atomic.atomic_folder(run.out / "bundle", force=True) as folder:
        write_bundle(folder, run)
