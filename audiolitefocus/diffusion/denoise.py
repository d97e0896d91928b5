"""The denoising loop: networks, sampler and guidance, with everything constant computed once."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from audiolitefocus.attention.settings import Attention
from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion import samplers
from audiolitefocus.diffusion.branches import Branches, OneNetwork
from audiolitefocus.diffusion.drafter import Drafter, OneModel, with_drafter
from audiolitefocus.diffusion.guided import GuidedNoise
from audiolitefocus.diffusion.inpaint import KnownLatents
from audiolitefocus.diffusion.network import Draws, Evaluate, Network, Run
from audiolitefocus.diffusion.noise import ClipNoise
from audiolitefocus.diffusion.schedule import add_noise, alphas_cumprod, timesteps_of
from audiolitefocus.diffusion.windows import REFERENCE, Layout, WindowedNoise, share_nothing
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
    window: int | None = None,
    evaluate: Evaluate | None = None,
    branches: Callable[[Run], Branches] | None = None,
    others: Sequence[Network] = (),
    drafter: Drafter | None = None,
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
        fresh: noise for "lcm", and for "ddim" with eta above 0.
        known: latents of a recording to start from, or to keep in part.
        window: frames of the windows in which longer clips are denoised (`windows`).
        evaluate: `unet.evaluate`, or a compiled form of it.
        branches: makes what predicts the noise; default: `OneNetwork` of `unet` and `evaluate`.
        others: copies of the network on other devices, among which windows are shared out.
        drafter: a second model, which takes the options' `drafted_steps`.
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
    frames = noise.shape[2]
    at_once = min(window or frames, frames)
    draws = Draws(unet, attention, at_once, noise.shape[3])
    run = Run(len(noise), condition, negative, options, timesteps, levels, attention, draws, known)
    networks = [Network(unet, evaluate or unet.evaluate), *others]

    @cache
    def model(copies: int, number: int) -> OneModel:
        own = run.repeated(copies)
        make = branches or partial(OneNetwork, network=networks[number])
        main = GuidedNoise(own, make(own))
        return with_drafter(main, drafter, own, copies, alphas) if drafter else main

    # 2. At once, or in windows
    latents = noise.to(device, torch.float32)
    predict: samplers.Predict
    if at_once == frames:
        predict, share = model(1, 0), share_nothing
    else:
        predict = windows = WindowedNoise(
            Layout(frames, at_once),
            lambda copies, group: model(copies, group % len(networks)).afresh(),
            len(noise),
            # frames of a recording differ, whatever their noise
            round(REFERENCE * taken) if known is None else 0,
            device,
        )
        share = windows.share
        latents = share(latents, 0)

    # 3. Where it starts, and what stays
    latents, restore = _start(known, latents, levels, varied=taken < steps)

    def finish_step(latents: Tensor, step: int) -> Tensor:
        latents = restore(latents, step)
        return latents if step_end is None else step_end(step, timesteps[step], latents)

    # 4. Noise -> latents
    source, shape = fresh or ClipNoise(None, len(latents)), latents.shape[1:]

    def fresh_noise(step: int) -> Tensor:
        return share(to_device(source.fresh(shape), device), step)

    sampler = samplers.choose(options, fresh_noise)
    yield from sampler(predict, latents, timesteps, alphas, restore=finish_step)


def _start(
    known: KnownLatents | None, latents: Tensor, levels: Sequence[float], *, varied: bool
) -> tuple[Tensor, samplers.Restore]:
    """The latents to start from, and what puts back those that are known.

    Args:
        levels: shares of the signal, of every step.
        varied: start from the known ones under noise, not from noise alone.
    """
    if known is None:
        return latents, samplers.restore_nothing
    known = known.to(latents.device)
    restore = known.restore(latents, [*levels[1:], 1.0])
    return add_noise(known.latents, latents, levels[0]) if varied else latents, restore
