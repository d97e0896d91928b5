"""The demo model's autoencoder and vocoder, and latents that it generates."""

from collections.abc import Callable

import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline, load_component
from audiolitefocus.config import demo_folder


@pytest.fixture(scope="session")
def generate() -> Callable[[list[str], float, int], torch.Tensor]:
    """Prompts, seconds and steps -> latents (n, 8, t, 16), scaled as the denoiser has them."""
    pipe = AudioLDM2Pipeline.from_pretrained("demo", device="cpu")

    def latents(prompts: list[str], seconds: float, steps: int) -> torch.Tensor:
        return pipe(
            prompts,
            audio_length_in_s=seconds,
            num_inference_steps=steps,
            sampler="dpm++",
            guidance_scale=7.0,
            generator=[torch.Generator().manual_seed(seed) for seed in range(len(prompts))],
            output_type="latent",
        ).audios

    return latents


@pytest.fixture(scope="session")
def vae():
    return load_component(demo_folder(), "vae", dtype=torch.float32)


@pytest.fixture(scope="session")
def vocoder():
    return load_component(demo_folder(), "vocoder", dtype=torch.float32)
