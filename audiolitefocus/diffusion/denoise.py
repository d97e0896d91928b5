"""The denoising loop: UNet, sampler and guidance, with everything constant computed once."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from audiolitefocus.attention.modules import CrossAttention
from audiolitefocus.attention.settings import Attention
from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion import samplers
from audiolitefocus.diffusion.drafter import Drafter, Turns, rescaled
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
    drafter: Drafter | None = None,
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
        drafter: a second model, which takes the options' `drafted_steps`.

    Yields:
        After every step the latents (clips, 8, t, 16), float32.
    """
    # 1. What is the same in every step
    device, alphas = unet.conv_in.weight.device, alphas_cumprod(schedule)
    steps, taken = options.num_inference_steps, options.steps_taken
    timesteps = timesteps_of(options.sampler, steps, schedule.train_steps, taken)
    levels = [alphas[t] for t in timesteps]
    own = GuidedNoise(
        unet, len(noise), condition, negative, options, timesteps, levels, attention, evaluate
    )
    predict: samplers.Predict = own
    if drafter is not None:
        predict = with_drafter(own, drafter, options, timesteps, alphas)

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
            noise=lambda: source.fresh(shape).to(device),
            restore=finish_step,
        )


class GuidedNoise:
    """Called with latents and the number of a step: the noise in them, guided.

    One call of `denoise` has one. What does not change between its steps is computed once; what
    steps take from each other is kept here.

    Args:
        clips: their number.
        timesteps, levels: the training step, and the share of signal, of every step.
        others: as in `denoise`.
    """

    def __init__(
        self,
        unet: UNet,
        clips: int,
        condition: Condition,
        negative: Condition | None,
        options: GenerationOptions,
        timesteps: Sequence[float],
        levels: Sequence[float],
        attention: Attention,
        evaluate: Evaluate | None,
    ):
        self.unet, self.clips, self.levels, self.attention = unet, clips, levels, attention
        self.evaluate = evaluate or unet.evaluate
        self.compiled = self.evaluate != unet.evaluate
        self.generator = unet.sampling_generator(attention)
        self.biases = unet.time_biases(torch.tensor(timesteps))
        # by branches of guidance: the conditional one alone, or both
        if negative is None:
            self.conditioning = {1: unet.cross_kv(condition)}
        else:
            both = unet.cross_kv(stack_conditions([negative, condition]))
            self.conditioning = {1: conditional_half(*both), 2: both}
        interval, steps = options.guidance_interval or (0.0, 1.0), len(timesteps)
        self.scales = guidance_scales(options.guidance_scale, interval, steps)
        self.agreement = Agreement(options.adaptive_guidance, clips)
        self.store = reuse_store(unet, options, [half_log_snr(level) for level in levels])

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        """(clips, 8, t, 16) -> as many, float32."""
        # 1. One evaluation, under both conditions where it is guided
        guided = 2 in self.conditioning and self.scales[step] != 1 and not self.agreement.of_all()
        branches = 2 if guided else 1
        inputs = StepInputs(
            {block: bias[step : step + 1] for block, bias in self.biases.items()},
            *self.conditioning[branches],
            self.unet.plan(self.attention, latents, self.generator),
            self.store.reused(step, self.clips, branches),
            self.store.wanted(step),
        )
        noise = self.evaluate(latents, inputs)
        # 2. What later steps take of it; a compiled graph writes over it when it runs again
        self.store.keep(step, inputs.recorded, copy=self.compiled)
        # 3. Guidance
        if not guided:
            return noise
        return self.agreement.guide(noise, self.scales[step], latents, self.levels[step])

    def forget(self) -> None:
        """Drop what steps have kept for later ones, where another model takes the next ones."""
        self.store.kept.clear()


def with_drafter(
    main: GuidedNoise,
    drafter: Drafter,
    options: GenerationOptions,
    timesteps: Sequence[int],
    alphas: Sequence[float],
) -> Turns:
    """Both models, each in its own steps; the arguments but `main` as in `denoise`."""
    theirs, levels, gains = rescaled(timesteps, alphas, drafter.scale)
    drafts = GuidedNoise(
        drafter.unet,
        main.clips,
        drafter.condition,
        drafter.negative,
        options,
        theirs,
        levels,
        drafter.attention,
        drafter.evaluate,
    )
    return Turns(main, drafts, options.drafted_steps, gains)


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
