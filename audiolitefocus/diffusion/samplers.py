"""DDIM, DPM-Solver++(2M), and the sampler of consistency models.

Samplers are generators: they yield the latents after every step, so the caller owns progress,
previews and cancelling. They see the denoiser as a callable `predict(latents, step) -> noise`, in
float32, and what is done to the latents after every step as a callable `restore(latents, step) ->
latents`: it puts back what must stay as it is.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor

from audiolitefocus.diffusion.schedule import add_noise, boundary, half_log_snr
from audiolitefocus.options import GenerationOptions

Predict = Callable[[Tensor, int], Tensor]
Restore = Callable[[Tensor, int], Tensor]


def restore_nothing(latents: Tensor, step: int) -> Tensor:
    """The `restore` of clips that are made from noise alone."""
    return latents


def choose(
    options: GenerationOptions, noise: Callable[[int], Tensor]
) -> Callable[..., Iterator[Tensor]]:
    """The options' sampler, to be called with what all of them take.

    Args:
        noise: fresh Gaussian noise of the latents' shape for step i.
    """
    if options.sampler == "dpm++":
        return dpm_solver
    if options.sampler == "lcm":
        return partial(lcm, noise=noise)
    return partial(ddim, eta=options.eta, noise=noise)


def ddim(
    predict: Predict,
    latents: Tensor,
    timesteps: Sequence[int],
    alphas: Sequence[float],
    *,
    eta: float,
    noise: Callable[[int], Tensor],
    restore: Restore = restore_nothing,
) -> Iterator[Tensor]:
    """Denoising diffusion implicit models (Song et al. 2021, equations 12 and 16).

    Args:
        predict: the noise in latents at step i of `timesteps`.
        latents: Gaussian noise, float32.
        timesteps: decreasing, `schedule.ddim_timesteps`.
        alphas: `schedule.alphas_cumprod`. The last step goes to alphas[0], as trained, not to 1.
        eta: 0 deterministic, 1 as much fresh noise as DDPM.
        noise: fresh Gaussian noise of the latents' shape for step i; not called when eta is 0.
        restore: given the latents after step i of `timesteps`.
    """
    ends = [alphas[t] for t in timesteps] + [alphas[0]]
    for step, (alpha, alpha_next) in enumerate(pairwise(ends)):
        epsilon = predict(latents, step)
        # equation 16: how much of the noise is fresh
        sigma = eta * math.sqrt((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next))
        # equation 12: the clean latents, and towards them
        clean = (latents - math.sqrt(1 - alpha) * epsilon) / math.sqrt(alpha)
        latents = math.sqrt(alpha_next) * clean + math.sqrt(1 - alpha_next - sigma**2) * epsilon
        if eta > 0:
            latents = latents + sigma * noise(step)
        latents = restore(latents, step)
        yield latents


def dpm_solver(
    predict: Predict,
    latents: Tensor,
    timesteps: Sequence[int],
    alphas: Sequence[float],
    *,
    restore: Restore = restore_nothing,
) -> Iterator[Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2, midpoint): second order between its ends.

    The first and the last step are of first order. Args as in `ddim`; `timesteps` from
    `schedule.dpm_timesteps`. The last step goes to clean latents.
    """
    # the last estimate of the clean latents, and the last step in half log SNR
    previous, log_step = None, 0.0
    for step, (now, after) in enumerate(pairwise([*(alphas[t] for t in timesteps), 1.0])):
        clean = (latents - math.sqrt(1 - now) * predict(latents, step)) / math.sqrt(now)
        if after == 1.0:
            yield restore(clean, step)
            return
        # D_i: the estimate, extrapolated by its last change where there is one
        h = half_log_snr(after) - half_log_snr(now)
        direction = clean
        if previous is not None:
            direction = clean + (clean - previous) * (h / log_step) / 2
        # the exact solution for a direction that stays
        latents = (
            math.sqrt((1 - after) / (1 - now)) * latents
            - math.sqrt(after) * math.expm1(-h) * direction
        )
        previous, log_step = clean, h
        latents = restore(latents, step)
        yield latents


def lcm(
    predict: Predict,
    latents: Tensor,
    timesteps: Sequence[int],
    alphas: Sequence[float],
    *,
    noise: Callable[[int], Tensor],
    restore: Restore = restore_nothing,
) -> Iterator[Tensor]:
    """Multistep sampling of a consistency model (Luo et al. 2023, algorithm 3): to clean latents,
    and back to the next timestep with fresh noise.

    Args as in `ddim`; `timesteps` from `schedule.lcm_timesteps`. The last step stays clean, and has
    no noise.
    """
    for step, (timestep, after) in enumerate(pairwise([*timesteps, None])):
        assert timestep is not None
        alpha, (skip, out) = alphas[timestep], boundary(timestep)
        clean = (latents - math.sqrt(1 - alpha) * predict(latents, step)) / math.sqrt(alpha)
        latents = skip * latents + out * clean
        if after is not None:
            latents = add_noise(latents, noise(step), alphas[after])
        latents = restore(latents, step)
        yield latents
