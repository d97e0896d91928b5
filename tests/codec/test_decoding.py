"""The vocoder in chunks against the vocoder at once, and blocks of the waveform."""

import pytest
import torch

from audiolitefocus.checkpoints.bundle import load_component
from audiolitefocus.codec import decode as decoding
from audiolitefocus.codec import tiling as windows
from audiolitefocus.config import VocoderConfig, demo_folder
from audiolitefocus.models.vocoder import HiFiGAN

EXACT = 1e-13  # of a waveform in [-1, 1]
ROUNDING = 1e-6  # float32, root mean square: convolutions add up in an order that goes by length


@pytest.fixture(scope="module")
def vae():
    return load_component(demo_folder(), "vae", dtype=torch.float32)


@pytest.fixture(scope="module")
def vocoder():
    return load_component(demo_folder(), "vocoder", dtype=torch.float32)


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK_FRAMES", 64)
    monkeypatch.setattr(windows, "WINDOW_FRAMES", 64)


@pytest.mark.parametrize("frames", [1, 63, 64, 89, 90, 128, 129, 300])
@torch.inference_mode()
def test_the_vocoder_in_chunks_is_the_vocoder(small_windows, frames):
    config = VocoderConfig(
        initial_channels=16, upsample_rates=(5, 4, 2), upsample_kernels=(16, 16, 8)
    )
    torch.manual_seed(0)
    vocoder, mel = HiFiGAN(config).double(), torch.randn(2, frames, 64, dtype=torch.float64)
    expected = vocoder(mel)
    for blocks in ([mel], mel.split(37, dim=1), mel.split(5, dim=1)):
        found = torch.cat(list(decoding.vocode(vocoder, blocks)), dim=1)
        assert found.shape == expected.shape == (2, 40 * frames + 8)
        torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


@torch.inference_mode()
def test_in_float32_chunks_round_like_the_vocoder_at_once(vocoder, small_windows):
    mel = torch.randn(1, 300, 64, generator=torch.Generator().manual_seed(0))
    whole, found = vocoder(mel), torch.cat(list(decoding.vocode(vocoder, [mel])), dim=1)
    truth = load_component(demo_folder(), "vocoder", dtype=torch.float64)(mel.double())
    assert (found - whole).square().mean().sqrt() < ROUNDING
    assert (found - truth).abs().max() < 1.5 * (whole - truth).abs().max()


def test_the_vocoder_sees_no_further_than_its_receptive_field(vocoder):
    """A change of one mel frame, by automatic differentiation."""
    assert decoding.receptive_field(VocoderConfig()) == 25
    reach = decoding.receptive_field(vocoder.config)
    mel = torch.randn(1, 101, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    vocoder(mel)[0, 50 * 160 : 51 * 160].sum().backward()
    seen = mel.grad[0].abs().sum(-1).nonzero().flatten()
    assert 50 - reach <= seen.min() and seen.max() <= 50 + reach
    assert seen.max() - seen.min() > reach  # and not much less than it could


@pytest.mark.parametrize("samples", [None, 1, 640 * 300, 640 * 300 - 77])
@torch.inference_mode()
def test_blocks_are_cut_to_the_sample(vae, vocoder, small_windows, samples):
    latents = torch.randn(1, 8, 300, 16, generator=torch.Generator().manual_seed(0))
    blocks = list(decoding.decode_blocks(vae, vocoder, latents, samples))
    total = sum(block.shape[1] for block in blocks)
    assert total == (640 * 300 if samples is None else samples)
    assert all(block.shape[1] for block in blocks)
