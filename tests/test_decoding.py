"""Decoding in bounded memory against decoding everything at once."""

import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline, decoding
from audiolitefocus.checkpoint import load_component
from audiolitefocus.config import VocoderConfig, demo_folder
from audiolitefocus.vae import MiddleAttention

VOCODER_TOLERANCE = 2e-6  # the same products in another order; 5e-7 on the decoder's own mel
SEAM_DB = -60.0  # windows that share their norms, without the attention in the middle
ATTENTION_DB = -50.0  # with it: random weights attend sharply, to places that a window may not have


@pytest.fixture(scope="module")
def vae():
    return load_component(demo_folder(), "vae", dtype=torch.float32)


@pytest.fixture(scope="module")
def vocoder():
    return load_component(demo_folder(), "vocoder", dtype=torch.float32)


@pytest.fixture
def small_windows(monkeypatch):
    for name, frames in (("WHOLE", 128), ("WINDOW", 160), ("CHUNK", 64)):
        monkeypatch.setattr(decoding, f"{name}_FRAMES", frames)


def latents_of(frames: int, batch: int = 1) -> torch.Tensor:
    """Noise that changes its strength and colour over time, so that no window is like another."""
    noise = torch.randn(batch, 8, frames, 16, generator=torch.Generator().manual_seed(frames))
    envelope = 1 + 0.5 * torch.sin(torch.linspace(0, 9, frames))
    return noise * envelope[:, None]


def decibels(error: torch.Tensor, signal: torch.Tensor) -> float:
    return 20 * torch.log10(error.norm() / signal.norm()).item()


@pytest.mark.parametrize("frames", [1, 63, 64, 89, 90, 128, 129, 300])
@torch.inference_mode()
def test_the_vocoder_in_chunks_is_the_vocoder(vocoder, small_windows, frames):
    mel = torch.randn(2, frames, 64, generator=torch.Generator().manual_seed(0))
    expected = vocoder(mel)
    for blocks in ([mel], mel.split(37, dim=1), mel.split(5, dim=1)):
        found = torch.cat(list(decoding.vocode(vocoder, blocks)), dim=1)
        assert found.shape == expected.shape == (2, 160 * frames + 32)
        torch.testing.assert_close(found, expected, rtol=0, atol=VOCODER_TOLERANCE)


def test_the_vocoder_sees_no_further_than_its_receptive_field(vocoder):
    """A change of one mel frame, by automatic differentiation."""
    reach = decoding.receptive_field(VocoderConfig())
    assert reach == decoding.receptive_field(vocoder.config) == 25
    mel = torch.randn(1, 101, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    vocoder(mel)[0, 50 * 160 : 51 * 160].sum().backward()
    seen = mel.grad[0].abs().sum(-1).nonzero().flatten()
    assert 50 - reach <= seen.min() and seen.max() <= 50 + reach
    assert seen.max() - seen.min() > reach  # and not much less than it could


@pytest.mark.parametrize("frames", [129, 160, 161, 400])
@pytest.mark.parametrize("way", ["decode", "encode"])
@torch.inference_mode()
def test_windows_without_attention_are_exact(vae, small_windows, frames, way, monkeypatch):
    """Statistics of the whole clip, and overlaps longer than convolutions can see."""
    monkeypatch.setattr(MiddleAttention, "forward", lambda _, x: x)
    batch = latents_of(frames, batch=2)
    if way == "decode":
        expected = vae.decode(batch)
        found = torch.cat(list(decoding.decode_mel(vae, batch)), dim=1)
    else:
        mel = batch.transpose(1, 2).reshape(2, 4 * frames, -1)[:, :, :64].repeat(1, 1, 2)
        expected, found = vae.encode(mel)[0], decoding.encode_mel(vae, mel)
    assert found.shape == expected.shape
    assert decibels(found - expected, expected) < SEAM_DB


@pytest.mark.parametrize("frames", range(73, 4000, 131))
def test_time_windows_cover_the_clip_and_overlap(frames):
    spans = decoding.time_windows(frames)
    assert spans[0][0] == 0 and spans[-1][1] == frames
    assert all(0 < stop - start <= decoding.WINDOW_FRAMES for start, stop in spans)
    for (_, stop), (start, _) in zip(spans, spans[1:], strict=False):
        assert stop - start == decoding.OVERLAP_FRAMES


@pytest.mark.slow
@torch.inference_mode()
def test_seams_in_a_generated_clip():
    """A minute and a half, with the real windows, against whole decoding: mel and waveform."""
    pipe = AudioLDM2Pipeline.from_pretrained("demo", device="cpu")
    latents = pipe(
        "rain",
        audio_length_in_s=90,
        num_inference_steps=4,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).audios
    unscaled = latents / pipe.config.vae.scale_factor
    whole = pipe.vae.decode(unscaled)
    mel = torch.cat(list(decoding.decode_mel(pipe.vae, unscaled)), dim=1)
    assert decibels(mel - whole, whole) < ATTENTION_DB
    expected = pipe.vocoder(whole)
    found = torch.cat(list(decoding.vocode(pipe.vocoder, [mel])), dim=1)
    assert decibels(found - expected, expected) < ATTENTION_DB


@pytest.mark.parametrize("samples", [None, 1, 640 * 300, 640 * 300 - 77])
@torch.inference_mode()
def test_blocks_are_cut_to_the_sample(vae, vocoder, small_windows, samples):
    blocks = list(decoding.decode_blocks(vae, vocoder, latents_of(300), samples))
    total = sum(block.shape[1] for block in blocks)
    assert total == (640 * 300 + 32 if samples is None else samples)
    assert all(block.shape[1] for block in blocks)


def test_no_hook_stays(vae, small_windows):
    expected = vae.decode(latents_of(100))
    blocks = decoding.decode_mel(vae, latents_of(400))
    next(blocks)  # and no more: the caller has had enough
    assert torch.equal(vae.decode(latents_of(100)), expected)
