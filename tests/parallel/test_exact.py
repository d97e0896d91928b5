"""Guidance and batches on several devices make what one device makes."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion import samplers, windows
from audiolitefocus.diffusion.denoise import denoise
from audiolitefocus.diffusion.guidance import guide
from audiolitefocus.diffusion.inpaint import KnownLatents
from audiolitefocus.diffusion.network import Network
from audiolitefocus.diffusion.schedule import alphas_cumprod, timesteps_of
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.options import GenerationOptions
from audiolitefocus.parallel.batch import denoise_clips, shares
from audiolitefocus.parallel.guidance import denoise_halves
from tests.support.compare import seeded
from tests.support.denoising import clip_noise, run_with, tiny_condition

STEPS, SCALE = 6, 3.0
OPTIONS = GenerationOptions(num_inference_steps=STEPS, sampler="dpm++", guidance_scale=SCALE)
BATCHED = 4e-6  # of the largest latent: another batch lets kernels add in another order, each step
VARIANTS = {
    "dense": {},
    "litefocus": {"attention": "litefocus:0.2:levels=1-2"},
    "uniform": {"attention": "litefocus:0.2:uniform=true"},
    "ddim": {"sampler": "ddim", "eta": 1.0},
    "interval": {"guidance_interval": (0.3, 0.8), "attention": "litefocus:0.2"},
    "adaptive": {"adaptive_guidance": 0.9},
    "reuse": {"reuse": "deepcache:2:start=0", "guidance_interval": (0.0, 0.7)},
}


def close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        tolerance = BATCHED * float(theirs.abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def part_of_a_recording(frames: int) -> KnownLatents:
    changed = torch.arange(frames) >= frames // 2
    return KnownLatents(clip_noise(1, frames), changed)


@pytest.mark.parametrize("frames, variant", [(13, "litefocus"), *((16, name) for name in VARIANTS)])
def test_halves_are_guided_as_on_one_device(unet, networks, frames, variant):
    options = replace(OPTIONS, **VARIANTS[variant])
    expected = run_with(partial(denoise, unet), options, frames=frames)
    close(run_with(partial(denoise_halves, networks), options, frames=frames), expected)


@pytest.mark.parametrize("attention", ["dense", "tome", "litefocus:0.2", "cross-frequency:0.2"])
def test_halves_are_each_evaluated_alone(unet, networks, attention):
    """Bit for bit: also with Token Merging, where rounding decides between equally similar tokens,
    so that a batch of two is not a measure.
    """
    options = replace(OPTIONS, attention=attention)
    timesteps, alphas = timesteps_of("dpm++", STEPS, 1000), alphas_cumprod(ScheduleConfig())
    biases = unet.time_biases(torch.tensor(timesteps))
    texts = [unet.cross_kv(tiny_condition(1, seed)) for seed in (2, 1)]
    generators = [unet.sampling_generator(attention) for _ in texts]

    def predict(latents, step):
        now = {block: bias[step : step + 1] for block, bias in biases.items()}
        halves = [
            unet.evaluate(latents, StepInputs(now, *text, unet.plan(attention, latents, own)))
            for text, own in zip(texts, generators, strict=True)
        ]
        return guide(torch.cat(halves), SCALE)

    with torch.inference_mode():
        expected = list(samplers.dpm_solver(predict, clip_noise(1), timesteps, alphas))
    found = run_with(partial(denoise_halves, networks), options)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("clips, variant", [(1, "dense"), *((4, name) for name in VARIANTS)])
def test_clips_shared_out_are_those_of_one_device(unet, networks, clips, variant):
    options = replace(OPTIONS, num_inference_steps=3, **VARIANTS[variant])
    expected = run_with(partial(denoise, unet), options, clips)
    close(run_with(partial(denoise_clips, networks[:3]), options, clips), expected)


def test_a_group_is_bit_for_bit_what_its_clips_are_together(unet, networks):
    options = replace(OPTIONS, attention="tome")
    found = run_with(partial(denoise_clips, networks[:2]), options, clips=4)[-1]
    expected = run_with(partial(denoise, unet), options, clips=2)[-1]  # the first two of the four
    assert torch.equal(found[:2], expected)


@pytest.mark.parametrize("strategy", [denoise_halves, denoise_clips])
def test_a_recording_is_kept_and_varied_as_on_one_device(unet, networks, strategy):
    options = replace(OPTIONS, init_audio="a.wav", strength=0.7)
    known = part_of_a_recording(16)
    expected = run_with(partial(denoise, unet), options, clips=2, known=known)
    close(run_with(partial(strategy, networks), options, clips=2, known=known), expected)


def test_shares_are_even_and_complete():
    for clips in range(1, 12):
        for devices in range(1, 6):
            parts = shares(clips, devices)
            sizes = [part.stop - part.start for part in parts]
            assert [n for part in parts for n in range(clips)[part]] == list(range(clips))
            assert len(sizes) == min(clips, devices) and max(sizes) - min(sizes) <= 1


def test_every_group_ends_its_steps(networks):
    seen = []

    def step_end(step, timestep, latents):
        seen.append((step, len(latents)))
        return latents + 0.1 * torch.randn(latents.shape, generator=seeded(step))

    changed = run_with(partial(denoise_clips, networks[:2]), OPTIONS, clips=3, step_end=step_end)
    assert seen == [(step, count) for step in range(STEPS) for count in (1, 2)]
    plain = run_with(partial(denoise_clips, networks[:2]), OPTIONS, clips=3)
    assert (changed[-1] - plain[-1]).abs().max() > 0.1


@pytest.mark.parametrize("variant", ["dense", "litefocus", "ddim", "reuse"])
def test_the_windows_of_one_clip_are_shared_out(unet, networks, variant, monkeypatch):
    options, shape = replace(OPTIONS, **VARIANTS[variant]), {"frames": 88, "window": 16}
    monkeypatch.setattr(windows, "TOGETHER", 2)
    expected = run_with(partial(denoise, unet), options, **shape)
    used = {network: 0 for network in networks[:2]}

    def counting(network: Network) -> Network:
        def evaluate(latents, inputs):
            used[network] += 1
            return network.evaluate(latents, inputs)

        return replace(network, evaluate=evaluate)

    found = run_with(partial(denoise_clips, [*map(counting, used)]), options, **shape)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))
    assert min(used.values()) >= 2 * STEPS  # of seven windows in four groups
