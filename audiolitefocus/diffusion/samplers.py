"""The noise schedule, DDIM and DPM-Solver++(2M), guidance, and where the noise comes from.

Samplers are generators: they yield the latents after every step, so the caller owns progress,
previews and cancelling. They see the denoiser as a callable `predict(latents, step) -> noise`, in
float32, and what must stay as it is as a callable `hold(latents, step) -> latents`, which puts it
back after every step.
"""

import math
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from itertools import pairwise

import torch
from torch import Tensor

from audiolitefocus.config import ScheduleConfig

Predict = Callable[[Tensor, int], Tensor]
Hold = Callable[[Tensor, int], Tensor]


def alphas_cumprod(config: ScheduleConfig) -> list[float]:
    """The products of 1 - beta_t: how much signal is left at every training step."""
    low, high = math.sqrt(config.beta_start), math.sqrt(config.beta_end)
    betas = torch.linspace(low, high, config.train_steps, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).tolist()


def ddim_timesteps(steps: int, train_steps: int = 1000) -> list[int]:
    """From noise to data: ..., 2 s + 1, s + 1, 1 with s = train_steps // steps, as trained: 996,
    991, ... 1.

    Where s * steps falls well short of train_steps, the clip would start from noise that the
    network takes for half-done work: that is said in a warning.
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
    spaced = torch.linspace(0, train_steps - 1, steps + 1, dtype=torch.float64).round().long()
    return spaced.flip(0)[:-1].tolist()


def steps_from(strength: float, steps: int) -> int:
    """How many of the sampler's last steps a clip takes that starts from a recording: counted as
    diffusers does, rounded down. Raises ValueError if that is none.
    """
    taken = int(steps * strength)
    if taken < 1:
        raise ValueError(f"strength {strength:g} of {steps} steps is not one whole step")
    return taken


def add_noise(clean: Tensor, noise: Tensor, alpha: float) -> Tensor:
    """Latents of which the share `alpha` (of `alphas_cumprod`) is left (Ho et al. 2020,
    equation 4).
    """
    return math.sqrt(alpha) * clean + math.sqrt(1 - alpha) * noise


def hold_nothing(latents: Tensor, step: int) -> Tensor:
    return latents


def ddim(
    predict: Predict,
    latents: Tensor,
    timesteps: Sequence[int],
    alphas: Sequence[float],
    *,
    eta: float,
    noise: Callable[[], Tensor],
    hold: Hold = hold_nothing,
) -> Iterator[Tensor]:
    """Denoising diffusion implicit models (Song et al. 2021, equations 12 and 16).

    Args:
        predict: the noise in latents at step i of `timesteps`.
        latents: Gaussian noise, float32.
        timesteps: decreasing, `ddim_timesteps`.
        alphas: `alphas_cumprod`. The last step goes to alphas[0], as in training, not to 1.
        eta: 0 deterministic, 1 as much fresh noise as DDPM.
        noise: fresh Gaussian noise of the latents' shape; not called when eta is 0.
        hold: given the latents after step i of `timesteps`.
    """
    ends = [alphas[t] for t in timesteps] + [alphas[0]]
    for step, (alpha, alpha_next) in enumerate(pairwise(ends)):
        epsilon = predict(latents, step)
        sigma = eta * math.sqrt((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next))
        clean = (latents - math.sqrt(1 - alpha) * epsilon) / math.sqrt(alpha)
        latents = math.sqrt(alpha_next) * clean + math.sqrt(1 - alpha_next - sigma**2) * epsilon
        if eta > 0:
            latents = latents + sigma * noise()
        latents = hold(latents, step)
        yield latents


def dpm_solver(
    predict: Predict,
    latents: Tensor,
    timesteps: Sequence[int],
    alphas: Sequence[float],
    *,
    hold: Hold = hold_nothing,
) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2, midpoint): first order at both ends, second
    order between.

    Args as in `ddim`; `timesteps` from `dpm_timesteps`. The last step goes to clean latents.
    """
    previous, log_step = (
        None,
        0.0,
    )  # the last estimate of the clean latents, and the last step in log SNR
    for step, (now, after) in enumerate(pairwise([*(alphas[t] for t in timesteps), 1.0])):
        clean = (latents - math.sqrt(1 - now) * predict(latents, step)) / math.sqrt(now)
        if after == 1.0:
            yield hold(clean, step)
            return
        h = _half_log_snr(after) - _half_log_snr(now)
        direction = clean
        if previous is not None:
            direction = clean + (clean - previous) * (h / log_step) / 2
        latents = (
            math.sqrt((1 - after) / (1 - now)) * latents
            - math.sqrt(after) * math.expm1(-h) * direction
        )
        previous, log_step = clean, h
        latents = hold(latents, step)
        yield latents


def _half_log_snr(alpha: float) -> float:
    return 0.5 * math.log(alpha / (1 - alpha))


def guide(noise: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022) of a batch of two: unconditional, then
    conditional.
    """
    unconditional, conditional = noise.chunk(2)
    return unconditional + scale * (conditional - unconditional)


class ClipNoise:
    """Gaussian noise for a batch of clips, each from a stream of its own, so that no clip depends
    on its batch.

    Initial latents come from the caller's generators, clip after clip: what diffusers draws from
    the same generators. Fresh noise comes from one more generator a clip, seeded from a copy of the
    caller's state. The global random state is neither read nor changed.

    Args:
        generator: one for all clips, one for each, or None for an unpredictable seed.
        clips: their number.

    Raises:
        ValueError: a list of another length than `clips`.
    """

    def __init__(self, generator: torch.Generator | Sequence[torch.Generator] | None, clips: int):
        if generator is None:
            generator = torch.Generator().manual_seed(secrets.randbits(63))
        if isinstance(generator, torch.Generator):
            generator = [generator] * clips
        self.initial_streams = list(generator)
        if len(self.initial_streams) != clips:
            raise ValueError(
                f"{len(self.initial_streams)} generators for {clips} clips: give one for each"
            )
        self.seeds = _peek_seeds(self.initial_streams)
        self.fresh_streams = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def part(self, clips: slice) -> "ClipNoise":
        """The fresh noise of some of the clips, from its beginning."""
        part = copy(self)
        part.initial_streams, part.seeds = self.initial_streams[clips], self.seeds[clips]
        part.fresh_streams = [torch.Generator().manual_seed(seed) for seed in part.seeds]
        return part

    def initial(self, shape: Sequence[int]) -> Tensor:
        """(clips, *shape) on the CPU, float32."""
        return _normal(self.initial_streams, shape)

    def fresh(self, shape: Sequence[int]) -> Tensor:
        """(clips, *shape) on the CPU, float32, new at every call."""
        return _normal(self.fresh_streams, shape)


def _normal(streams: list[torch.Generator], shape: Sequence[int]) -> Tensor:
    drawn = [
        torch.randn((1, *shape), generator=g, device=g.device, dtype=torch.float32) for g in streams
    ]
    return torch.cat([noise.cpu() for noise in drawn])


def _peek_seeds(streams: list[torch.Generator]) -> list[int]:
    """A seed for each clip that follows from its generator's state, without advancing it; clips of
    one generator get different seeds.
    """
    copies = {id(stream): stream.clone_state() for stream in streams}
    return [
        int(torch.randint(2**62, (), generator=copies[id(stream)], device=stream.device))
        for stream in streams
    ]
