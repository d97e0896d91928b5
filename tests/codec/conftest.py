"""Latents that the demo model generates, as decoding meets them."""

from collections.abc import Callable

import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline


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
