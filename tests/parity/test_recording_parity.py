"""Variations and inpainting against diffusers' schedulers, UNet and autoencoder, put together here
as its image pipelines do it, on librosa's spectrogram.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion.recording import PEAK, Recording
from audiolitefocus.diffusion.schedule import add_noise, alphas_cumprod, timesteps_of
from audiolitefocus.options import GenerationOptions
from tests.support.checkpoints import SCHEDULER
from tests.support.compare import assert_same

diffusers = pytest.importorskip("diffusers")

NOISE_TOLERANCE = 2e-5  # diffusers multiplies 1000 alphas in float32, we in float64
SECONDS, FRAMES = 1.28, 32
SPAN = (0.5, 0.81)  # in latent frames 12 to 20


@pytest.fixture(scope="module")
def ours(tiny_bundle):
    return AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu")


def scheduler_of(sampler: str):
    kinds = {"ddim": diffusers.DDIMScheduler, "dpm++": diffusers.DPMSolverMultistepScheduler}
    return kinds[sampler].from_config(diffusers.DDIMScheduler(**SCHEDULER).config)


def recording() -> np.ndarray:
    """A sliding tone over noise, at another level than the autoencoder was trained on."""
    time = np.arange(int(SECONDS * 16000)) / 16000
    noise = 0.02 * np.random.default_rng(0).standard_normal(len(time))
    return (0.1 + 0.2 * np.sin(2 * np.pi * (200 * time + 300 * time**2)) + noise).astype(np.float32)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize("steps", [1, 7, 25, 200])
@pytest.mark.parametrize("strength", [0.07, 0.3, 0.55, 0.58, 0.999, 1.0])
def test_the_last_timesteps_are_diffusers(sampler, steps, strength):
    scheduler = scheduler_of(sampler)
    scheduler.set_timesteps(steps)
    stand_in = SimpleNamespace(scheduler=scheduler)
    get_timesteps = diffusers.StableDiffusionImg2ImgPipeline.get_timesteps
    expected, count = get_timesteps(stand_in, steps, strength, "cpu")
    chosen = {"init_audio": "x.wav", "strength": strength, "num_inference_steps": steps}
    if count == 0:
        with pytest.raises(ValueError, match="less than one step"):
            GenerationOptions(**chosen)
    else:
        taken = GenerationOptions(**chosen).steps_taken
        assert timesteps_of(sampler, steps, 1000, taken) == expected.tolist()


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_noise_is_added_as_by_diffusers(sampler):
    scheduler, alphas = scheduler_of(sampler), alphas_cumprod(ScheduleConfig())
    scheduler.set_timesteps(200)
    clean, noise = torch.randn(2, 3, 8, 32, 8, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps[::20]:
        found = add_noise(clean, noise, alphas[timestep])
        expected = scheduler.add_noise(clean, noise, timestep[None])
        torch.testing.assert_close(found, expected, rtol=NOISE_TOLERANCE, atol=NOISE_TOLERANCE)


@torch.inference_mode()
def latents_of(waveform: np.ndarray, theirs) -> torch.Tensor:
    """librosa's log-mel of the recording, as loud as in training, through diffusers' encoder."""
    librosa = pytest.importorskip("librosa")
    centred = waveform - waveform.mean()
    loud = centred / np.abs(centred).max() * PEAK
    loud = np.pad(loud, (0, FRAMES * 640 - len(loud)), mode="symmetric")
    magnitudes = np.abs(librosa.stft(loud, n_fft=1024, hop_length=160, pad_mode="reflect"))
    bands = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=32, fmin=0, fmax=8000)
    mel = torch.from_numpy(np.log(np.maximum(bands @ magnitudes, 1e-5))).T[: 4 * FRAMES]
    posterior = theirs.vae.encode(mel[None, None].float()).latent_dist
    return posterior.mode() * theirs.vae.config.scaling_factor


def test_latents_of_a_recording_are_diffusers(ours, tiny_pipeline):
    taken = Recording.load(GenerationOptions(init_audio=recording()), 16000)
    with torch.inference_mode():
        found = taken.encode(ours.vae, ours.config.vocoder, FRAMES).latents
    assert_same(found, latents_of(recording(), tiny_pipeline))
    assert found.shape == (1, 8, FRAMES, 8)


@torch.inference_mode()
def denoised(theirs, sampler, clean, noise, *, strength, changed=None, guidance=2.5, steps=6):
    """What diffusers' image-to-image and inpainting pipelines do, with AudioLDM2's UNet."""
    scheduler = scheduler_of(sampler)
    scheduler.set_timesteps(steps)
    stand_in = SimpleNamespace(scheduler=scheduler)
    timesteps, _ = diffusers.StableDiffusionImg2ImgPipeline.get_timesteps(
        stand_in, steps, strength, "cpu"
    )
    t5, mask, loa = theirs.encode_prompt("a bell", "cpu", 1, True)  # unconditional, conditional
    latents = noise if strength == 1 else scheduler.add_noise(clean, noise, timesteps[:1])
    for step, timestep in enumerate(timesteps):
        predicted = theirs.unet(
            torch.cat([latents, latents]),
            timestep,
            encoder_hidden_states=loa,
            encoder_hidden_states_1=t5,
            encoder_attention_mask_1=mask,
        ).sample
        unconditional, conditional = predicted.chunk(2)
        predicted = unconditional + guidance * (conditional - unconditional)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
        if changed is not None:
            held = clean
            if step < len(timesteps) - 1:
                held = scheduler.add_noise(clean, noise, timesteps[step + 1][None])
            latents = torch.where(changed, latents, held)
    return latents


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("inpaint", [None, SPAN], ids=["variation", "inpainting"])
def test_denoised_latents_are_diffusers(ours, tiny_pipeline, sampler, strength, inpaint):
    found = ours(
        "a bell",
        init_audio=recording(),
        strength=strength,
        inpaint=inpaint,
        sampler=sampler,
        num_inference_steps=6,
        guidance_scale=2.5,
        eta=0.0,
        unconditional="empty_prompt",
        attention="dense",
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
    ).audios
    noise = torch.randn(1, 8, FRAMES, 8, generator=torch.Generator().manual_seed(0))
    frame = torch.arange(FRAMES)[:, None] * 0.04
    changed = None if inpaint is None else (frame + 0.04 > SPAN[0]) & (frame < SPAN[1])
    clean = latents_of(recording(), tiny_pipeline)
    expected = denoised(tiny_pipeline, sampler, clean, noise, strength=strength, changed=changed)
    for frames in (slice(0, 12), slice(12, 21), slice(21, FRAMES)):  # before, in, after the span
        assert_same(found[:, :, frames], expected[:, :, frames])
    assert (expected - clean)[:, :, 12:21].norm() > 0.1 * clean.norm()
