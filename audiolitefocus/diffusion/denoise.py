"""The denoising loop: a UNet, a sampler and guidance, with everything that stays the same computed
once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audiolitefocus.audio.length import ClipLength
from audiolitefocus.checks import check_finite
from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion import samplers as sampling
from audiolitefocus.models.condition import Condition, stack_conditions
from audiolitefocus.models.layers import Signals
from audiolitefocus.models.unet import UNet


def timesteps_of(
    sampler: str, steps: int, schedule: ScheduleConfig, strength: float = 1.0
) -> list[int]:
    """The training steps that "ddim" or "dpm++" visits, from noise to data; of a recording's
    variation the last of them.
    """
    choose = sampling.ddim_timesteps if sampler == "ddim" else sampling.dpm_timesteps
    return choose(steps, schedule.train_steps)[-sampling.steps_from(strength, steps) :]


@dataclass
class Sampling:
    """How clips are denoised. Raises ValueError for less than one step.

    Attributes:
        schedule: of the noise, in training.
        sampler: "ddim" or "dpm++".
        steps: of the way from noise to data; `strength`, in (0, 1], is the share that is taken, its
            end. Below 1 it begins with the latents of a recording.
        guidance_scale: of classifier-free guidance.
        eta: fresh noise in "ddim".
        timesteps: that are visited.
    """

    schedule: ScheduleConfig
    sampler: str = "ddim"
    steps: int = 200
    strength: float = 1.0
    guidance_scale: float = 3.5
    eta: float = 1.0

    def __post_init__(self):
        self.timesteps = timesteps_of(self.sampler, self.steps, self.schedule, self.strength)


def initial_latents(
    given: Tensor | None, noise: sampling.ClipNoise, clips: int, length: ClipLength, channels: int
) -> Tensor:
    """Fresh noise, or the caller's if it is finite, fits the batch and covers the clip
    (ValueError).
    """
    if given is None:
        return noise.initial((channels, length.latent_frames, length.latent_rows))
    least, frames = length.least_latent_frames, given.shape[2] if given.ndim == 4 else 0
    if tuple(given.shape) != (clips, channels, max(frames, least), length.latent_rows):
        raise ValueError(
            f"latents {tuple(given.shape)}: {length.seconds} s for {clips} clips need "
            f"({clips}, {channels}, {least} or more, {length.latent_rows})"
        )
    check_finite("latents", given)
    return given


@dataclass(frozen=True, eq=False)
class Known:
    """The latents of a recording, of which clips are made.

    Attributes:
        latents: (1, 8, t, 16), clean.
        changed: (t,) bool, frames that are made anew; the others are put back after every step.
    """

    latents: Tensor
    changed: Tensor

    def to(self, device: torch.device) -> "Known":
        return Known(self.latents.to(device), self.changed.to(device))

    def hold(self, noise: Tensor, reached: Sequence[float]) -> sampling.Hold:
        """What puts frames back: with the initial noise, as much as is left after a step, which
        `reached` tells; at the end without. So does diffusers' inpainting.
        """
        if self.changed.all():
            return sampling.hold_nothing

        def put_back(latents: Tensor, step: int) -> Tensor:
            held = sampling.add_noise(self.latents, noise, reached[step])
            return torch.where(self.changed[:, None], latents, held)

        return put_back


def denoise(
    unet: UNet,
    noise: Tensor,
    condition: Condition,
    negative: Condition | None,
    way: Sampling,
    *,
    fresh: sampling.ClipNoise | None = None,
    known: Known | None = None,
    evaluate: Callable[[Tensor, Signals], Tensor] | None = None,
) -> Iterator[Tensor]:
    """Yields the latents (clips, 8, t, 16), float32, after every step.

    Args:
        unet: whose `use_attention` has been called.
        noise: Gaussian (clips, 8, t, 16).
        condition, negative: one entry a clip; without `negative` there is no guidance.
        fresh: noise for "ddim" with eta above 0.
        known: latents of a recording to start from, or to keep in part.
        evaluate: `unet.denoise`, or a compiled form of it.
    """
    evaluate, device = evaluate or unet.denoise, unet.conv_in.weight.device
    both = condition if negative is None else stack_conditions([negative, condition])
    keys_values, mask = unet.keys_values(both)
    biases = unet.time_biases(torch.tensor(way.timesteps))

    def predict(latents: Tensor, step: int) -> Tensor:
        time = [bias[step : step + 1] for bias in biases]
        epsilon = evaluate(latents, Signals(time, keys_values, mask, unet.draw(latents)))
        return epsilon if negative is None else sampling.guide(epsilon, way.guidance_scale)

    latents, alphas = noise.to(device, torch.float32), sampling.alphas_cumprod(way.schedule)
    hold: sampling.Hold = sampling.hold_nothing
    if known is not None:
        known, levels = known.to(device), [alphas[t] for t in way.timesteps]
        hold = known.hold(latents, [*levels[1:], 1.0])
        if way.strength < 1:
            latents = sampling.add_noise(known.latents, latents, levels[0])
    if way.sampler == "dpm++":
        yield from sampling.dpm_solver(predict, latents, way.timesteps, alphas, hold=hold)
    else:
        source, shape = fresh or sampling.ClipNoise(None, len(latents)), latents.shape[1:]
        yield from sampling.ddim(
            predict,
            latents,
            way.timesteps,
            alphas,
            eta=way.eta,
            noise=lambda: source.fresh(shape).to(device),
            hold=hold,
        )
