"""What the model must not forget: clips of its own, made before it is trained."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from audiolitefocus.atomic import atomic_file
from audiolitefocus.checkpoints.tensors import save_tensors
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.training.encoded import Encoded, read_encoded
from audiolitefocus.training.settings import Finetuning

STEPS = 25  # of dpm++


def check_kept(prompts: Sequence[str], settings: Finetuning) -> None:
    """Raise ValueError for settings of which nothing can be kept."""
    if prompts and settings.distill:
        raise ValueError("keep: distillation teaches no sounds, and needs none to be kept")
    if prompts and settings.batch_size < 2:
        raise ValueError(
            f"batch_size {settings.batch_size}: half of a batch is what is kept; at least 2"
        )


def digest(prompts: Sequence[str]) -> str:
    """By which a folder knows them again."""
    return hashlib.sha256("\0".join(prompts).encode()).hexdigest()[:16]


def make_kept(
    pipe: AudioLDM2Pipeline, prompts: Sequence[str], seconds: float, folder: Path
) -> list[Encoded]:
    """A clip of each prompt, from `folder` where it has been made before.

    Half of every batch is of these, with the noise of the model as it was for a target: prior
    preservation (Ruiz et al., "DreamBooth", CVPR 2023, section 3.3), by distillation.

    Args:
        seconds: of every clip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = [f"{name} {sha256}" for name, sha256 in sorted(pipe.config.files.items())]
    kept = []
    for number, prompt in enumerate(prompts):
        name = digest([prompt, f"{seconds:g}", str(number), *weights])
        path = folder / f"kept-{name}.safetensors"
        if not path.is_file():
            made = pipe(
                prompt,
                audio_length_in_s=seconds,
                sampler="dpm++",
                num_inference_steps=STEPS,
                seed=number,
                output_type="latent",
            )
            condition = pipe.encode_prompt(prompt)
            parts = {"latents": torch.as_tensor(made.audios[0]), **vars(condition)}
            with atomic_file(path) as part:
                save_tensors(part, {k: x.cpu() for k, x in parts.items() if x is not None})
        kept.append(read_encoded(path))
    return kept
