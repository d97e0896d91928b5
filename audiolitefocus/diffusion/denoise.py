"""The denoising loop: UNet, sampler and guidance, with everything constant computed once."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from audiolitefocus.attention.settings import Attention
from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion import samplers
from audiolitefocus.diffusion.guidance import guide
from audiolitefocus.diffusion.inpaint import KnownLatents
from audiolitefocus.diffusion.noise import ClipNoise
from audiolitefocus.diffusion.schedule import add_noise, alphas_cumprod, timesteps_of
from audiolitefocus.models.condition import Condition, stack_conditions
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.models.unet import UNet
from audiolitefocus.options import GenerationOptions

Evaluate = Callable[[Tensor, StepInputs], Tensor]
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
        step_end: called as step_end(step, timestep, latents) after every step; returns the latents
            to go on with.

    Yields:
        After every step the latents (clips, 8, t, 16), float32.
    """
    # 1. What is the same in every step
    evaluate, device = evaluate or unet.evaluate, unet.conv_in.weight.device
    both = condition if negative is None else stack_conditions([negative, condition])
    cross_kv, mask = unet.cross_kv(both)
    steps, taken = options.num_inference_steps, options.steps_taken
    timesteps = timesteps_of(options.sampler, steps, schedule.train_steps, taken)
    biases = unet.time_biases(torch.tensor(timesteps))
    generator = unet.sampling_generator(attention)

    # 2. One evaluation, guided
    def predict(latents: Tensor, step: int) -> Tensor:
        time_biases = {block: bias[step : step + 1] for block, bias in biases.items()}
        attend = unet.plan(attention, latents, generator)
        epsilon = evaluate(latents, StepInputs(time_biases, cross_kv, mask, attend))
        return epsilon if negative is None else guide(epsilon, options.guidance_scale)

    # 3. Where it starts, and what stays
    latents, alphas = noise.to(device, torch.float32), alphas_cumprod(schedule)
    restore: samplers.Restore = samplers.restore_nothing
    if known is not None:
        known, levels = known.to(device), [alphas[t] for t in timesteps]
        restore = known.restore(latents, [*levels[1:], 1.0])
        if taken < steps:
            latents = add_noise(known.latents, latents, levels[0])

    def finish_step(latents: Tensor, step: int) -> Tensor:
        latents = restore(latents, step)
        return latents if step_end is None else step_end(step, timesteps[step], latents)

    # 4. Noise -> latents
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
            noise=lambda: source.fresh(shape).to(device),
            restore=finish_step,
        )
