"""Decoding in half precision against float32: what can be heard of it."""

import pytest
import torch

from audiolitefocus.checkpoints.bundle import load_component
from audiolitefocus.codec.decode import decode_blocks
from audiolitefocus.codec.mel import log_mel
from audiolitefocus.config import VAEConfig, demo_folder
from audiolitefocus.models.vae import VAE
from audiolitefocus.models.vocoder import HiFiGAN

LOG_MEL_BOUND = 0.05  # nats, mean over a clip; 0.005 to 0.032 are measured with bfloat16
FLOOR_BOUND = 1.0  # dB by which noise may rise in the quietest bands of a tone; 0.1 is measured
LATENT_BOUND = 0.02  # root mean square, of latents whose own is 1
FEW = ["a high steady tone", "a high soft steady tone", "silence", "white noise"]
MANY = [
    *FEW, "a low steady tone", "a rising chirp", "a fast metronome", "rain", "wind", "crickets",
    "quiet irregular clicks", "a low major chord with rumbling pink noise in the background",
    "a soft racing engine hum", "the sound of a low loud ringing bell", "a slow siren",
    "a plucked string", "a drum", "a melody with rainfall in the background",
]  # fmt: skip


def networks(dtype: torch.dtype) -> tuple[VAE, HiFiGAN]:
    return tuple(load_component(demo_folder(), name, dtype=dtype) for name in ("vae", "vocoder"))


def log_mels(latents: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(n, t, m), of the waveforms."""
    vae, vocoder = networks(dtype)
    waveforms = torch.cat(list(decode_blocks(vae, vocoder, latents)), dim=1)
    assert waveforms.dtype == torch.float32
    return log_mel(waveforms, vocoder.config)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_not_audible(generate, dtype):
    latents = generate(FEW, 2.56, 10)
    difference = log_mels(latents, dtype) - log_mels(latents, torch.float32)
    assert difference.abs().mean((1, 2)).max() < LOG_MEL_BOUND


@pytest.mark.slow
def test_half_precision_is_not_audible_with_any_prompt(generate):
    for seconds in (2.56, 10.24):
        latents = generate(MANY, seconds, 10)
        difference = log_mels(latents, torch.bfloat16) - log_mels(latents, torch.float32)
        for prompt, nats in zip(MANY, difference.abs().mean((1, 2)), strict=True):
            assert nats < LOG_MEL_BOUND, prompt


def test_no_noise_fills_the_silence_under_a_tone(generate):
    """Nor silence itself: the level of the quietest quarter of frames and bands.

    Of three clips, as what is rounded where the features have 2000 a second is heard in some only.
    """
    latents = generate([*["a high steady tone"] * 3, "silence"], 2.56, 10)
    for exact, half in zip(
        log_mels(latents, torch.float32), log_mels(latents, torch.bfloat16), strict=True
    ):
        quiet = exact <= exact.quantile(0.25)
        rise = (half[quiet].mean() - exact[quiet].mean()) * 20 / torch.tensor(10.0).log()
        assert abs(rise) < FLOOR_BOUND


@torch.inference_mode()
def test_latents_of_recordings_are_alike(generate):
    exact, half = (networks(dtype)[0] for dtype in (torch.float32, torch.bfloat16))
    mel = exact.decode(generate(FEW, 2.56, 10) / exact.config.scale_factor)
    error = (half.encode(mel)[0] - exact.encode(mel)[0]) * exact.config.scale_factor
    assert error.square().mean((1, 2, 3)).sqrt().max() < LATENT_BOUND


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_audible_layers_stay_in_float32(dtype):
    vae, vocoder = networks(dtype)
    kept = [vae.decoder.conv_out, vae.encoder.conv_in, vocoder.conv_pre, vocoder.conv_post]
    kept += [*vocoder.upsampler, *vocoder.resblocks[2:]]
    assert all(weight.dtype == torch.float32 for part in kept for weight in part.parameters())
    rest = [vae.decoder.middle, vae.decoder.levels, *vocoder.resblocks[:2]]
    assert all(weight.dtype == dtype for part in rest for weight in part.parameters())


def test_networks_of_one_dtype_work_too():
    """As `Module.to` makes them: float64 for oracles, bfloat16 all through."""
    mel = torch.randn(1, 8, 64, generator=torch.Generator().manual_seed(0))
    vocoder = networks(torch.float32)[1]
    with torch.inference_mode():
        exact = vocoder(mel)
        assert vocoder.double()(mel.double()).dtype == torch.float64
        assert (vocoder.bfloat16()(mel) - exact).abs().max() < 0.1 * exact.abs().max()
        vae = VAE(VAEConfig(channels=(8,), resnets=1, norm_groups=4)).bfloat16()
        assert vae.decode(torch.randn(1, 8, 8, 4)).isfinite().all()
