"""A tiny UNet with random weights, and runs of the denoising loop on it."""

import torch

from audiolitefocus.config import ScheduleConfig, UNetConfig
from audiolitefocus.diffusion.noise import ClipNoise
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.unet import UNet
from audiolitefocus.options import GenerationOptions
from tests.support.checkpoints import randomize
from tests.support.compare import seeded

CONFIG = UNetConfig(
    channels=(32, 32, 64), heads=(1, 2, 2), attention_levels=(1, 2), resnets=1, loa_dim=16, t5_dim=8
)


def tiny_unet() -> UNet:
    return randomize(UNet(CONFIG), 0).eval().requires_grad_(False)


def tiny_condition(clips: int, seed: int, loa_dim: int = CONFIG.loa_dim) -> Condition:
    """The same text for every clip."""
    generator = seeded(seed)
    loa = torch.randn(1, 8, loa_dim, generator=generator).expand(clips, -1, -1)
    return Condition(loa, torch.randn(1, 3, 8, generator=generator).expand(clips, -1, -1))


def clip_noise(clips: int, frames: int = 16) -> torch.Tensor:
    """Initial latents, a stream for each clip."""
    shape = 1, 8, frames, 16
    return torch.cat([torch.randn(shape, generator=seeded(seed)) for seed in range(clips)])


def attention_of(options: GenerationOptions):
    """The options' attention, where "auto" is dense."""
    return "dense" if options.attention == "auto" else options.attention


@torch.inference_mode()
def run_with(denoise, options: GenerationOptions, clips: int = 1, frames: int = 16, **others):
    """Latents after every step of `denoise(noise, condition, negative, options, ...)`."""
    arguments = clip_noise(clips, frames), tiny_condition(clips, 1), tiny_condition(clips, 2)
    fresh = ClipNoise([seeded(seed) for seed in range(clips)], clips)
    others = {"attention": attention_of(options), "fresh": fresh, **others}
    return list(denoise(*arguments, options, ScheduleConfig(), **others))
