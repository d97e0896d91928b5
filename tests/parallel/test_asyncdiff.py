"""AsyncDiff against a simulation that looks up every tensor by name, step and age."""

from dataclasses import replace
from functools import cache, partial

import pytest
import torch

from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion import samplers
from audiolitefocus.diffusion.denoise import denoise
from audiolitefocus.diffusion.guidance import guidance_scales, guide
from audiolitefocus.diffusion.inpaint import KnownLatents
from audiolitefocus.diffusion.schedule import alphas_cumprod, timesteps_of
from audiolitefocus.models.condition import stack_conditions
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.options import GenerationOptions
from audiolitefocus.parallel.asyncdiff import denoise_parts
from audiolitefocus.parallel.parts import cut, piece_operations
from audiolitefocus.parallel.settings import AsyncDiff
from tests.support.denoising import attention_of, clip_noise, run_with, tiny_condition

STEPS, SCALE = 10, 3.0
OPTIONS = GenerationOptions(num_inference_steps=STEPS, sampler="dpm++", guidance_scale=SCALE)
# The tiny UNet, written out: what each piece takes, first the feature map and then the skip.
TAKES = {
    "in": (),
    "down 0": ("in",),
    "half 0": ("down 0",),
    "down 1": ("half 0",),
    "half 1": ("down 1",),
    "down 2": ("half 1",),
    "middle": ("down 2",),
    "up 2 a": ("middle", "down 2"),
    "up 2 b": ("up 2 a", "half 1"),
    "double 2": ("up 2 b", "down 1"),
    "up 1 a": ("double 2", "down 1"),
    "up 1 b": ("up 1 a", "half 0"),
    "double 1": ("up 1 b", "down 0"),
    "up 0 a": ("double 1", "down 0"),
    "up 0 b": ("up 0 a", "in"),
    "out": ("up 0 b",),
}
NAMES = list(TAKES)


class Simulation:
    """One process that keeps every output of every round, and which latents it was made of.

    A round is one run of the parts: of whole steps, or at once. Its outputs are made of latents of
    one step, under the time of the same step or, with stride 2, of the next one.
    """

    def __init__(self, unet, settings: AsyncDiff, options, frames: int):
        self.unet, self.settings, self.steps = unet, settings, options.steps_taken
        self.timesteps = timesteps_of("dpm++", self.steps, 1000)
        self.scales = guidance_scales(SCALE, options.guidance_interval or (0.0, 1.0), self.steps)
        attention = attention_of(options)
        costs = piece_operations(unet, frames, 16, attention, 2)
        ranges = cut(costs, settings.parts)
        self.part = {NAMES[n]: part for part, own in enumerate(ranges) for n in own}
        shape, generator = torch.empty(1, 8, frames, 16), unet.sampling_generator(attention)
        self.plans = [unet.plan(attention, shape, generator) for _ in range(self.steps)]
        self.rounds = list(self.make_rounds())
        self.latents: dict[int, torch.Tensor] = {}
        self.value, self.ages = cache(self.value), cache(self.ages)

    def make_rounds(self):
        """(whole, step of the latents, steps whose noise it gives)."""
        step, before = 0, None
        while step < self.steps:
            guided = self.scales[step] != 1
            late = step >= self.steps - self.settings.last
            whole = step < self.settings.warmup or late or guided != before
            two = not whole and self.settings.stride == 2
            two = two and step + 1 < self.steps - self.settings.last
            yield whole, step, (step, step + 1) if two else (step,)
            if two and (self.scales[step + 1] != 1) != guided:
                two = False  # the noise of the next step is dropped
            before, step = guided, step + 1 + two

    def round_of(self, step: int) -> int:
        return max(n for n, (_, first, steps) in enumerate(self.rounds) if step in steps)

    def source(self, name: str, other: str, number: int, time: int) -> tuple[str, int, int]:
        """Which output of `other` the piece `name` takes in a round."""
        whole, _, _ = self.rounds[number]
        if whole or self.part[name] == self.part[other]:
            return other, number, time
        return other, number - 1, self.rounds[number - 1][2][-1]

    def inputs(self, time: int) -> StepInputs:
        conditions = [tiny_condition(1, 2), tiny_condition(1, 1)]
        guided = self.scales[time] != 1
        return StepInputs(
            self.unet.time_biases(torch.tensor([self.timesteps[time]])),
            *self.unet.cross_kv(stack_conditions(conditions if guided else conditions[1:])),
            self.plans[time],
        )

    def value(self, name: str, number: int, time: int) -> torch.Tensor:
        """The output of a piece in a round, under the time of a step."""
        if name == "in":
            latents = self.latents[self.rounds[number][1]]
            return self.unet.conv_in(latents.mT.contiguous(memory_format=torch.channels_last))
        taken = (self.source(name, other, number, time) for other in TAKES[name])
        x, *skips = (self.value(*found) for found in taken)
        return self.compute(name, x, skips, self.inputs(time))

    def compute(self, name: str, x, skips, inputs: StepInputs) -> torch.Tensor:
        unet, (kind, *place) = self.unet, name.split()
        if kind == "out":
            return unet.conv_out(torch.nn.functional.silu(unet.norm_out(x))).mT
        if kind == "half":
            return unet.down[int(place[0])].resample(x)
        if kind == "double":
            return unet.up[2 - int(place[0])].resample(x, skips[0].shape[-2:])
        if kind == "middle":
            return unet.middle(x, inputs)
        if kind == "down":
            return unet.down[int(place[0])].stages[0](x, inputs)
        stage = unet.up[2 - int(place[0])].stages["ab".index(place[1])]
        skip = skips[0] if len(skips[0]) == len(x) else torch.cat([skips[0]] * 2)
        return stage(torch.cat([x, skip], dim=1), inputs)

    def ages(self, name: str, number: int, time: int) -> frozenset[int]:
        """The steps whose latents an output was made of."""
        if name == "in":
            return frozenset([self.rounds[number][1]])
        taken = (self.source(name, other, number, time) for other in TAKES[name])
        return frozenset.union(*(self.ages(*found) for found in taken))

    def predict(self, latents: torch.Tensor, step: int) -> torch.Tensor:
        self.latents[step] = latents
        noise = self.value("out", self.round_of(step), step)
        return guide(noise, self.scales[step]) if self.scales[step] != 1 else noise

    @torch.inference_mode()
    def run(self, frames: int) -> list[torch.Tensor]:
        noise, alphas = clip_noise(1, frames), alphas_cumprod(ScheduleConfig())
        return list(samplers.dpm_solver(self.predict, noise, self.timesteps, alphas))


@pytest.mark.parametrize(
    "settings, options, frames",
    [
        (AsyncDiff(2, warmup=3), {}, 16),
        (AsyncDiff(3, warmup=1, last=0), {"attention": "litefocus:0.2"}, 13),
        (AsyncDiff(4, warmup=2), {"attention": "tome"}, 16),
        (AsyncDiff(2, warmup=1, last=0, stride=2), {"attention": "litefocus:0.2"}, 13),
        (AsyncDiff(3, warmup=2, last=1, stride=2), {}, 16),
        (AsyncDiff(3, warmup=1, last=1), {"guidance_interval": (0.2, 0.7)}, 16),
        (AsyncDiff(4, warmup=1, last=1, stride=2), {"guidance_interval": (0.2, 0.7)}, 16),
    ],
)
def test_parts_work_on_what_the_simulation_says(unet, networks, settings, options, frames):
    options = replace(OPTIONS, parallel=settings, **options)
    found = run_with(partial(denoise_parts, networks), options, frames=frames)
    expected = Simulation(unet, settings, options, frames).run(frames)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    on_one = run_with(partial(denoise, unet), options, frames=frames)[-1]
    assert (found[-1] - on_one).abs().max() > 1e-3 * on_one.abs().max()


def test_a_part_is_as_many_steps_late_as_there_are_parts_before_it(unet):
    settings = AsyncDiff(3, warmup=1, last=1)
    simulation = Simulation(unet, settings, OPTIONS, 16)
    for step in range(3, STEPS - 1):
        seen = {part: set() for part in range(3)}
        for name in NAMES:
            seen[simulation.part[name]] |= simulation.ages(name, step, step)
        assert seen == {0: {step}, 1: {step - 1}, 2: {step - 1, step - 2}}
    assert simulation.ages("out", 0, 0) == {0} and simulation.ages("out", 9, 9) == {9}


@pytest.mark.parametrize(
    "attention, clips, frames",
    [("dense", 2, 16), ("litefocus:0.2:levels=1-2", 1, 13), ("tome", 2, 16)],
)
def test_whole_steps_are_those_of_one_device_bit_for_bit(unet, networks, attention, clips, frames):
    settings = AsyncDiff(4, warmup=4)
    options = replace(OPTIONS, num_inference_steps=4, parallel=settings, attention=attention)
    found = run_with(partial(denoise_parts, networks), options, clips, frames)
    expected = run_with(partial(denoise, unet), options, clips, frames)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"adaptive_guidance": 0.9},
        {"sampler": "ddim", "eta": 1.0},
        {"guidance_scale": 1.0},
        {"init_audio": "a.wav", "strength": 0.7},
    ],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_a_clip_does_not_depend_on_its_batch_and_is_repeated(networks, changes, stride):
    options = replace(OPTIONS, parallel=AsyncDiff(2, warmup=2, stride=stride), **changes)
    known = KnownLatents(clip_noise(1), torch.arange(16) >= 8) if "strength" in changes else None
    run = partial(run_with, partial(denoise_parts, networks), options, known=known)
    alone, again, both = run()[-1], run()[-1], run(clips=2)[-1]
    assert torch.equal(alone, again)
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-5 * float(alone.abs().max()))


def test_the_last_whole_steps_draw_as_on_one_device(unet, networks):
    """Of the indices of steps that are left out with stride 2, too."""
    parts = []
    settings = AsyncDiff(2, warmup=1, last=2, stride=2)
    options = replace(OPTIONS, parallel=settings, attention="litefocus:0.2")
    drawn = unet.sampling_generator("litefocus:0.2")
    plans = [unet.plan("litefocus:0.2", torch.empty(1, 8, 16, 16), drawn) for _ in range(STEPS)]
    for network in networks[:3]:
        evaluate = network.unet.evaluate

        def watch(latents, inputs, evaluate=evaluate):
            parts.append(next(iter(inputs.attend.values())).keywords["compensation"])
            return evaluate(latents, inputs)

        networks = [replace(n, evaluate=watch) if n is network else n for n in networks]
    run_with(partial(denoise_parts, networks), options)
    expected = [next(iter(plan.values())).keywords["compensation"] for plan in plans]
    # step 0 whole; pairs 1-2, 3-4, 5-6: two parts under the second, the last again under the
    # first; 7 at once; 8 and 9 whole
    steps = [0, 0, *(2, 2, 1), *(4, 4, 3), *(6, 6, 5), 7, 7, 8, 8, 9, 9]
    assert len(parts) == len(steps)
    assert all(torch.equal(x, expected[step]) for x, step in zip(parts, steps, strict=True))
