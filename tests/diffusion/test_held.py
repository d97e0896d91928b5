"""Evaluations of a stretch of frames beside what is kept of the others, against full ones."""

import threading
from dataclasses import replace

import pytest
import torch

from audiolitefocus.attention.modules import SelfAttention
from audiolitefocus.config import BundleConfig, ScheduleConfig, UNetConfig
from audiolitefocus.diffusion import held
from audiolitefocus.diffusion.denoise import denoise
from audiolitefocus.diffusion.held import HeldFrames, held_frames
from audiolitefocus.diffusion.inpaint import KnownLatents
from audiolitefocus.diffusion.network import Draws, Network, Run
from audiolitefocus.diffusion.noise import ClipNoise
from audiolitefocus.diffusion.stretch import (
    KeepingFrames,
    Stretch,
    StretchFrames,
    stretch_around,
    sums,
)
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.models.unet import UNet
from audiolitefocus.options import GenerationOptions, OptionError
from audiolitefocus.reuse.settings import full_steps
from audiolitefocus.runtime import kept_bytes
from scripts.benchmark.operations import counter
from tests.support.checkpoints import randomize
from tests.support.compare import seeded

CONFIG = UNetConfig(channels=(32, 32, 64, 64), heads=(1, 2, 2, 2), resnets=1, loa_dim=16, t5_dim=8)
DEEP = replace(CONFIG, resnets=2, depth=2)
EXACT = 1e-11  # of the largest result, float64: the same sums in another order
ATTENTIONS = (
    "dense",
    "litefocus:0.2:levels=1-3",
    "litefocus:0.2:levels=1-3:weight=1",
    "litefocus:0.2:uniform=True:weight=0.5",
    "litefocus:0.2:duplicates=True",
    "litefocus:0:levels=1-2",
    "cross-frequency:0.3",
)
# length of the clip, and the stretch in it
STRETCHES = {
    "at the end": (48, Stretch(32, 48, 40, 48)),
    "in the middle": (48, Stretch(16, 32, 20, 28)),
    "at the start": (48, Stretch(0, 16, 0, 9)),
    "one token of the deepest level": (40, Stretch(24, 32, 24, 32)),
    "at an odd end": (45, Stretch(32, 45, 35, 45)),
    "before an odd end": (45, Stretch(16, 40, 16, 30)),
}


@pytest.fixture(scope="module")
def unet() -> UNet:
    return randomize(UNet(CONFIG), 0).double().eval().requires_grad_(False)


def condition(entries: int, seed: int = 1) -> Condition:
    generator = seeded(seed)
    loa = torch.randn(entries, 8, 16, generator=generator, dtype=torch.float64)
    t5 = torch.randn(entries, 5, 8, generator=generator, dtype=torch.float64)
    mask = torch.ones(entries, 5)
    mask[0, -1] = 0
    return Condition(loa, t5, mask)


def inputs_of(unet: UNet, latents: torch.Tensor, attention: str, branches: int = 2) -> StepInputs:
    entries = branches * len(latents)
    biases = unet.time_biases(torch.tensor([500]))
    return StepInputs(biases, *unet.cross_kv(condition(entries)), unet.plan(attention, latents))


def latents_of(clips: int, frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(clips, 8, frames, 16, generator=seeded(seed), dtype=torch.float64)


MIDDLE = Stretch(16, 32, 20, 28)
MIDDLE_OF_24 = Stretch(10, 18, 12, 16)


def evaluator(unet: UNet, stretch: Stretch, clips: int, full=(True, False)) -> HeldFrames:
    return HeldFrames(unet.evaluate, stretch, full, len(unet.config.channels), clips)


@torch.inference_mode()
def full_and_stretch(unet: UNet, case: str, attention: str, *, clips: int = 1, branches: int = 2):
    """A full evaluation and one of the stretch, of the same latents; the stretch of both."""
    frames, stretch = STRETCHES[case]
    start, stop = stretch.start, stretch.stop
    latents = latents_of(clips, frames)
    inputs = inputs_of(unet, latents, attention, branches)
    steps = evaluator(unet, stretch, clips)
    full, beside = (steps.evaluate(latents, inputs, step, branches) for step in (0, 1))
    assert torch.equal(full, unet.evaluate(latents, inputs))  # keeping changes nothing
    assert torch.equal(beside[:, :, :start], full[:, :, :start])
    assert torch.equal(beside[:, :, stop:], full[:, :, stop:])
    return full[:, :, start:stop], beside[:, :, start:stop]


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT * scale)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("case", ["at the end", "in the middle", "at an odd end"])
def test_a_stretch_beside_fresh_frames_is_the_full_evaluations(unet, case, attention):
    full, beside = full_and_stretch(unet, case, attention)
    assert not torch.equal(full, beside)  # it was computed, and not copied
    assert_near(beside, full)


@pytest.mark.parametrize("case", STRETCHES)
@pytest.mark.parametrize(("clips", "branches"), [(2, 2), (2, 1)])
def test_so_it_is_wherever_it_lies_and_for_several_clips(unet, case, clips, branches):
    full, beside = full_and_stretch(unet, case, "dense", clips=clips, branches=branches)
    assert_near(beside, full)


def test_so_it_is_with_more_layers():
    deep = randomize(UNet(DEEP), 1).double().eval().requires_grad_(False)
    full, beside = full_and_stretch(deep, "in the middle", "litefocus:0.2:levels=1-3")
    assert_near(beside, full)


@torch.inference_mode()
def test_kept_frames_are_those_of_the_last_full_evaluation(unet):
    """What the others do meanwhile is not seen, and what the stretch does is."""
    steps = evaluator(unet, MIDDLE, 1, full=(True, False, False))
    latents = latents_of(1, 48)
    inputs = inputs_of(unet, latents, "dense")
    steps.evaluate(latents, inputs, 0, 2)
    others, own = latents.clone(), latents.clone()
    others[:, :, :16], others[:, :, 32:] = 7.0, -7.0
    own[:, :, 20] += 1.0
    same = steps.evaluate(others, inputs, 1, 2)
    assert torch.equal(same, steps.evaluate(latents, inputs, 2, 2))
    assert_near(same, unet.evaluate(latents, inputs))
    assert (steps.evaluate(own, inputs, 1, 2) - same)[:, :, 16:32].abs().amin() > 0


@torch.inference_mode()
def test_where_guidance_ends_the_conditions_half_goes_on_and_where_it_begins_all_is_computed(unet):
    latents = latents_of(2, 48)
    both = inputs_of(unet, latents, "dense")
    one = replace(
        both,
        cross_kv={m: (k[2:], v[2:]) for m, (k, v) in both.cross_kv.items()},
        t5_mask=both.t5_mask[2:],
    )
    steps = evaluator(unet, MIDDLE, 2, full=(True, False, False, False))
    steps.evaluate(latents, both, 0, 2)
    conditional = steps.evaluate(latents, one, 1, 1)
    assert_near(conditional, unet.evaluate(latents, one))
    moved = latents + 1.0
    assert torch.equal(steps.evaluate(moved, both, 2, 2), unet.evaluate(moved, both))
    assert_near(steps.evaluate(moved, both, 3, 2), unet.evaluate(moved, both))


def test_sums_of_parts_are_those_of_all():
    x = torch.randn(2, 12, 4, 10, generator=seeded(), dtype=torch.float64) + 3
    parts = sum(sums(part, 3) for part in x.split([3, 0, 7], dim=3))
    count, total, squares = parts.unbind(1)
    grouped = x.view(2, 3, -1)
    assert (count == 4 * 4 * 10).all()
    torch.testing.assert_close(total / count, grouped.mean(2))
    variance = (squares / count - (total / count) ** 2).float()
    torch.testing.assert_close(variance, grouped.var(2, correction=0).float())
    assert sums(x.bfloat16(), 3).dtype == torch.float32


@torch.inference_mode()
def test_norms_follow_what_scales_and_shifts_all_frames():
    """By the margin alone: the changed frames may be anything."""
    norm = torch.nn.GroupNorm(2, 8, eps=1e-14).double()
    norm.weight.data, norm.bias.data = torch.randn(2, 8, generator=seeded(1)).double()
    earlier = torch.randn(2, 8, 4, 24, generator=seeded(), dtype=torch.float64) + 1
    keeping = KeepingFrames({24: MIDDLE_OF_24})
    keeping.norm(norm, earlier)
    later = 0.5 * earlier - 2.0
    later[..., 12:16] = torch.randn(2, 8, 4, 4, generator=seeded(2)).double()
    own = MIDDLE_OF_24.cut(later)[1]
    found = StretchFrames({8: MIDDLE_OF_24}, keeping.kept).norm(norm, own)
    assert_near(found, MIDDLE_OF_24.cut(norm(later))[1])


@pytest.mark.parametrize(
    ("frames", "changed", "margin", "expected"),
    [
        (64, (40, 64), 0, (40, 64)),
        (64, (41, 60), 0, (40, 64)),
        (64, (20, 30), 8, (8, 40)),
        (64, (0, 5), 3, (0, 8)),
        (61, (60, 61), 4, (56, 61)),
        (64, (20, 30), 40, None),
        (64, (0, 64), 0, None),
    ],
)
def test_the_stretch_lies_on_multiples_around_what_changes(frames, changed, margin, expected):
    mask = torch.zeros(frames, dtype=torch.bool)
    mask[slice(*changed)] = True
    stretch = Stretch(*expected, *changed) if expected else None
    assert stretch_around(mask, 8, margin) == stretch


def test_some_steps_are_full():
    assert full_steps(4, 0.0, 9, least=2) == tuple(step in (0, 1, 5) for step in range(9))
    assert full_steps(2, 0.5, 8) == (True, True, True, True, False, True, False, True)
    assert full_steps(3, 1.0, 3) == (True, True, True)


STEPS, FRAMES, CHANGED = 7, 64, slice(48, 64)
OPTIONS = GenerationOptions(
    num_inference_steps=STEPS,
    sampler="dpm++",
    guidance_scale=3.0,
    continue_audio="x.wav",
    audio_length_in_s=FRAMES / 25,
)
VARIANTS = {
    "dense": {},
    "litefocus": {"attention": "litefocus:0.2"},
    "ddim": {"sampler": "ddim", "eta": 1.0},
    "interval": {"guidance_interval": (0.25, 0.75)},
    "adaptive": {"adaptive_guidance": 0.9},
    "unguided": {"guidance_scale": 1.0},
}


@pytest.fixture(scope="module")
def single(unet) -> UNet:
    return randomize(UNet(CONFIG), 0).eval().requires_grad_(False)


def known() -> KnownLatents:
    changed = torch.zeros(FRAMES, dtype=torch.bool)
    changed[CHANGED] = True
    return KnownLatents(torch.randn(1, 8, FRAMES, 16, generator=seeded(5)), changed)


def noise(clips: int) -> torch.Tensor:
    return torch.cat([torch.randn(1, 8, FRAMES, 16, generator=seeded(s)) for s in range(clips)])


@torch.inference_mode()
def run(unet: UNet, options: GenerationOptions, clips: int = 1, **others) -> torch.Tensor:
    attention = "dense" if options.attention == "auto" else options.attention
    both = [
        Condition(c.loa.float().expand(clips, -1, -1), c.t5.float().expand(clips, -1, -1))
        for c in (condition(1, 1), condition(1, 2))
    ]
    fresh = ClipNoise([seeded(seed) for seed in range(clips)], clips)
    arguments = noise(clips), *both, options, ScheduleConfig()
    others = {"attention": attention, "fresh": fresh, "known": known(), **others}
    return list(denoise(unet, *arguments, **others))[-1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_other_frames_change_little_and_held_ones_not_at_all(single, variant):
    options = replace(OPTIONS, **VARIANTS[variant])
    full, partial = (run(single, replace(options, refresh=refresh)) for refresh in (1, 4))
    assert torch.equal(run(single, replace(options, refresh=4)), partial)
    held_part = known().latents[:, :, : CHANGED.start]
    assert torch.equal(partial[:, :, : CHANGED.start], held_part)
    assert torch.equal(full[:, :, : CHANGED.start], held_part)
    difference = (partial - full)[:, :, CHANGED]
    assert 0 < difference.norm() < 0.5 * full[:, :, CHANGED].norm()


@pytest.mark.parametrize("variant", ["dense", "ddim", "interval"])
def test_held_frames_do_not_leak_from_the_steps_between(single, variant, monkeypatch):
    """What the sampler gets for held frames in the steps between makes no difference."""
    options = replace(OPTIONS, refresh=4, **VARIANTS[variant])
    expected = run(single, options)
    evaluate = HeldFrames.evaluate

    def spoiled(self, latents, inputs, step, branches):
        noise = evaluate(self, latents, inputs, step, branches)
        if not self.full[step]:
            noise[:, :, : self.stretch.start] = float("nan")
        return noise

    monkeypatch.setattr(HeldFrames, "evaluate", spoiled)
    assert torch.equal(run(single, options), expected)


def test_draws_of_a_full_step_are_those_it_would_have_anyway(single, monkeypatch):
    """With the stretch's frames exact, every step is as in a full run, LiteFocus' keys included."""
    options = replace(OPTIONS, attention="litefocus:0.2:levels=1-3")
    drawn: dict[int, list[torch.Tensor]] = {}
    place = UNet.place
    for refresh in (1, 4):
        found = drawn.setdefault(refresh, [])

        def noted(self, *arguments, found=found):
            functions = place(self, *arguments)
            found.extend(attend.keywords["compensation"] for attend in functions.values())
            return functions

        monkeypatch.setattr(UNet, "place", noted)
        run(single, replace(options, refresh=refresh))
    assert len(drawn[1]) == len(drawn[4]) > STEPS
    assert all(torch.equal(a, b) for a, b in zip(drawn[1], drawn[4], strict=True))


def test_a_clip_does_not_depend_on_its_batch(single):
    options = replace(OPTIONS, refresh=4)
    together, alone = run(single, options, clips=3), run(single, options)
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=2e-6 * float(alone.abs().max()))


def test_two_threads_keep_apart(single):
    options = [replace(OPTIONS, refresh=refresh) for refresh in (3, 4)]
    expected = [run(single, chosen) for chosen in options]
    found: dict[int, torch.Tensor] = {}

    def work(number: int) -> None:
        found[number] = run(single, options[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[number], expected[number]) for number in (0, 1))


def test_nothing_is_held_without_a_recording_or_with_refresh_1(single):
    def stretch(options: GenerationOptions, recorded: KnownLatents | None):
        there = condition(1, 1)
        draws = Draws(single, "dense", FRAMES, 16)
        run = Run(1, there, None, options, [999], [0.0], "dense", draws, recorded)
        return held_frames(Network(single, single.evaluate), run).stretch

    refreshed, whole = replace(OPTIONS, refresh=4), KnownLatents(known().latents)
    assert stretch(OPTIONS, known()) is None
    assert stretch(refreshed, None) is None and stretch(refreshed, whole) is None
    assert stretch(refreshed, known()) == Stretch(32, 64, 48, 64)


def test_the_recording_comes_back_bit_for_bit(pipe):
    recording = torch.rand(16000, generator=seeded()) - 0.5
    options = {
        "continue_audio": recording,
        "audio_length_in_s": 2.56,
        "num_waveforms_per_prompt": 2,
    }
    options |= {"num_inference_steps": 4, "sampler": "dpm++", "seed": 1, "output_type": "pt"}
    full, partial = (pipe("a bell", refresh=refresh, **options).audios for refresh in (1, 3))
    assert torch.equal(partial[:, :16000], recording.expand(2, -1))
    assert (partial - full)[:, 16000:].abs().max() > 0


@torch.inference_mode()
def test_memory_of_keys_and_values_is_what_the_warning_says(single):
    stretch = Stretch(16, 24, 16, 24)
    frames = KeepingFrames(evaluator(single, stretch, 2)._by_length(FRAMES))
    latents = noise(2)
    both = condition(4)
    texts = single.cross_kv(Condition(both.loa.float(), both.t5.float()))
    inputs = StepInputs(single.time_biases(torch.tensor([5])), *texts, {}, frames=frames)
    single.evaluate(latents, inputs)
    kept = [x for m, x in frames.kept.items() if isinstance(m, SelfAttention)]
    held_bytes = sum(part.numel() * 4 for parts in kept for part in parts)
    expected = kept_bytes(BundleConfig(unet=CONFIG), 2 * FRAMES, 4)
    # without the stretch; and before the text is first attended to, entries are half as many
    found = held_bytes * FRAMES / (FRAMES - 8)
    assert 0.8 * expected < found <= expected


def operations(call) -> int:
    counted = counter()
    with torch.inference_mode(), counted:
        call()
    return counted.get_total_flops()


def test_operations_of_a_run_are_those_of_its_steps(single):
    """A step of the stretch alone costs what a clip of its length does, but for attention to the
    other frames and for neighbours where upsampling begins and ends.
    """
    runs = [
        operations(lambda n=n: run(single, replace(OPTIONS, num_inference_steps=n))) for n in (1, 2)
    ]
    full, before = runs[1] - runs[0], 2 * runs[0] - runs[1]
    computed = sum(full_steps(4, held.START, STEPS, least=2))
    found = operations(lambda: run(single, replace(OPTIONS, refresh=4))) - before
    partial, rest = divmod(found - computed * full, STEPS - computed)
    assert rest == 0
    assert partial == stretch_operations(single)


def stretch_operations(unet: UNet) -> int:
    """Counted of the stretch as a clip of its own, and added by hand what it sees of others."""
    stretch = stretch_around(known().changed, 8, held.MARGIN)
    length = stretch.stop - stretch.start
    latents = torch.zeros(1, 8, length, 16)
    both = [Condition(torch.zeros(2, 8, 16), torch.zeros(2, 5, 8))]
    inputs = StepInputs(unet.time_biases(torch.tensor([5])), *unet.cross_kv(*both), {})
    alone = operations(lambda: unet.evaluate(latents, inputs))
    alone += operations(lambda: unet.time_biases(torch.tensor([5])))
    more = 0
    for level, channels in enumerate(CONFIG.channels):
        rows, own, others = 16 >> level, length >> level, (FRAMES - length) >> level
        if level:  # scores, and values: two products each; before the text for one branch
            entries = attention_entries(level)
            more += entries * 2 * 2 * (rows * own) * (rows * others) * channels
            # four taps of each of the neighbour's two frames, and of each of its rows
            more += 2 * 2 * 4 * rows * 4 * channels**2
        # a convolution of the UNet has three rows of taps at the edge, padding counted
    return alone + more


def attention_entries(level: int) -> int:
    """Self-attentions of a level, each once for every branch that it has."""
    down, up, middle = 4, 8, 4 * (level == len(CONFIG.channels) - 1)
    shared = 3 if level == 1 else 0  # those before the text is first attended to
    return 2 * (down + up + middle) - shared


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refresh": 0}, "refresh 0: must"),
        ({"refresh": 4}, "refresh 4 needs frames that stay: give inpaint or continue_audio"),
        ({"refresh": 4, "init_audio": "x.wav"}, "refresh 4 needs frames that stay"),
        (
            {"refresh": 4, "init_audio": "x.wav", "inpaint": "1:2", "attention": "tome"},
            "refresh and attention tome exclude each other: give one",
        ),
        (
            {"refresh": 4, "init_audio": "x.wav", "inpaint": "1:2", "reuse": "auto"},
            "refresh and reuse exclude each other: give one",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(OptionError, match=message):
        GenerationOptions.make(None, changes)
