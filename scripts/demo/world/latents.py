"""Latents and conditions of the synthetic world's clips, computed once and kept as files.

Unlike recordings (`training.encoded`), clips keep their loudness, of which captions tell.
"""

from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from audiolitefocus.atomic import atomic_file
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.checkpoints.tensors import open_safetensors, save_tensors
from audiolitefocus.codec.decode import encode_mel
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.vae import VAE
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.training.encoded import Encoded
from scripts.demo.world.clips import CHUNK, clip, shown, stored
from scripts.demo.world.sounds import draw

BATCH = 6400  # frames of spectrograms that are encoded at once


@torch.inference_mode()
def encode_clips(
    pipe: AudioLDM2Pipeline, folder: Path, thousands: int, seconds: float | None = None
) -> list[Encoded]:
    """The clips of the world's first seeds, from `folder` once they are there, as often as `shown`
    has them.

    Args:
        seconds: of every clip; default: as the model was trained. As the world's sounds go on for
            as long as they are asked to, parts of long clips fit their captions too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    length = ClipLength(seconds or pipe.config.trained_seconds, pipe.config)
    frames = length.latent_frames * pipe.config.vae.downsampling
    parts = []
    for index in range(thousands):
        mels = (clip(seed, frames)[1] for seed in range(CHUNK * index, CHUNK * (index + 1)))
        path = folder / f"latents-{frames}-{index:03d}.npy"
        parts.append(stored(path, partial(encode_mels, pipe.vae, mels, frames)))
    latents = np.concatenate(parts)
    condition = _condition(pipe, folder / f"conditions-{thousands}.safetensors", thousands)
    return [
        Encoded(torch.from_numpy(latents[i]), condition[slice(i, i + 1)]) for i in shown(thousands)
    ]


@torch.no_grad()
def encode_mels(vae: VAE, mels: Iterable[np.ndarray], frames: int) -> np.ndarray:
    """Log-mels (frames, 64) -> scaled means, (n, 8, frames / 4, 16)."""
    weight, mels, means = next(vae.parameters()), iter(mels), []
    while batch := list(islice(mels, max(1, BATCH // frames))):
        means.append(encode_mel(vae, torch.from_numpy(np.stack(batch)).to(weight)).cpu())
    return (torch.cat(means) * vae.config.scale_factor).float().numpy()


def _condition(pipe: AudioLDM2Pipeline, path: Path, thousands: int) -> Condition:
    """Of all captions, one entry a clip."""
    if not path.is_file():
        captions = [draw(seed).caption for seed in range(CHUNK * thousands)]
        found = pipe.encode_prompt(captions)
        with atomic_file(path) as part:
            save_tensors(part, {name: value.cpu() for name, value in vars(found).items()})
    with open_safetensors(path) as file:
        return Condition(**{name: file.get_tensor(name) for name in ("loa", "t5", "t5_mask")})
