"""Stage "report": how well held-out sounds survive the autoencoder, the vocoder, and both, against
an answer that is always the mean spectrum.
"""

import json

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from audiolitefocus.atomic import atomic_file
from audiolitefocus.codec.mel import log_mel
from audiolitefocus.models.vae import VAE
from audiolitefocus.models.vocoder import HiFiGAN
from scripts.demo.loop import Run
from scripts.demo.networks import load_vae
from scripts.demo.stages.vocoder import trained_vocoder
from scripts.demo.world.clips import VOCODER, chunk, clip
from scripts.demo.world.sounds import HELD_OUT, draw

CLIPS = 100
EDGE = 4  # frames at both ends that are not compared: there, the vocoder's sound is continued


def convergence(made: Tensor, sound: Tensor) -> float:
    """||A - B|| / ||B|| of the magnitudes of 1024 samples every 160."""
    window = torch.hann_window(1024)
    a, b = (
        torch.stft(x, 1024, 160, window=window, return_complex=True).abs() for x in (made, sound)
    )
    return ((a - b).norm() / b.norm()).item()


def error(made: Tensor, mel: Tensor) -> float:
    """Mean absolute difference of log-mels, in nats."""
    return (made - mel)[EDGE:-EDGE].abs().mean().item()


@torch.inference_mode()
def round_trip(vae: VAE, vocoder: HiFiGAN, mean: Tensor, seed: int) -> dict[str, float]:
    """The errors of one held-out clip."""
    samples, frames = clip(seed)
    sound, mel = torch.from_numpy(samples), torch.from_numpy(frames)
    decoded = vae.decode(vae.encode(mel[None])[0])
    direct, both = (vocoder(x)[:, : len(sound)] for x in (mel[None], decoded))
    errors = {
        "mean_mel": error(mean.expand_as(mel), mel),
        "vae": error(decoded[0], mel),
        "vocoder": error(log_mel(direct, VOCODER)[0, : len(mel)], mel),
        "both": error(log_mel(both, VOCODER)[0, : len(mel)], mel),
    }
    return errors | {
        "vocoder_convergence": convergence(direct[0], sound),
        "both_convergence": convergence(both[0], sound),
    }


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]}


def report(run: Run) -> None:
    """Write round_trip.json to `run.out`: mean log-mel errors in nats and spectral convergences, of
    all clips and of those of each family alone. On the CPU.
    """
    vae = load_vae(run.out / "vae")
    vocoder = trained_vocoder(run.out)
    mean = torch.from_numpy(chunk(run.out / "clips", 0)[1].mean((0, 1), dtype=np.float64)).float()
    seeds = range(HELD_OUT, HELD_OUT + CLIPS)
    rows = [
        round_trip(vae, vocoder, mean, seed) for seed in tqdm(seeds, desc="report", unit="clip")
    ]
    groups: dict[str, list[dict[str, float]]] = {}
    for seed, row in zip(seeds, rows, strict=True):
        families = draw(seed).families
        groups.setdefault(families[0] if len(families) == 1 else "pairs", []).append(row)
    result = {"clips": CLIPS, "first_seed": HELD_OUT, "all": means(rows)}
    result |= {"families": {name: means(group) for name, group in sorted(groups.items())}}
    with atomic_file(run.out / "round_trip.json") as part:
        part.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["all"], indent=2))
