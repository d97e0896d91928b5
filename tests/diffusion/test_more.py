"""UniPC and SDE-DPM-Solver++ step by step against diffusers' schedulers, in float64."""

import pytest
import torch

from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion import samplers
from audiolitefocus.diffusion.schedule import alphas_cumprod, timesteps_of
from tests.diffusion.test_sampling import ddim_scheduler, toy_noise

ALPHAS = alphas_cumprod(ScheduleConfig())
TOLERANCE = 2e-5  # diffusers computes alphas and coefficients in float32


def start(steps):
    g = torch.Generator().manual_seed(steps)
    return torch.randn(2, 8, 16, 16, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 14, 15, 20, 25, 50])
def test_unipc(steps):
    diffusers = pytest.importorskip("diffusers")
    config = dict(ddim_scheduler().config) | {"steps_offset": 0}
    scheduler = diffusers.UniPCMultistepScheduler.from_config(
        config,
        solver_order=2,
        solver_type="bh2",
        timestep_spacing="linspace",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    timesteps = timesteps_of("dpm++", steps, 1000)
    assert timesteps == scheduler.timesteps.tolist()
    x = start(steps)
    seen = []

    def predict(latents, i):
        seen.append(latents)
        return toy_noise(latents, timesteps[i])

    expected = x
    ours = samplers.unipc(predict, x, timesteps, ALPHAS)
    for step, latents in enumerate(ours):
        expected = scheduler.step(
            toy_noise(expected if step == 0 else previous, timesteps[step]),
            timesteps[step],
            previous if step else expected,
        ).prev_sample
        torch.testing.assert_close(
            latents, expected.double(), rtol=TOLERANCE, atol=TOLERANCE * expected.abs().max().item()
        )
        previous = expected
    assert step == steps - 1


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 14, 15, 20, 25, 50])
def test_sde(steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        ddim_scheduler().config, algorithm_type="sde-dpmsolver++"
    )
    scheduler.set_timesteps(steps)
    timesteps = timesteps_of("dpm++", steps, 1000)
    x = expected = start(steps)
    predicted = [start(100 + i) for i in range(steps)]
    noise = [start(200 + i) for i in range(steps)]
    ours = samplers.sde_dpm_solver(
        lambda x, i: predicted[i], x, timesteps, ALPHAS, noise=iter(noise).__next__
    )
    for step, latents in enumerate(ours):
        expected = scheduler.step(
            predicted[step], timesteps[step], expected, variance_noise=noise[step]
        ).prev_sample
        torch.testing.assert_close(
            latents, expected.double(), rtol=TOLERANCE, atol=TOLERANCE * expected.abs().max().item()
        )
    assert step == steps - 1
