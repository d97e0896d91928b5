"""The samplers step by step against diffusers' schedulers, and where noise comes from."""

import numpy as np
import pytest
import torch

from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion import samplers
from audiolitefocus.diffusion.guidance import guide
from audiolitefocus.diffusion.noise import ClipNoise
from audiolitefocus.diffusion.schedule import alphas_cumprod, consistency_grid, timesteps_of
from tests.support.compare import seeded

STEP_TOLERANCE = 2e-5  # diffusers multiplies 1000 alphas in float32, we in float64
SCHEDULE = ScheduleConfig()
ALPHAS = alphas_cumprod(SCHEDULE)


def toy_noise(latents: torch.Tensor, timestep: int) -> torch.Tensor:
    """A smooth stand-in for the denoiser, which depends on everything that a denoiser sees."""
    return torch.sin(3 * latents + timestep / 100) * 0.8 + 0.1 * latents


def ddim_scheduler():
    diffusers = pytest.importorskip("diffusers")
    return diffusers.DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def test_schedule_equals_diffusers():
    expected = ddim_scheduler().alphas_cumprod.double()
    torch.testing.assert_close(
        torch.tensor(ALPHAS, dtype=torch.float64), expected, rtol=STEP_TOLERANCE, atol=0
    )


@pytest.mark.parametrize("steps", [1, 2, 5, 7, 20, 50, 200])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_equals_diffusers_step_by_step(steps, eta):
    scheduler = ddim_scheduler()
    scheduler.set_timesteps(steps)
    timesteps = timesteps_of("ddim", steps, 1000)
    assert timesteps == scheduler.timesteps.tolist()
    latents = expected = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(steps))
    noise = torch.randn(steps, 2, 8, 16, 16, generator=torch.Generator().manual_seed(1))
    ours = samplers.ddim(
        lambda x, i: toy_noise(x, timesteps[i]),
        latents,
        timesteps,
        ALPHAS,
        eta=eta,
        noise=lambda i: noise[i],
    )
    for step, latents in enumerate(ours):
        predicted = toy_noise(expected, timesteps[step])
        options = {"eta": eta, "variance_noise": noise[step]} if eta else {}
        expected = scheduler.step(predicted, timesteps[step], expected, **options).prev_sample
        torch.testing.assert_close(latents, expected, rtol=STEP_TOLERANCE, atol=STEP_TOLERANCE)
        expected = latents  # the toy denoiser is chaotic: compare steps, not accumulated rounding
    assert step == steps - 1


@pytest.mark.parametrize("steps", [1, 2, 3, 14, 15, 20, 25, 50])
def test_dpm_solver_equals_diffusers_step_by_step(steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(ddim_scheduler().config)
    scheduler.set_timesteps(steps)
    timesteps = timesteps_of("dpm++", steps, 1000)
    assert timesteps == scheduler.timesteps.tolist()
    latents = expected = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(steps))
    predicted = [
        torch.randn(latents.shape, generator=torch.Generator().manual_seed(i)) for i in range(steps)
    ]
    ours = samplers.dpm_solver(lambda x, i: predicted[i], latents, timesteps, ALPHAS)
    for step, latents in enumerate(ours):
        expected = scheduler.step(predicted[step], timesteps[step], expected).prev_sample
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            latents, expected, rtol=STEP_TOLERANCE, atol=STEP_TOLERANCE * scale
        )
    assert step == steps - 1


def lcm_scheduler():
    diffusers = pytest.importorskip("diffusers")
    return diffusers.LCMScheduler.from_config(ddim_scheduler().config)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_lcm_equals_diffusers_step_by_step(steps):
    scheduler = lcm_scheduler()
    scheduler.set_timesteps(steps)
    timesteps = timesteps_of("lcm", steps, 1000)
    latents = expected = torch.randn(2, 8, 16, 16, generator=seeded(steps))
    noise = [torch.randn(latents.shape, generator=seeded(100 + i)) for i in range(steps)]
    ours = samplers.lcm(
        lambda x, i: toy_noise(x, timesteps[i]),
        latents,
        timesteps,
        ALPHAS,
        noise=lambda i: noise[i],
    )
    for step, latents in enumerate(ours):
        predicted = toy_noise(expected, timesteps[step])
        drawn = seeded(100 + step)  # as the scheduler draws its noise
        expected = scheduler.step(predicted, timesteps[step], expected, generator=drawn).prev_sample
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            latents, expected, rtol=STEP_TOLERANCE, atol=STEP_TOLERANCE * scale
        )
        expected = latents  # the toy denoiser is chaotic
    assert step == steps - 1


def test_timesteps_of_lcm_are_those_of_diffusers():
    scheduler = lcm_scheduler()
    for steps in range(1, 51):
        scheduler.set_timesteps(steps)
        assert timesteps_of("lcm", steps, 1000) == scheduler.timesteps.tolist()
    assert timesteps_of("lcm", 4, 900) == [899, 683, 449, 233]
    assert consistency_grid(7) == list(range(7))


def test_the_last_step_of_lcm_draws_no_noise():
    drawn = []

    def noise(step):
        drawn.append(step)
        return torch.zeros(1)

    timesteps = timesteps_of("lcm", 3, 1000)
    *_, last = samplers.lcm(lambda x, i: x, torch.ones(1), timesteps, ALPHAS, noise=noise)
    assert drawn == [0, 1]


def test_trained_timesteps_are_the_papers():
    timesteps = timesteps_of("ddim", 200, 1000)
    assert timesteps[:2] == [996, 991] and timesteps[-2:] == [6, 1]


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize("steps", [1, 3, 100, 999, 1000])
def test_timesteps_decrease_within_training(sampler, steps):
    timesteps = timesteps_of(sampler, steps, 1000)
    assert len(timesteps) == steps
    assert all(0 <= low <= high <= 999 for high, low in zip(timesteps, timesteps[1:], strict=False))


def test_steps_that_leave_the_schedule_uncovered_are_named():
    with pytest.warns(UserWarning, match="600 DDIM steps of 1 cover only 600 .* take 500 steps"):
        timesteps_of("ddim", 600, 1000)


def test_guidance_extrapolates_from_unconditional_to_conditional():
    noise = torch.tensor([[1.0], [3.0]])
    assert guide(noise, 2.5).item() == 1.0 + 2.5 * 2.0


def test_initial_noise_is_what_diffusers_draws():
    shape = (8, 16, 16)
    one = ClipNoise(torch.Generator().manual_seed(5), 3).initial(shape)
    assert torch.equal(one, torch.randn(3, *shape, generator=torch.Generator().manual_seed(5)))
    each = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    many = ClipNoise(each, 2).initial(shape)
    assert torch.equal(many[1:], torch.randn(1, *shape, generator=torch.Generator().manual_seed(2)))


def test_a_clips_noise_does_not_depend_on_how_many_there_are():
    streams = [ClipNoise(torch.Generator().manual_seed(5), clips) for clips in (1, 4)]
    for draw in ("initial", "fresh", "fresh"):
        alone, together = (getattr(stream, draw)((8, 16, 16)) for stream in streams)
        assert torch.equal(alone[0], together[0])
        assert not torch.equal(together[0], together[1])


def test_one_generator_given_for_each_of_its_clips_is_that_generator():
    one, same = (torch.Generator().manual_seed(5) for _ in range(2))
    noises = ClipNoise(one, 3), ClipNoise([same] * 3, 3)
    for draw in ("initial", "fresh"):
        expected, drawn = (getattr(noise, draw)((8, 4)) for noise in noises)
        assert torch.equal(expected, drawn)


def test_a_part_draws_what_its_clips_would_have_drawn_together():
    noise = ClipNoise(torch.Generator().manual_seed(5), 4)
    noise.fresh((8, 4))
    together = ClipNoise(torch.Generator().manual_seed(5), 4)
    part = noise[1:3]
    for _ in range(2):
        assert torch.equal(part.fresh((8, 4)), together.fresh((8, 4))[1:3])


def test_fresh_noise_is_new_each_time_and_unlike_the_initial_noise():
    stream = ClipNoise(torch.Generator().manual_seed(5), 1)
    drawn = torch.stack(
        [stream.initial((8, 64, 16)), stream.fresh((8, 64, 16)), stream.fresh((8, 64, 16))]
    )
    correlation = torch.corrcoef(drawn.flatten(1))
    # of 8192 independent values: sigma is 0.011
    assert (correlation - torch.eye(3)).abs().max() < 0.05


def test_no_generator_is_unpredictable_and_leaves_the_global_state():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (ClipNoise(None, 1).initial((4,)) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()


def test_a_wrong_number_of_generators_is_an_error():
    with pytest.raises(ValueError, match="1 generators for 2 clips"):
        ClipNoise([torch.Generator()], 2)
