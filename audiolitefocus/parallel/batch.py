"""The clips of a call shared out, each on one device: what one device makes."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion.denoise import denoise
from audiolitefocus.diffusion.network import Network
from audiolitefocus.diffusion.noise import ClipNoise
from audiolitefocus.models.condition import Condition
from audiolitefocus.options import GenerationOptions


def denoise_clips(
    networks: Sequence[Network],
    noise: Tensor,
    condition: Condition,
    negative: Condition | None,
    options: GenerationOptions,
    schedule: ScheduleConfig,
    *,
    fresh: ClipNoise | None = None,
    **others,
) -> Iterator[Tensor]:
    """`denoise` of a group of the clips by each network; its latents are those of the first device.

    Groups take turns step by step, so that all devices have work. `step_end` is called for each.
    Of a clip in windows, each network has groups of them.
    """
    if others.get("window") is not None:
        first = networks[0]
        arguments = noise, condition, negative, options, schedule
        others |= {"evaluate": first.evaluate, "others": networks[1:]}
        yield from denoise(first.unet, *arguments, fresh=fresh, **others)
        return
    fresh = fresh or ClipNoise(None, len(noise))
    groups = shares(len(noise), len(networks))
    runs = [
        denoise(
            network.unet,
            noise[group],
            condition[group],
            None if negative is None else negative[group],
            options,
            schedule,
            fresh=fresh[group],
            evaluate=network.evaluate,
            **others,
        )
        for network, group in zip(networks, groups, strict=False)
    ]
    for made in zip(*runs, strict=True):
        yield torch.cat([latents.to(made[0].device, non_blocking=True) for latents in made])


def shares(clips: int, devices: int) -> list[slice]:
    """Clips in order, as evenly as they go, for so many devices or fewer."""
    ends = [clips * (n + 1) // devices for n in range(devices)]
    starts = [0, *ends]
    return [slice(a, b) for a, b in zip(starts, ends, strict=False) if b > a]
