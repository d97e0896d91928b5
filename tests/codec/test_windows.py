"""The autoencoder in windows against the autoencoder at once."""

import math
import os
import resource
from itertools import pairwise

import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.checkpoints.bundle import load_component
from audiolitefocus.codec import tiling as windows
from audiolitefocus.codec.decode import decode_mel, encode_mel
from audiolitefocus.config import VAEConfig, demo_folder
from audiolitefocus.models.vae import VAE

EXACT_DB = -200.0  # float64: rounding alone; any seam is far above
SEAM_DB = -60.0  # float32, where whole decoding itself is off by -80 dB: group norms round
CLOSER_DB = 20.0  # than whole decoding, to float64


@pytest.fixture(scope="module")
def vae():
    return load_component(demo_folder(), "vae", dtype=torch.float32)


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(windows, "WINDOW_FRAMES", 48)


def latents_of(frames: int, batch: int = 1, rows: int = 16) -> torch.Tensor:
    """Noise that is loud and soft by turns, so that no window is like the clip."""
    noise = torch.randn(batch, 8, frames, rows, generator=torch.Generator().manual_seed(frames))
    loud = torch.arange(frames) % 100 < 50
    return noise * torch.where(loud, 2.0, 0.1)[:, None]


def in_windows(vae, latents: torch.Tensor) -> torch.Tensor:
    return torch.cat(list(decode_mel(vae, latents, whole=False)), dim=1)


def decibels(found: torch.Tensor, expected: torch.Tensor) -> float:
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    return 20 * math.log10(error)


@pytest.mark.parametrize("frames, batch", [(1, 1), (48, 1), (49, 2), (150, 1)])
@pytest.mark.parametrize(
    "config",
    [
        VAEConfig(channels=(8,), resnets=1, norm_groups=4),
        VAEConfig(channels=(4, 8, 12), resnets=2, norm_groups=4),
        VAEConfig(channels=(4, 8, 8, 4), resnets=3, norm_groups=4),
    ],
    ids=lambda config: f"{len(config.channels)}-levels",
)
@torch.inference_mode()
def test_windows_are_exact(small_windows, config, frames, batch):
    torch.manual_seed(0)
    vae = VAE(config).double()
    latents = latents_of(frames, batch, rows=4).double()
    mel, found = vae.decode(latents), in_windows(vae, latents)
    assert found.shape == mel.shape and decibels(found, mel) < EXACT_DB
    expected, found = vae.encode(mel)[0], encode_mel(vae, mel, whole=False)
    assert found.shape == expected.shape and decibels(found, expected) < EXACT_DB


@torch.inference_mode()
def test_in_float32_windows_round_less_than_whole_decoding(vae, small_windows):
    latents = latents_of(200)
    whole, found = vae.decode(latents), in_windows(vae, latents)
    truth = load_component(demo_folder(), "vae", dtype=torch.float64).decode(latents.double())
    assert decibels(found, whole) < SEAM_DB
    assert decibels(found, truth) < decibels(whole, truth) - CLOSER_DB


@pytest.mark.parametrize("frames", [1, 48, 49, 96, 97, 1000])
def test_windows_cover_the_clip(small_windows, frames):
    found = windows.windows(frames, halo=10)
    assert found[0].start == found[0].low == 0 and found[-1].stop == found[-1].high == frames
    assert all(0 < w.stop - w.start <= 48 for w in found)
    assert len({w.high - w.low for w in found}) == 1
    for window in found:
        assert 0 <= window.low <= max(0, window.start - 10)
        assert min(frames, window.stop + 10) <= window.high <= frames
    for one, other in pairwise(found):
        assert one.stop == other.start


def test_norms_are_left_as_they_were(vae, small_windows):
    expected = vae.decode(latents_of(30))
    next(decode_mel(vae, latents_of(100), whole=False))  # and no more: the caller has had enough
    assert torch.equal(vae.decode(latents_of(30)), expected)


def test_progress_counts_to_the_end(vae, small_windows):
    heard = []
    for _ in decode_mel(vae, latents_of(100), whole=False, on_window=lambda *n: heard.append(n)):
        pass
    total = heard[0][1]
    assert heard == [(n + 1, total) for n in range(total)]


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="files are not filled beforehand")
def test_no_room_for_the_maps_is_an_error(vae, small_windows):
    """A limit on the size of files stands for a full disk; without room kept beforehand, writing to
    the map would end the process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match="no room for .* TMPDIR"):
            in_windows(vae, latents_of(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
@torch.inference_mode()
def test_a_generated_clip():
    """A minute and a half, with the real windows: mel and waveform."""
    pipe = AudioLDM2Pipeline.from_pretrained("demo", device="cpu")
    latents = pipe(
        "rain",
        audio_length_in_s=90,
        num_inference_steps=4,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).audios
    unscaled = latents / pipe.config.vae.scale_factor
    mel, found = pipe.vae.decode(unscaled), in_windows(pipe.vae, unscaled)
    assert decibels(found, mel) < SEAM_DB
    assert decibels(pipe.vocoder(found), pipe.vocoder(mel)) < SEAM_DB
