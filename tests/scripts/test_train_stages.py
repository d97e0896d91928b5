"""The stages of the autoencoder and the vocoder: their data, their losses, and that they hand each
other what they made.
"""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from audiolitefocus.codec.mel import log_mel
from audiolitefocus.config import VAEConfig, VocoderConfig
from audiolitefocus.models.vae import VAE
from scripts.demo.loop import Run
from scripts.demo.networks import load_vae, save_vae
from scripts.demo.stages import round_trip
from scripts.demo.stages import vae as train_vae
from scripts.demo.stages import vocoder as train_vocoder
from scripts.demo.world import clips
from scripts.demo.world.sounds import RATE, draw

TINY_VAE = VAEConfig(channels=(4, 4, 4), resnets=1, norm_groups=2)
TINY_VOCODER = dataclasses.replace(train_vocoder.CONFIG, initial_channels=16)
TOGETHER = 1e-6  # per sample: float32 sums in another order


@pytest.fixture
def small(monkeypatch, tmp_path) -> Run:
    """A run over eight clips with tiny networks."""
    for module in (clips, train_vae, train_vocoder):
        monkeypatch.setattr(module, "CHUNK", 4)
    for module in (train_vae, train_vocoder):
        monkeypatch.setattr(module, "CHUNKS", 2)
    monkeypatch.setattr(train_vae, "CONFIG", TINY_VAE)
    monkeypatch.setattr(train_vocoder, "CONFIG", TINY_VOCODER)
    monkeypatch.setattr(round_trip, "CLIPS", 3)
    return Run(out=tmp_path, steps=3)


def test_a_clip_is_the_middle_of_a_longer_sound():
    samples, mel = clips.clip(5)
    assert samples.shape == (256 * 160,) and mel.shape == (256, 64)
    whole = draw(5).render(2.64)
    np.testing.assert_array_equal(samples, whole[640:-640])
    inner = log_mel(torch.from_numpy(samples)[None], VocoderConfig())[0, 4:-5]
    np.testing.assert_allclose(mel[4:-4], inner, atol=1e-3)  # frame i is centred on sample 160 i


def test_chunks_are_rendered_once(small):
    samples, mel = clips.chunk(small.out, 1)
    expected = clips.clip(4)  # the seeds go on where chunk 0 ends
    np.testing.assert_array_equal(mel[0], expected[1].astype(np.float16))
    np.testing.assert_array_equal(samples[0], expected[0].astype(np.float16))
    assert sorted(path.name for path in small.out.iterdir()) == ["mel-001.npy", "samples-001.npy"]
    written = (small.out / "mel-001.npy").stat().st_mtime_ns
    clips.chunk(small.out, 1)
    assert (small.out / "mel-001.npy").stat().st_mtime_ns == written


def test_pieces_are_cut_from_the_clips(small):
    mels = [np.arange(4 * 256 * 64, dtype=np.float64).reshape(4, 256, 64) + 1e6 * i for i in (0, 1)]
    for seed in range(5):
        torch.manual_seed(seed)
        batch = train_vae.pieces(mels)
        assert batch.shape[0] * batch.shape[1] == train_vae.BATCH_FRAMES
        assert (batch.diff(dim=1) == 64).all()


def test_the_kl_term_in_closed_form(small):
    """An encoder that always answers N(0, 1) costs nothing; N(1, 1) costs half a nat a latent."""
    vae = VAE(TINY_VAE)
    for parameter in vae.quant_conv.parameters():
        parameter.data.zero_()
    mel = torch.zeros(1, 16, 64)
    assert train_vae.vae_loss(small, vae, mel)["kl"] == 0
    vae.quant_conv.bias.data[: TINY_VAE.latent_channels] = 1
    torch.testing.assert_close(train_vae.vae_loss(small, vae, mel)["kl"], torch.tensor(0.5))


def test_scaled_latents_have_unit_deviation(small):
    vae, mels = VAE(TINY_VAE), clips.chunk(small.out, 0)[1]
    scale = train_vae.scale_factor(vae, mels)
    latents = vae.encode(torch.from_numpy(np.array(mels, np.float32)))[0] * scale
    assert math.isclose(latents.std().item(), 1, rel_tol=1e-4)


def test_segments_of_mels_and_samples_belong_together(small):
    samples, mels = zip(*(clips.chunk(small.out, index) for index in range(2)), strict=True)
    torch.manual_seed(0)
    mel, sound = train_vocoder.segments([*mels, *mels], list(samples), [1, 6])
    assert mel.shape == (8, 32, 64) and sound.shape == (8, 32 * 160)
    measured = log_mel(sound, VocoderConfig())[:, 4:-5]
    loud = mel[:, 4:-4] > -6
    assert (measured - mel[:, 4:-4])[loud].abs().max() < 0.1
    drawn = [samples[0][1], samples[1][2]]
    for cut in sound.numpy():
        places = [clip.tolist().index(cut[0]) for clip in drawn if cut[0] in clip]
        assert places, "a segment of a clip that is not among those to draw from"


def test_the_stft_loss_of_a_sound_with_itself_and_with_its_half():
    sound = torch.from_numpy(draw(1).render(1))[None]
    for term in train_vocoder.stft_loss(sound, sound):
        assert term == 0
    noise = 0.3 * torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    convergence, log_error = train_vocoder.stft_loss(0.5 * noise, noise)
    assert abs(convergence - (1 - 0.5**0.5)) < 1e-3
    assert abs(log_error - math.log(2)) < 1e-2  # hardly anything of it is below QUIET


def test_the_stft_loss_sees_no_phase():
    """A sound upside down is the same; a tone a quarter of a period later is, but for its ends."""
    sound = torch.from_numpy(draw(1).render(1))[None]
    assert sum(train_vocoder.stft_loss(-sound, sound)) == 0
    time = torch.arange(RATE)[None] / RATE
    tones = [torch.sin(2 * math.pi * 1000 * time + phase) for phase in (0, math.pi / 2)]
    other = torch.sin(2 * math.pi * 1200 * time)
    same, far = (sum(train_vocoder.stft_loss(x, tones[0])) for x in (tones[1], other))
    assert same < 0.3 * far


def test_an_autoencoder_comes_back_as_it_was_saved(tmp_path):
    config = VAEConfig(channels=(8,), resnets=1, norm_groups=4)
    vae = VAE(config)
    save_vae(tmp_path, vae)
    again = load_vae(tmp_path)
    assert again.config == config and not again.training
    latents = torch.randn(1, 8, 8, 4)
    torch.testing.assert_close(again.decode(latents), vae.decode(latents), rtol=0, atol=TOGETHER)


def test_a_stage_that_was_not_run_is_named(tmp_path):
    with pytest.raises(ValueError, match="no trained vae: run the stage"):
        load_vae(tmp_path / "vae")


@pytest.mark.slow  # trains networks
def test_the_stages_hand_on_what_they_made(small, capsys):
    train_vae.train_vae(small)
    vae = load_vae(small.out / "vae")
    assert vae.config.scale_factor != 1
    train_vocoder.train_vocoder(small)
    assert len(list((small.out / "vocoder").glob("decoded-*.npy"))) == 2
    round_trip.report(small)
    result = json.loads((small.out / "round_trip.json").read_text())
    assert result["clips"] == 3 and result["all"] == json.loads(capsys.readouterr().out)
    assert result["all"]["mean_mel"] > 0 and result["all"]["vae"] > 0


def test_the_baseline_is_the_error_of_the_mean(small):
    """Against the clips' own mean spectrum, the error is their mean absolute deviation."""
    mel = torch.from_numpy(clips.clip(3)[1])
    inner = mel[4:-4]
    expected = (inner - inner.mean(0)).abs().mean().item()
    found = round_trip.error(inner.mean(0).expand_as(mel), mel)
    assert math.isclose(found, expected, rel_tol=1e-5)
