"""The noise schedule of training, and the training steps that each sampler visits."""

import math
import warnings

import numpy as np
from torch import Tensor

from audiolitefocus.config import ScheduleConfig

GRID = 50  # points of consistency distillation, as Luo et al. 2023 have it
SIGMA_DATA, TIME_SCALE = 0.5, 10.0  # of its boundary conditions, as in the authors' code


def alphas_cumprod(config: ScheduleConfig) -> list[float]:
    """The products of 1 - beta_t: how much signal is left at every training step."""
    low, high = math.sqrt(config.beta_start), math.sqrt(config.beta_end)
    betas = np.linspace(low, high, config.train_steps) ** 2
    return (1 - betas).cumprod().tolist()


def half_log_snr(alpha: float) -> float:
    """Half the log of the signal-to-noise ratio where the share `alpha` of the signal is left."""
    return 0.5 * math.log(alpha / (1 - alpha))


def timesteps_of(sampler: str, steps: int, train_steps: int, taken: int | None = None) -> list[int]:
    """Training steps that a sampler visits, from noise to data; the last `taken`."""
    choose = {"ddim": ddim_timesteps, "dpm++": dpm_timesteps, "lcm": lcm_timesteps}[sampler]
    return choose(steps, train_steps)[-(taken or steps) :]


def ddim_timesteps(steps: int, train_steps: int = 1000) -> list[int]:
    """From noise to data: ..., 2 s + 1, s + 1, 1 with s = train_steps // steps: 996, 991, ... 1.

    Warns where s * steps falls well short of train_steps: the clip would start from noise that the
    network takes for half-done work.
    """
    stride = train_steps // steps
    if stride * steps < 0.9 * train_steps:
        better = [
            n for n in range(1, train_steps + 1) if n * (train_steps // n) >= 0.9 * train_steps
        ]
        nearest = min(better, key=lambda n: abs(n - steps))
        warnings.warn(
            f"{steps} DDIM steps of {stride} cover only {stride * steps} of the {train_steps} "
            f"training steps; take {nearest} steps instead",
            stacklevel=2,
        )
    return [min(step * stride + 1, train_steps - 1) for step in reversed(range(steps))]


def dpm_timesteps(steps: int, train_steps: int = 1000) -> list[int]:
    """Evenly spaced from the last training step down, without 0: diffusers' "linspace"."""
    spaced = np.linspace(0, train_steps - 1, steps + 1).round().astype(int)
    return spaced[:0:-1].tolist()


def consistency_grid(train_steps: int = 1000) -> list[int]:
    """The training steps that consistency distillation visits, rising: 19, 39, ... 999."""
    points = min(GRID, train_steps)
    return [train_steps // points * (point + 1) - 1 for point in range(points)]


def lcm_timesteps(steps: int, train_steps: int = 1000) -> list[int]:
    """`steps` of the grid, evenly spread from noise on: diffusers' LCMScheduler.

    Raises:
        ValueError: more steps than the grid has.
    """
    falling = consistency_grid(train_steps)[::-1]
    if steps > len(falling):
        raise ValueError(f"{steps} steps of lcm: it takes {len(falling)} at most, 2 to 8 will do")
    return [falling[step * len(falling) // steps] for step in range(steps)]


def boundary(timestep: float) -> tuple[float, float]:
    """c_skip and c_out of a consistency function c_skip x + c_out x0 (Luo et al. 2023, 4.1).

    At timestep 0 it is the identity: 1 and 0.
    """
    scaled = TIME_SCALE * timestep
    spread = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / spread, scaled / math.sqrt(spread)


def add_noise(clean: Tensor, noise: Tensor, alpha: float) -> Tensor:
    """Latents of which the share `alpha` is left (Ho et al. 2020, equation 4)."""
    return math.sqrt(alpha) * clean + math.sqrt(1 - alpha) * noise
