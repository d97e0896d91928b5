"""The denoising loop: UNet, sampler and guidance, with everything constant computed once."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from audiolitefocus.attention.settings import Attention
from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion import samplers
from audiolitefocus.diffusion.branches import Branches, OneNetwork
from audiolitefocus.diffusion.guidance import Agreement, guidance_scales
from audiolitefocus.diffusion.inpaint import KnownLatents
from audiolitefocus.diffusion.network import Draws, Evaluate, Network, Run
from audiolitefocus.diffusion.noise import ClipNoise
from audiolitefocus.diffusion.schedule import add_noise, alphas_cumprod, timesteps_of
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.unet import UNet
from audiolitefocus.ops.transfer import to_device
from audiolitefocus.options import GenerationOptions

StepEnd = Callable[[int, int, Tensor], Tensor]  # step, timestep, latents -> those to go on with


def denoise(
    unet: UNet,
    noise: Tensor,
    condition: Condition,
    negative: Condition | None,
    options: GenerationOptions,
    schedule: ScheduleConfig,
    *,
    attention: Attention = "dense",
    fresh: ClipNoise | None = None,
    known: KnownLatents | None = None,
    evaluate: Evaluate | None = None,
    branches: Callable[[Run], Branches] | None = None,
    step_end: StepEnd | None = None,
) -> Iterator[Tensor]:
    """Denoise clips together.

    Args:
        unet: evaluated once a step, under both conditions.
        noise: Gaussian (clips, 8, t, 16).
        condition, negative: one entry a clip; without `negative` there is no guidance.
        options: sampler, steps, eta, guidance scale, and strength where a recording is varied.
        schedule: of training.
        attention: "dense", settings, or their text.
        fresh: noise for "ddim" with eta above 0.
        known: latents of a recording to start from, or to keep in part.
        evaluate: `unet.evaluate`, or a compiled form of it.
        branches: makes what predicts the noise; default: `OneNetwork` of `unet` and `evaluate`.
        step_end: called as step_end(step, timestep, latents) after every step; returns the latents
            to go on with.

    Yields:
        After every step the latents (clips, 8, t, 16), float32.
    """
    # 1. What is the same in every step
    device, alphas = unet.conv_in.weight.device, alphas_cumprod(schedule)
    steps, taken = options.num_inference_steps, options.steps_taken
    timesteps = timesteps_of(options.sampler, steps, schedule.train_steps, taken)
    levels = [alphas[t] for t in timesteps]
    draws = Draws(unet, attention, noise.shape)
    run = Run(len(noise), condition, negative, options, timesteps, levels, attention, draws)
    network = Network(unet, evaluate or unet.evaluate)
    predict = GuidedNoise(run, branches(run) if branches else OneNetwork(run, network))

    # 2. Where it starts, and what stays
    latents = noise.to(device, torch.float32)
    restore: samplers.Restore = samplers.restore_nothing
    if known is not None:
        known = known.to(device)
        restore = known.restore(latents, [*levels[1:], 1.0])
        if taken < steps:
            latents = add_noise(known.latents, latents, levels[0])

    def finish_step(latents: Tensor, step: int) -> Tensor:
        latents = restore(latents, step)
        return latents if step_end is None else step_end(step, timesteps[step], latents)

    # 3. Noise -> latents
    if options.sampler == "dpm++":
        yield from samplers.dpm_solver(predict, latents, timesteps, alphas, restore=finish_step)
    else:
        source, shape = fresh or ClipNoise(None, len(latents)), latents.shape[1:]
        yield from samplers.ddim(
            predict,
            latents,
            timesteps,
            alphas,
            eta=options.eta,
            noise=lambda: to_device(source.fresh(shape), device),
            restore=finish_step,
        )


class GuidedNoise:
    """Called with latents and the number of a step: the noise in them, guided.

    One call of `denoise` has one.

    Args:
        run, branches: the call, and what predicts the noise in it.
    """

    def __init__(self, run: Run, branches: Branches):
        self.branches, self.levels = branches, run.levels
        interval, steps = run.options.guidance_interval or (0.0, 1.0), len(run.timesteps)
        scale = run.options.guidance_scale if run.negative is not None else 1.0
        self.scales = guidance_scales(scale, interval, steps)
        self.agreement = Agreement(run.options.adaptive_guidance, run.clips)

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        """(clips, 8, t, 16) -> as many, float32."""
        if self.scales[step] == 1 or self.agreement.of_all():
            return self.branches(latents, step, 1)
        noise = self.branches(latents, step, 2)
        return self.agreement.guide(noise, self.scales[step], latents, self.levels[step])
