"""Stage "vae": the autoencoder between log-mel spectrograms and latents. Absolute error of the
log-mel and a small KL term (Kingma and Welling 2014); the scale factor is one over the latents'
standard deviation, as in latent diffusion (Rombach et al. 2022).
"""

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audiolitefocus.config import VAEConfig
from audiolitefocus.models.vae import VAE
from scripts.demo.loop import Losses, Run, train
from scripts.demo.networks import save_vae
from scripts.demo.world.clips import CHUNK, FRAMES, chunk

CONFIG = VAEConfig(channels=(16, 32, 64), resnets=1, norm_groups=4)
CHUNKS = 8  # thousands of clips
STEPS, RATE = 6000, 2e-3
BATCH_FRAMES = 256  # in pieces of one of these lengths: what is learnt holds for any length
PIECES = (64, 64, 128, 256)
KL_WEIGHT = 0.01  # of nats a latent, against the absolute error a mel value


def stored_mels(folder: Path, chunks: int = CHUNKS) -> list[np.ndarray]:
    return [chunk(folder, index)[1] for index in range(chunks)]


def pieces(mels: list[np.ndarray]) -> Tensor:
    """A batch (b, t, 64) cut from random clips."""
    length = PIECES[torch.randint(len(PIECES), ())]
    count = BATCH_FRAMES // length
    indices = torch.randint(len(mels) * CHUNK, (count,)).tolist()
    starts = torch.randint(FRAMES - length + 1, (count,)).tolist()
    cut = [
        mels[i // CHUNK][i % CHUNK, s : s + length] for i, s in zip(indices, starts, strict=True)
    ]
    return torch.from_numpy(np.stack(cut)).float()


def build(mels: list[np.ndarray]) -> VAE:
    """A VAE whose first layer expects the mean and deviation of these mels."""
    torch.manual_seed(0)
    sample = torch.from_numpy(mels[0][:200].astype(np.float32))
    vae: VAE = VAE(CONFIG).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        vae.encoder.conv_in.weight /= sample.std()
        vae.encoder.conv_in.bias -= sample.mean() * vae.encoder.conv_in.weight.sum((1, 2, 3))
        vae.decoder.conv_out.bias.fill_(sample.mean())
    return vae


def vae_loss(run: Run, vae: VAE, mel: Tensor) -> Losses:
    mel = mel.to(run.device)
    with run.autocast():
        mean, log_variance = vae.encode(mel)
        mean, log_variance = mean.float(), log_variance.float()
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        decoded = vae.decode(latents).float()
    error = (decoded - mel).abs().mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return {"loss": error + KL_WEIGHT * kl, "mel_error": error, "kl": kl}


@torch.no_grad()
def scale_factor(vae: VAE, mels: np.ndarray) -> float:
    """One over the standard deviation of all latents of these mels."""
    device = next(vae.parameters()).device
    means = [
        vae.encode(mel)[0] for mel in torch.from_numpy(mels.astype(np.float32)).to(device).split(25)
    ]
    return 1 / torch.cat(means).std().item()


def train_vae(run: Run) -> None:
    mels = stored_mels(run.out / "clips")
    vae = build(mels)
    averaged = train(
        run, "vae", vae, lambda: vae_loss(run, vae, pieces(mels)), steps=STEPS, rate=RATE
    )
    scale = scale_factor(averaged, mels[0][:500])
    averaged.config = dataclasses.replace(CONFIG, scale_factor=round(scale, 4))
    save_vae(run.folder("vae"), averaged)
