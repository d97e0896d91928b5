"""The denoising loop: UNet, sampler and guidance, with everything constant computed once."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from audiolitefocus.attention.modules import CrossAttention
from audiolitefocus.attention.settings import Attention
from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion import samplers
from audiolitefocus.diffusion.guidance import Agreement, guidance_scales
from audiolitefocus.diffusion.inpaint import KnownLatents
from audiolitefocus.diffusion.noise import ClipNoise
from audiolitefocus.diffusion.schedule import (
    add_noise,
    alphas_cumprod,
    half_log_snr,
    timesteps_of,
)
from audiolitefocus.models.condition import Condition, stack_conditions
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.models.unet import UNet
from audiolitefocus.options import GenerationOptions
from audiolitefocus.reuse.settings import choose_reuse
from audiolitefocus.reuse.store import ReuseStore

Evaluate = Callable[[Tensor, StepInputs], Tensor]


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
) -> Iterator[tuple[int, Tensor]]:
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

    Yields:
        After every step its timestep, and the latents (clips, 8, t, 16), float32.
    """
    # 1. What is the same in every step
    evaluate, device = evaluate or unet.evaluate, unet.conv_in.weight.device
    clips, steps, taken = len(noise), options.num_inference_steps, options.steps_taken
    timesteps = timesteps_of(options.sampler, steps, schedule.train_steps, taken)
    alphas = alphas_cumprod(schedule)
    biases = unet.time_biases(torch.tensor(timesteps))
    generator = unet.sampling_generator(attention)
    both = condition if negative is None else stack_conditions([negative, condition])
    conditioning = {len(both) // clips: unet.cross_kv(both)}
    if negative is not None:  # for steps without guidance
        conditioning[1] = conditional_half(*conditioning[2])
    interval = options.guidance_interval or (0.0, 1.0)
    scales = guidance_scales(options.guidance_scale, interval, taken)
    agreement = Agreement(options.adaptive_guidance, clips)
    store = reuse_store(unet, options, [half_log_snr(alphas[t]) for t in timesteps])

    # 2. One evaluation, guided where it is to be
    def predict(latents: Tensor, step: int) -> Tensor:
        guided = negative is not None and scales[step] != 1 and not agreement.of_all()
        branches = 2 if guided else 1
        inputs = StepInputs(
            {block: bias[step : step + 1] for block, bias in biases.items()},
            *conditioning[branches],
            unet.plan(attention, latents, generator),
            store.reused(step, clips, branches),
            store.wanted(step),
        )
        epsilon = evaluate(latents, inputs)
        # what a compiled graph returns may be overwritten when it runs again
        store.keep(step, inputs.recorded, copy=evaluate != unet.evaluate)
        if not guided:
            return epsilon
        return agreement.guide(epsilon, scales[step], latents, alphas[timesteps[step]])

    # 3. Where it starts, and what stays
    latents = noise.to(device, torch.float32)
    restore: samplers.Restore = samplers.restore_nothing
    if known is not None:
        known, levels = known.to(device), [alphas[t] for t in timesteps]
        restore = known.restore(latents, [*levels[1:], 1.0])
        if taken < steps:
            latents = add_noise(known.latents, latents, levels[0])

    # 4. Noise -> latents
    if options.sampler == "dpm++":
        sampled = samplers.dpm_solver(predict, latents, timesteps, alphas, restore=restore)
    else:
        source, shape = fresh or ClipNoise(None, len(latents)), latents.shape[1:]
        sampled = samplers.ddim(
            predict,
            latents,
            timesteps,
            alphas,
            eta=options.eta,
            noise=lambda: source.fresh(shape).to(device),
            restore=restore,
        )
    yield from zip(timesteps, sampled, strict=True)


def conditional_half(
    cross_kv: Mapping[CrossAttention, tuple[Tensor, Tensor]], mask: Tensor | None
) -> tuple[dict[CrossAttention, tuple[Tensor, Tensor]], Tensor | None]:
    """Keys, values and mask of the condition alone, which stands second."""
    half = {module: (k.chunk(2)[1], v.chunk(2)[1]) for module, (k, v) in cross_kv.items()}
    return half, None if mask is None else mask.chunk(2)[1]


def reuse_store(unet: UNet, options: GenerationOptions, positions: Sequence[float]) -> ReuseStore:
    """What the steps of this call take from each other, with `positions` in half log SNR."""
    steps = options.steps_taken
    reuse = choose_reuse(options.reuse, options.sampler, steps)
    if reuse is None:
        return ReuseStore({}, {}, positions)
    return ReuseStore(reuse.table(steps), unet.units(), positions, reuse.order)
