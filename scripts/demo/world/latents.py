"""Latents and conditions of the synthetic world's clips, computed once and kept as files.

Unlike recordings (`training.encoded`), clips keep their loudness, of which captions tell.
"""

from pathlib import Path

import numpy as np
import torch

from audiolitefocus.atomic import atomic_file
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.checkpoints.tensors import open_safetensors, save_tensors
from audiolitefocus.codec.decode import encode_mel
from audiolitefocus.models.condition import Condition
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.training.encoded import Encoded
from scripts.demo.world.clips import CHUNK, clip, shown
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
    latents = np.concatenate([_latents(pipe, folder, i, frames) for i in range(thousands)])
    condition = _condition(pipe, folder / f"conditions-{thousands}.safetensors", thousands)
    return [
        Encoded(torch.from_numpy(latents[i]), condition[slice(i, i + 1)]) for i in shown(thousands)
    ]


def _latents(pipe: AudioLDM2Pipeline, folder: Path, index: int, frames: int) -> np.ndarray:
    """Scaled means of a thousand clips, (1000, 8, frames / 4, 16)."""
    path = folder / f"latents-{frames}-{index:03d}.npy"
    if not path.is_file():
        weight = next(pipe.vae.parameters())
        seeds = range(CHUNK * index, CHUNK * (index + 1))
        means = []
        for batch in torch.tensor(seeds).split(max(1, BATCH // frames)):
            mels = np.stack([clip(int(seed), frames)[1] for seed in batch])
            means.append(encode_mel(pipe.vae, torch.from_numpy(mels).to(weight)).cpu())
        with atomic_file(path) as part, part.open("wb") as file:
            np.save(file, (torch.cat(means) * pipe.config.vae.scale_factor).float().numpy())
    return np.load(path)


def _condition(pipe: AudioLDM2Pipeline, path: Path, thousands: int) -> Condition:
    """Of all captions, one entry a clip."""
    if not path.is_file():
        captions = [draw(seed).caption for seed in range(CHUNK * thousands)]
        found = pipe.encode_prompt(captions)
        with atomic_file(path) as part:
            save_tensors(part, {name: value.cpu() for name, value in vars(found).items()})
    with open_safetensors(path) as file:
        return Condition(**{name: file.get_tensor(name) for name in ("loa", "t5", "t5_mask")})
