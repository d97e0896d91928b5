"""Two models in one trajectory: whose steps are whose, what they hand on, and in which units."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion import samplers
from audiolitefocus.diffusion.denoise import denoise
from audiolitefocus.diffusion.drafter import Drafter, Turns, rescaled
from audiolitefocus.diffusion.guidance import guide
from audiolitefocus.diffusion.network import Network
from audiolitefocus.diffusion.noise import ClipNoise
from audiolitefocus.diffusion.schedule import alphas_cumprod, half_log_snr, timesteps_of
from audiolitefocus.models.condition import stack_conditions
from audiolitefocus.models.unet import UNet
from audiolitefocus.options import GenerationOptions
from audiolitefocus.reuse.settings import Reuse
from tests.support.checkpoints import randomize
from tests.support.compare import assert_same, seeded
from tests.support.denoising import CONFIG, tiny_condition, tiny_unet

STEPS = 8
OTHER = replace(CONFIG, channels=(32, 64), heads=(1, 2), attention_levels=(1,), loa_dim=24)
OPTIONS = GenerationOptions(num_inference_steps=STEPS, sampler="dpm++", guidance_scale=3.0)
ALPHAS = alphas_cumprod(ScheduleConfig())
EXACT = 1e-12  # float64, relative to latents of about 1
VARIANTS = {
    "dense": {},
    "litefocus": {"attention": "litefocus:0.2"},
    "ddim": {"sampler": "ddim", "eta": 1.0},
    "interval": {"guidance_interval": (0.25, 0.75)},
    "adaptive": {"adaptive_guidance": 0.9},
    "reuse": {"reuse": "deepcache:2:start=0:order=1"},
    "unguided": {"guidance_scale": 1.0},
}


@pytest.fixture(scope="module")
def main() -> Drafter:
    """A model with its own text, as a drafter has it."""
    unet = tiny_unet()
    return Drafter(Network(unet, unet.evaluate), tiny_condition(1, 1), tiny_condition(1, 2))


@pytest.fixture(scope="module")
def other() -> Drafter:
    unet = randomize(UNet(OTHER), 1).eval().requires_grad_(False)
    texts = (tiny_condition(1, seed, OTHER.loa_dim) for seed in (3, 4))
    return Drafter(Network(unet, unet.evaluate), *texts)


@torch.inference_mode()
def run(model: Drafter, options: GenerationOptions, drafter: Drafter | None = None) -> torch.Tensor:
    noise = torch.randn(1, 8, 16, 16, generator=seeded())
    attention = "dense" if options.attention == "auto" else options.attention
    guided = options.guidance_scale > 1

    def unguided(model: Drafter) -> Drafter:
        return replace(model, attention=attention, negative=model.negative if guided else None)

    model, drafter = unguided(model), drafter and unguided(drafter)
    steps = denoise(
        model.network.unet,
        noise,
        model.condition,
        model.negative,
        options,
        ScheduleConfig(),
        attention=attention,
        fresh=ClipNoise([seeded(5)], 1),
        evaluate=model.network.evaluate,
        drafter=drafter,
    )
    return list(steps)[-1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_steps_it_is_the_main_model_and_with_all_of_them_the_drafter(main, other, variant):
    options = replace(OPTIONS, **VARIANTS[variant])
    none = replace(options, drafter_interval=(0.0, 0.01))
    assert torch.equal(run(main, none, other), run(main, options))
    every = replace(options, drafter_interval=(0.0, 1.0))
    assert torch.equal(run(main, every, other), run(other, options))
    some = run(main, replace(options, drafter_interval=(0.25, 0.5)), other)
    assert all(not torch.equal(some, run(model, options)) for model in (main, other))


def test_steps_are_rounded_shares_of_those_taken():
    assert replace(OPTIONS, num_inference_steps=10).drafted_steps == range(0, 3)  # the default
    assert replace(OPTIONS, drafter_interval="0.25:0.8").drafted_steps == range(2, 6)
    varied = replace(OPTIONS, init_audio="a.wav", strength=0.5, drafter_interval=(0.5, 1))
    assert varied.steps_taken == 4 and varied.drafted_steps == range(2, 4)


@torch.inference_mode()
def test_a_mixed_trajectory_is_that_of_both_networks_by_hand(main, other):
    """DDIM without noise, written out, with whole evaluations of the networks."""
    options = replace(OPTIONS, sampler="ddim", eta=0.0, drafter_interval=(0.25, 0.75))
    latents = torch.randn(1, 8, 16, 16, generator=seeded())
    timesteps = timesteps_of("ddim", STEPS, 1000)
    ends = [ALPHAS[t] for t in timesteps] + [ALPHAS[0]]
    for step, timestep in enumerate(timesteps):
        model = other if step in range(2, 6) else main
        both = stack_conditions([model.negative, model.condition])
        noise = guide(
            model.network.unet(latents, torch.tensor(timestep), both), options.guidance_scale
        )
        now, after = ends[step : step + 2]
        clean = (latents - math.sqrt(1 - now) * noise) / math.sqrt(now)
        latents = math.sqrt(after) * clean + math.sqrt(1 - after) * noise
    assert_same(run(main, options, other), latents)


@pytest.mark.parametrize("order", [0, 1])
def test_nothing_that_was_kept_before_a_turn_is_used_in_it(main, other, order):
    """The main model comes back after four steps of the drafter, and computes its first in full."""
    reused: dict[int, list[bool]] = {0: [], 1: []}

    def spying(model: Drafter, number: int) -> Drafter:
        def evaluate(latents, inputs):
            reused[number].append(bool(inputs.reused))
            return model.network.unet.evaluate(latents, inputs)

        return replace(model, network=replace(model.network, evaluate=evaluate))

    options = replace(
        OPTIONS, reuse=Reuse(4, start=0.0, order=order), drafter_interval=(0.375, 0.75)
    )
    found = run(spying(main, 0), options, spying(other, 1))
    # the rule computes steps 0 and 4; those of the main model are 0, 1, 2, 6, 7
    assert reused == {0: [False, True, True, False, True], 1: [False, False, True]}
    assert torch.equal(run(main, options, other), found)


# Units


class Ideal:
    """The best denoiser of Gaussian latents: what remains of x in them is known in closed form."""

    def __init__(self, variance: float, levels: list[float]):
        self.variance, self.levels = variance, levels

    def __call__(self, latents: torch.Tensor, step: int) -> torch.Tensor:
        level = self.levels[step]
        return math.sqrt(1 - level) / (level * self.variance + 1 - level) * latents

    def forget(self) -> None:
        pass


def sampled(sampler: str, predict: Callable, timesteps: list[int]) -> torch.Tensor:
    latents = torch.randn(1, 8, 4, 16, generator=seeded(), dtype=torch.float64)
    if sampler == "dpm++":
        return list(samplers.dpm_solver(predict, latents, timesteps, ALPHAS))[-1]
    noise = torch.randn(STEPS, *latents.shape, generator=seeded(1), dtype=torch.float64)
    arguments = predict, latents, timesteps, ALPHAS
    return list(samplers.ddim(*arguments, eta=1.0, noise=lambda step: noise[step]))[-1]


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize("scale", [0.4, 1.0, 1.7])
def test_ideal_models_of_two_scales_are_one_model(sampler, scale):
    """Both denoise perfectly, each in its own units, so it does not matter whose step it is."""
    timesteps, variance = timesteps_of(sampler, STEPS, 1000), 0.3
    levels = [ALPHAS[t] for t in timesteps]
    main = Ideal(variance, levels)
    _, theirs, gains = rescaled(timesteps, ALPHAS, scale)
    drafter = Ideal(variance * scale**2, theirs)
    mixed = sampled(sampler, Turns(main, drafter, range(2, 5), gains), timesteps)
    torch.testing.assert_close(mixed, sampled(sampler, main, timesteps), rtol=0, atol=EXACT)
    if scale != 1:  # it does matter that latents are converted
        alike = Turns(main, Ideal(variance * scale**2, levels), range(2, 5), [1.0] * STEPS)
        assert (sampled(sampler, alike, timesteps) - mixed).abs().max() > 0.01


@pytest.mark.parametrize("scale", [0.4, 1.7])
def test_rescaled_latents_have_the_level_that_they_are_said_to_have(scale):
    timesteps = timesteps_of("dpm++", 20, 1000)
    theirs, levels, gains = rescaled(timesteps, ALPHAS, scale)
    for timestep, level, gain in zip(timesteps, levels, gains, strict=True):
        alpha = ALPHAS[timestep]
        # sqrt(a) z + sqrt(1 - a) e, times the gain, is sqrt(b) (scale z) + sqrt(1 - b) e
        assert gain * math.sqrt(alpha) == pytest.approx(math.sqrt(level) * scale)
        assert gain * math.sqrt(1 - alpha) == pytest.approx(math.sqrt(1 - level))
    inside = [n for n, t in enumerate(theirs) if 0 < t < 999]
    assert len(inside) > 15
    ratios = np.interp([theirs[n] for n in inside], range(1000), [*map(half_log_snr, ALPHAS)])
    assert ratios == pytest.approx([half_log_snr(levels[n]) for n in inside])
    # beyond the ends of training there is no step: the last one stands for it
    assert (theirs[0] == 999) == (scale > 1)


def test_the_same_scale_changes_nothing():
    timesteps = timesteps_of("dpm++", 5, 1000)
    expected = (timesteps, [ALPHAS[t] for t in timesteps], [1.0] * 5)
    assert rescaled(timesteps, ALPHAS, 1.0) == expected


@torch.inference_mode()
def test_the_loop_gives_a_drafter_its_own_level_and_latents(main, other):
    """Scaled ideal models in place of the networks, through `denoise`."""
    timesteps, scale, variance = timesteps_of("dpm++", STEPS, 1000), 1.7, 0.3
    _, theirs, _ = rescaled(timesteps, ALPHAS, scale)
    drafted = range(2, 6)

    def ideal(model: Drafter, variance: float, levels: list[float], steps: list[int]) -> Drafter:
        predict, step = Ideal(variance, levels), iter(steps)

        def evaluate(latents, inputs):
            return predict(latents, next(step))

        return replace(model, network=replace(model.network, evaluate=evaluate), scale=scale)

    levels, steps = [ALPHAS[t] for t in timesteps], list(range(STEPS))
    options = replace(OPTIONS, guidance_scale=1.0, drafter_interval=(0.25, 0.75))
    alone = run(ideal(main, variance, levels, steps), replace(options, drafter_interval=None))
    mixed = run(
        ideal(main, variance, levels, [step for step in steps if step not in drafted]),
        options,
        ideal(other, variance * scale**2, theirs, list(drafted)),
    )
    torch.testing.assert_close(mixed, alone, rtol=0, atol=1e-5)
