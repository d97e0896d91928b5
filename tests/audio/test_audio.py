"""Lengths, sound files and resampling."""

import numpy as np
import pytest
import soundfile
import torch

from audiolitefocus.audio.files import ClipLength, resample, write_sound
from audiolitefocus.config import BundleConfig

PCM_STEP = 2**-15
RESAMPLING_ERROR = 1e-3  # -60 dB of full scale against an independent resampler, away from the ends


@pytest.mark.parametrize(
    "seconds, samples, latent_frames",
    [
        (10.24, 163840, 256),
        (10, 160000, 256),
        (2.5, 40000, 64),
        (0.04, 640, 8),
        (80, 1280000, 2000),
    ],
)
def test_clip_length(seconds, samples, latent_frames):
    length = ClipLength(seconds, BundleConfig())
    assert (length.samples, length.latent_frames) == (samples, latent_frames)
    assert length.latent_rows == 16


@pytest.mark.parametrize("seconds", np.arange(0.04, 12, 0.173).tolist() + [2.5699, 0.32, 0.33])
def test_every_length_is_covered_by_whole_levels(seconds):
    length = ClipLength(seconds, BundleConfig())
    assert length.latent_frames % 8 == 0
    assert length.samples <= length.latent_frames * 640 < length.samples + 2 * 8 * 640
    assert length.least_latent_frames <= length.latent_frames


@pytest.mark.parametrize(
    "seconds", [0, -1, 0.01, float("nan"), float("inf"), 1e9, "ten", None, True]
)
def test_lengths_that_make_no_sense_are_named(seconds):
    with pytest.raises(ValueError, match="duration"):
        ClipLength(seconds, BundleConfig())


@pytest.mark.parametrize(
    "suffix, tolerance", [(".wav", PCM_STEP), (".flac", PCM_STEP), (".ogg", 0.05)]
)
def test_sound_files_hold_what_was_written(tmp_path, suffix, tolerance):
    waveform = 0.5 * np.sin(np.arange(48000) * 0.05).astype(np.float32)
    path = write_sound(tmp_path / f"tone{suffix}", waveform, 16000)
    read, rate = soundfile.read(path, dtype="float32")
    assert rate == 16000 and len(read) == 48000
    np.testing.assert_allclose(read, waveform, atol=tolerance)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_loud_samples_are_clipped_not_wrapped(tmp_path):
    path = write_sound(tmp_path / "loud.wav", np.array([2.0, -2.0], np.float32), 16000)
    read, _ = soundfile.read(path)
    np.testing.assert_allclose(read, [1, -1], atol=PCM_STEP)


@pytest.mark.parametrize("waveform", [np.array([0, np.nan]), np.array([np.inf]), np.zeros((2, 2))])
def test_what_is_no_waveform_is_not_written(tmp_path, waveform):
    (tmp_path / "kept.wav").write_bytes(b"before")
    with pytest.raises(ValueError, match="finite samples"):
        write_sound(tmp_path / "kept.wav", waveform, 16000)
    assert (tmp_path / "kept.wav").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "name, message", [("x.mp3", "must end in"), ("no/x.wav", "not a folder"), ("x", "end in")]
)
def test_paths_that_cannot_be_written_are_named(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        write_sound(tmp_path / name, np.zeros(10, np.float32), 16000)


@pytest.mark.parametrize(
    "source, target", [(16000, 48000), (48000, 16000), (44100, 16000), (22050, 48000)]
)
def test_resampling_equals_librosa(source, target):
    librosa = pytest.importorskip("librosa")
    time = np.arange(source) / source
    passband = 0.4 * min(source, target)
    sweep = np.sin(2 * np.pi * (100 * time + (passband - 100) * time**2 / 2)).astype(np.float32)
    ours = resample(torch.from_numpy(sweep), source, target).numpy()
    expected = librosa.resample(sweep, orig_sr=source, target_sr=target, res_type="soxr_vhq")
    assert abs(len(ours) - len(expected)) <= 1  # librosa rounds the length up in floating point
    inner = slice(target // 20, -target // 20)
    np.testing.assert_allclose(ours[inner], expected[: len(ours)][inner], atol=RESAMPLING_ERROR)


def test_resampling_removes_what_the_target_cannot_hold():
    time = torch.arange(48000, dtype=torch.float64) / 48000
    tone = torch.sin(2 * torch.pi * 12000 * time).float()
    assert resample(tone, 48000, 16000)[1000:-1000].abs().max() < RESAMPLING_ERROR


def test_resampling_keeps_leading_axes():
    waveforms = torch.randn(2, 3, 1000, generator=torch.Generator().manual_seed(0))
    together = resample(waveforms, 16000, 48000)
    assert together.shape == (2, 3, 3000)
    torch.testing.assert_close(together[1, 2], resample(waveforms[1, 2], 16000, 48000))
