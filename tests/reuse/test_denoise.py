"""Denoising with reuse and with guidance in some steps: what is computed, and what comes out."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from audiolitefocus.diffusion.denoise import denoise
from audiolitefocus.diffusion.guidance import FADE, Agreement, guidance_scales, guide
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.models.unet import UNet
from audiolitefocus.options import GenerationOptions
from audiolitefocus.reuse.settings import Reuse, check_reuse
from audiolitefocus.reuse.store import ReuseStore
from tests.support.compare import seeded
from tests.support.denoising import clip_noise, run_with, tiny_condition, tiny_unet

STEPS = 8
OPTIONS = GenerationOptions(num_inference_steps=STEPS, sampler="dpm++", guidance_scale=3.0)
EVERY_OTHER = Reuse(2, start=0.0)
BATCHED = 2e-6  # of the largest latent: what another batch size may change in float32
VARIANTS = {
    "dense": {},
    "litefocus": {"attention": "litefocus:0.2"},
    "ddim": {"sampler": "ddim", "eta": 1.0},
    "interval": {"guidance_interval": (0.25, 0.75)},
    "adaptive": {"adaptive_guidance": 0.9},
}


@pytest.fixture(scope="module")
def unet() -> UNet:
    return tiny_unet()


def run(unet: UNet, options: GenerationOptions, clips: int = 1, **others) -> torch.Tensor:
    return run_with(partial(denoise, unet), options, clips, **others)[-1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_computing_everything_is_as_without_reuse(unet, variant):
    options = replace(OPTIONS, **VARIANTS[variant])
    for reuse in (Reuse(1), Reuse(5, start=1.0, order=1)):
        assert torch.equal(run(unet, replace(options, reuse=reuse)), run(unet, options))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("reuse", [EVERY_OTHER, replace(EVERY_OTHER, order=1, level=2)])
def test_reuse_changes_little_and_the_same_each_time(unet, variant, reuse):
    options = replace(OPTIONS, **VARIANTS[variant])
    full, reused = run(unet, options), run(unet, replace(options, reuse=reuse))
    assert torch.equal(run(unet, replace(options, reuse=reuse)), reused)
    assert not torch.equal(reused, full)
    assert (reused - full).norm() < 0.5 * full.norm()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_clip_does_not_depend_on_its_batch(unet, variant):
    # guidance multiplies the rounding of both halves, so there is little of it
    options = replace(OPTIONS, guidance_scale=1.5, reuse=EVERY_OTHER, **VARIANTS[variant])
    together, alone = run(unet, options, clips=3), run(unet, options)
    tolerance = BATCHED * float(alone.abs().max())
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=tolerance)


def test_reused_outputs_are_those_of_the_last_full_step(unet):
    """Against a walk by hand: the deep part of step 0 under the shallow one of step 1."""
    latents, inputs = clip_noise(1), [StepInputs(*prepared(unet, t)) for t in (999, 800)]
    deep = unet.units()["down.1"]
    recording = replace(inputs[0], recorded={deep: None})
    assert torch.equal(unet.evaluate(latents, recording), unet.evaluate(latents, inputs[0]))
    kept = recording.recorded[deep]
    later = unet.evaluate(latents + 1, replace(inputs[1], reused={deep: kept}))

    handle = unet.up[-2].resample.register_forward_pre_hook(lambda m, x: (kept, *x[1:]))
    try:
        by_hand = unet.evaluate(latents + 1, inputs[1])
    finally:
        handle.remove()
    assert torch.equal(later, by_hand)


def prepared(unet: UNet, timestep: int):
    return unet.time_biases(torch.tensor([timestep])), *unet.cross_kv(tiny_condition(1, 1)), {}


def operations(unet: UNet, options: GenerationOptions) -> int:
    with FlopCounterMode(display=False) as counter:
        run(unet, options)
    return counter.get_total_flops()


def test_operations_are_those_of_the_steps_that_compute(unet):
    """Full steps cost what a run of them does, others what is left outside of the reused level."""
    one, two = (operations(unet, replace(OPTIONS, num_inference_steps=n)) for n in (1, 2))
    full = two - one
    shallow = operations(unet, replace(OPTIONS, num_inference_steps=2, reuse=EVERY_OTHER)) - one
    assert 0 < shallow < 0.6 * full
    for interval in (2, 3):
        reuse = Reuse(interval, start=0.5)
        computed = sum(reuse.table(STEPS)["down.1"])
        found = operations(unet, replace(OPTIONS, reuse=reuse)) - (one - full)
        assert found == computed * full + (STEPS - computed) * shallow


def test_steps_without_guidance_cost_what_an_unguided_run_does(unet):
    halves = replace(OPTIONS, guidance_interval=(0.0, 0.5))
    one, two = (operations(unet, replace(OPTIONS, num_inference_steps=n)) for n in (1, 2))
    guided, before = two - one, 2 * one - two
    found = operations(unet, halves) - before
    conditional = (found - STEPS // 2 * guided) / (STEPS // 2)
    assert 0.45 * guided < conditional < 0.65 * guided


def test_guidance_everywhere_is_as_without_an_interval(unet):
    assert guidance_scales(3.0, (0.0, 1.0), STEPS) == [3.0] * STEPS
    options = replace(OPTIONS, guidance_interval=(0.0, 1.0), adaptive_guidance=1.0)
    assert torch.equal(run(unet, options), run(unet, OPTIONS))


def test_the_scale_rises_and_falls_inside_its_interval():
    scales = guidance_scales(4.0, (0.2, 0.8), 20)
    guided = [step for step, scale in enumerate(scales) if scale > 1]
    assert guided == list(range(4, 16))
    assert scales[4:6] == [2.0, 3.0] and scales[14:16] == [3.0, 2.0] and FADE == 2
    assert set(scales[6:14]) == {4.0}
    assert guidance_scales(4.0, (0.0, 0.5), 4) == [3.0, 2.0, 1.0, 1.0]


def test_a_clip_whose_halves_agree_is_no_longer_guided():
    agreement, generator = Agreement(0.9, 2), seeded()
    latents = torch.randn(2, 8, 4, 16, generator=generator)
    differing = torch.randn(2, 8, 4, 16, generator=generator)
    both = torch.cat([latents, torch.stack([latents[0], differing[1]])])  # clip 0 agrees
    first = agreement.guide(both, 3.0, latents, 0.01)
    assert torch.equal(first, guide(both, 3.0)) and agreement.agreed.tolist() == [True, False]
    second = agreement.guide(both, 3.0, latents, 0.01)
    torch.testing.assert_close(second[0], both[2])
    torch.testing.assert_close(second[1], guide(both, 3.0)[1])
    assert not agreement.of_all()


def test_order_1_extrapolates_along_positions():
    unit = torch.nn.Identity()
    store = ReuseStore({"u": (True, True, False, False)}, {"u": unit}, [0.0, 1.0, 3.0, 4.0], 1)
    for step, value in enumerate((1.0, 2.0)):
        assert not store.reused(step, 1, 1) and store.wanted(step) == {unit: None}
        store.keep(step, {unit: torch.tensor([value])})
    assert store.reused(2, 1, 1)[unit].item() == 4.0
    assert store.reused(3, 1, 1)[unit].item() == 5.0


def test_where_guidance_ends_the_conditions_half_goes_on_and_where_it_begins_nothing_does():
    before, after = torch.nn.Identity(), torch.nn.Identity()  # the text is first attended to
    table, units = {"a": (True, False, False), "b": (True, False, False)}, {"a": before, "b": after}
    store = ReuseStore(table, units, [0.0, 1.0, 2.0])
    store.reused(0, 2, 2)
    store.keep(0, {before: torch.arange(2), after: torch.arange(4)})
    reused = store.reused(1, 2, 1)
    assert reused[before].tolist() == [0, 1] and reused[after].tolist() == [2, 3]
    assert store.reused(2, 2, 2) == {}


def test_units_that_a_network_lacks_are_refused(unet):
    run = {"sampler": "dpm++", "steps": 4, "attention": "dense", "unet_sha256": None}
    check_reuse(Reuse(), unet.units(), **run)
    with pytest.raises(ValueError, match=r"reuse deepcache:3:level=7: this UNet has no down\.7"):
        check_reuse(Reuse(level=7), unet.units(), **run)
