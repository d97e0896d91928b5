"""Denoising in windows: against swapping the latents of separate windows, as the paper does."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion import samplers
from audiolitefocus.diffusion.denoise import denoise
from audiolitefocus.diffusion.inpaint import KnownLatents
from audiolitefocus.diffusion.noise import ClipNoise
from audiolitefocus.diffusion.schedule import alphas_cumprod, timesteps_of
from audiolitefocus.diffusion.windows import (
    OVERLAP,
    TOGETHER,
    Layout,
    WindowedNoise,
    window_seconds,
)
from audiolitefocus.models.unet import UNet
from audiolitefocus.options import GenerationOptions
from tests.support.compare import seeded
from tests.support.denoising import tiny_condition, tiny_unet

ALPHAS = alphas_cumprod(ScheduleConfig())
CPU = torch.device("cpu")
STEPS, REFERRING = 6, 2
LENGTH = 16
OPTIONS = GenerationOptions(num_inference_steps=STEPS, sampler="dpm++", guidance_scale=3.0)
BATCHED = 2e-6  # of the largest latent: what another batch size may change in float32


# Layout


@given(st.integers(2, 64), st.data())
def test_windows_cover_a_clip_with_enough_overlap(length, data):
    layout = Layout(data.draw(st.integers(length + 1, 20 * length)), length)
    starts = layout.starts
    assert starts[0] == 0 and starts[-1] + length == layout.frames
    for start, following in zip(starts, starts[1:], strict=False):
        assert start < following <= start + length - int(OVERLAP * length)


@given(st.integers(2, 64), st.data())
def test_every_frame_belongs_to_a_window_that_holds_it(length, data):
    layout = Layout(data.draw(st.integers(length + 1, 20 * length)), length)
    starts = torch.tensor(layout.starts)[layout.owners()]
    frames = torch.arange(layout.frames)
    assert ((starts <= frames) & (frames < starts + length)).all()


def test_neighbours_give_alternate_frames_of_their_overlap():
    layout = Layout(frames=28, length=16)
    assert layout.starts == [0, 12]
    assert layout.owners().tolist() == [0] * 12 + [0, 1, 0, 1] + [1] * 12


def test_the_first_window_lends_every_other_frame_of_what_one_window_holds():
    layout = Layout(frames=28, length=16)
    own = list(range(16))
    # frames 16 to 27 are the places 4 to 15 of the second window
    assert layout.lenders().tolist() == own + [16, 5, 18, 7, 20, 9, 22, 11, 24, 13, 26, 15]


@given(st.integers(2, 64), st.data())
def test_lent_frames_are_not_borrowed(length, data):
    lenders = Layout(data.draw(st.integers(length + 1, 20 * length)), length).lenders()
    assert torch.equal(lenders[lenders], lenders)


# Against the paper


def toy(x: Tensor, step: int) -> Tensor:
    """Some noise predicted of a window, which depends on all its frames and their places."""
    places = torch.linspace(0, 1, x.shape[2], dtype=x.dtype)[:, None]
    return torch.tanh(x + places + x.roll(1, 2) + 0.1 * step) + x.mean((1, 2, 3), keepdim=True)


def swap(windows: list[Tensor], layout: Layout, step: int) -> None:
    """SaFa's swaps after a step, on windows (b, 8, t, 16), written frame by frame."""
    starts = layout.starts
    holders = [
        [i for i, s in enumerate(starts) if s <= frame < s + layout.length]
        for frame in range(layout.frames)
    ]
    # neighbours, in their overlap
    before = [window.clone() for window in windows]
    for frame, inside in enumerate(holders):
        giver = inside[0] if frame % 2 == 0 else inside[-1]
        for i in inside:
            windows[i][:, :, frame - starts[i]] = before[giver][:, :, frame - starts[giver]]
    # the first window and each other, outside of overlaps
    for frame, inside in enumerate(holders):
        place = frame - starts[inside[0]]
        if len(inside) == 1 and step < REFERRING and place % 2 == 1:
            windows[inside[0]][:, :, place] = windows[0][:, :, place]


@pytest.mark.parametrize("frames", [17, 28, 40, 65])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_windows_equal_swapping_latents_after_every_step(frames, eta):
    clips, layout = 2, Layout(frames, LENGTH)
    timesteps = timesteps_of("ddim", STEPS, 1000)
    start = torch.randn(clips, 8, frames, 16, generator=seeded(), dtype=torch.float64)
    fresh = torch.randn(STEPS, *start.shape, generator=seeded(1), dtype=torch.float64)

    def cut(x: Tensor) -> list[Tensor]:
        return [x[:, :, s : s + LENGTH].clone() for s in layout.starts]

    # 1. In windows that hold their own latents and swap them
    expected = cut(start)
    swap(expected, layout, 0)  # the noise too: the reference lends from the beginning
    for step in range(STEPS):
        for i, noise in enumerate(cut(fresh[step])):
            one = samplers.ddim(
                lambda x, _, step=step: toy(x, step),
                expected[i],
                timesteps[step:],
                ALPHAS,
                eta=eta,
                noise=lambda _, noise=noise: noise,
            )
            expected[i] = next(one)
        swap(expected, layout, step)
    # 2. As the package does
    windows = WindowedNoise(layout, lambda copies, group: toy, clips, REFERRING, CPU)
    steps = samplers.ddim(
        windows,
        windows.share(start, 0),
        timesteps,
        ALPHAS,
        eta=eta,
        noise=lambda step: windows.share(fresh[step], step),
    )
    *_, found = steps
    for window, part in zip(expected, cut(found), strict=True):
        torch.testing.assert_close(part, window, rtol=1e-12, atol=1e-12)


# In the loop


@pytest.fixture(scope="module")
def unet() -> UNet:
    return tiny_unet()


@torch.inference_mode()
def run(unet: UNet, clips: int = 1, frames: int = 40, **changes) -> Tensor:
    arguments = {k: changes.pop(k) for k in ("window", "known", "attention") if k in changes}
    noise = [torch.randn(1, 8, frames, 16, generator=seeded(seed)) for seed in range(clips)]
    fresh = ClipNoise([seeded(seed) for seed in range(clips)], clips)
    conditions = tiny_condition(clips, 1), tiny_condition(clips, 2)
    options = replace(OPTIONS, **changes)
    *_, latents = denoise(
        unet, torch.cat(noise), *conditions, options, ScheduleConfig(), fresh=fresh, **arguments
    )
    return latents


@pytest.mark.parametrize("window", [40, 64])
def test_a_window_as_long_as_the_clip_changes_nothing(unet, window):
    assert torch.equal(run(unet, window=window), run(unet))


VARIANTS = {
    "dpm++": {},
    "ddim": {"sampler": "ddim", "eta": 1.0},
    "lcm": {"sampler": "lcm"},
    "litefocus": {"attention": "litefocus:0.2"},
    "reuse": {"reuse": "deepcache:2:start=0"},
    "guidance": {"guidance_interval": (0.25, 0.75), "adaptive_guidance": 0.9},
    "unguided": {"guidance_scale": 1.0},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_clip_in_windows_does_not_depend_on_its_batch(unet, variant):
    alone = run(unet, window=LENGTH, **VARIANTS[variant])
    together = run(unet, clips=TOGETHER, window=LENGTH, **VARIANTS[variant])
    assert (alone - together[:1]).abs().max() < BATCHED * alone.abs().max()
    assert torch.equal(run(unet, window=LENGTH, **VARIANTS[variant]), alone)


def test_windows_keep_what_they_reuse_apart(unet):
    """Where every step is in full, and where steps reuse, windows differ by little."""
    full, reused = run(unet, window=LENGTH), run(unet, window=LENGTH, reuse="deepcache:2:start=0")
    whole, whole_reused = run(unet), run(unet, reuse="deepcache:2:start=0")
    error = (reused - full).norm() / full.norm()
    assert 0 < error < 2 * (whole_reused - whole).norm() / whole.norm()


def test_held_frames_stay_held_in_windows(unet):
    known = torch.randn(1, 8, 40, 16, generator=seeded(5))
    changed = torch.zeros(40, dtype=torch.bool)
    changed[10:20] = True
    found = run(unet, window=LENGTH, known=KnownLatents(known, changed))
    assert torch.equal(found[:, :, ~changed], known[:, :, ~changed])
    assert not torch.equal(found[:, :, changed], known[:, :, changed])


# The option


@pytest.mark.parametrize(
    ("choice", "seconds", "expected"),
    [("off", 3600, None), ("auto", 80, None), ("auto", 160, 10.24), (40, 160, 40), (40, 40, None)],
)
def test_auto_is_windows_as_long_as_trained_for_very_long_clips(choice, seconds, expected):
    assert window_seconds(choice, seconds, 10.24) == expected


@pytest.mark.parametrize("value", ["of", "0.001", -1, True, float("nan"), "nan", None])
def test_windows_are_off_auto_or_seconds(value):
    with pytest.raises(ValueError, match="windows .*: must be off, auto or seconds from 0.04 to"):
        GenerationOptions(windows=value)


def test_attention_is_chosen_by_the_window(pipe):
    trained = pipe.config.trained_seconds
    call = {"audio_length_in_s": 4 * trained, "num_inference_steps": 1, "output_type": "latent"}
    chosen = [pipe("a bell", seed=0, windows=w, **call).attention for w in (trained, 2 * trained)]
    assert chosen[0] == "dense" and chosen[1] != "dense"
