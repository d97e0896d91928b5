"""Latents and conditions of the examples, computed once and kept on disk."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from audiolitefocus.atomic import atomic_file
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.audio.samples import load_recording
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.checkpoints.tensors import open_safetensors, save_tensors
from audiolitefocus.codec.decode import encode_mel
from audiolitefocus.codec.mel import log_mel
from audiolitefocus.diffusion.recording import PEAK, SILENCE
from audiolitefocus.models.condition import Condition
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.training.data import Example


@dataclass(frozen=True)
class Encoded:
    """An example as the UNet sees it.

    Attributes:
        latents: (8, t, 16), scaled means of the autoencoder, at least as long as the longest clip.
        condition: of its caption, one entry.
    """

    latents: Tensor
    condition: Condition


@torch.inference_mode()
def encode_examples(
    pipe: AudioLDM2Pipeline, examples: Sequence[Example], seconds: float, folder: Path
) -> list[Encoded]:
    """Every example, from `folder` where it has been encoded before.

    Args:
        seconds: of the longest clips that are trained on; shorter sounds are followed by silence.

    Raises:
        ValueError: a sound that cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = [pipe.config.files.get(f"{name}.safetensors") for name in ("vae", "projection")]
    encoded = []
    for example in examples:
        key = [sha256(example.path), example.caption, f"{seconds:g}", *map(str, weights)]
        name = hashlib.sha256("\0".join(key).encode()).hexdigest()[:24]
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            with atomic_file(path) as part:
                save_tensors(part, _encode(pipe, example, seconds))
        encoded.append(read_encoded(path))
    return encoded


def _encode(pipe: AudioLDM2Pipeline, example: Example, seconds: float) -> dict[str, Tensor]:
    # 1. The sound, as loud as what the autoencoder was trained on, in whole latent frames
    config = pipe.config
    waveform = load_recording(example.path, pipe.sampling_rate)
    waveform = waveform - waveform.mean()
    peak = float(waveform.abs().max()) if len(waveform) else 0.0
    waveform = waveform * (PEAK / peak if peak > SILENCE else 1.0)
    per_frame = config.vae.downsampling * config.vocoder.hop_length
    least = ClipLength(seconds, config).latent_frames
    frames = max(least, math.ceil(len(waveform) / per_frame))
    waveform = F.pad(waveform, (0, frames * per_frame - len(waveform)))

    # 2. Log-mel -> latents
    mel = log_mel(waveform[None], config.vocoder)[:, : frames * config.vae.downsampling]
    with pipe.on_device(pipe.vae):
        means = encode_mel(pipe.vae, mel.to(next(pipe.vae.parameters())))
    latents = (means[0] * config.vae.scale_factor).float().cpu()

    # 3. Caption -> condition
    condition = pipe.encode_prompt(example.caption)
    parts = {"loa": condition.loa, "t5": condition.t5, "t5_mask": condition.t5_mask}
    known = {name: part.cpu() for name, part in parts.items() if part is not None}
    return {"latents": latents, **known}


def read_encoded(path: Path) -> Encoded:
    with open_safetensors(path) as file:
        parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    latents = parts.pop("latents")
    return Encoded(latents, Condition(parts["loa"], parts.get("t5"), parts.get("t5_mask")))
