"""The log-mel front end against scipy's transform and librosa's bands, which the original takes."""

import numpy as np
import pytest
import torch

from audiolitefocus.codec import mel
from audiolitefocus.config import VocoderConfig

TOLERANCE = 1e-4  # of logarithms: float32 transforms of two libraries
CONFIG = VocoderConfig()


def sound(seconds: float) -> np.ndarray:
    """Chirps over noise, as loud as the original makes its input."""
    time = np.arange(int(seconds * 16000)) / 16000
    noise = np.random.default_rng(0).standard_normal(len(time))
    chirp = np.sin(2 * np.pi * (80 * time + 600 * time**2))
    return (0.4 * chirp + 0.02 * noise).astype(np.float32)


@pytest.mark.parametrize("rate, bands", [(16000, 64), (16000, 32), (24000, 80), (8000, 20)])
def test_bands_equal_librosas(rate, bands):
    librosa = pytest.importorskip("librosa")
    expected = librosa.filters.mel(
        sr=rate, n_fft=1024, n_mels=bands, fmin=0, fmax=min(8000, rate / 2)
    )
    np.testing.assert_allclose(mel.mel_filters(bands, rate), expected, rtol=1e-4, atol=1e-7)


def test_log_mel_equals_scipys_transform_in_librosas_bands():
    librosa = pytest.importorskip("librosa")
    signal = pytest.importorskip("scipy.signal")
    waveform = sound(2.5)
    _, _, spectrum = signal.stft(
        waveform, nperseg=1024, noverlap=1024 - 160, boundary="even", padded=False
    )
    magnitudes = np.abs(spectrum) * signal.get_window("hann", 1024).sum()
    bands = librosa.filters.mel(sr=16000, n_fft=1024, n_mels=64, fmin=0, fmax=8000)
    expected = np.log(np.maximum(bands @ magnitudes, 1e-5)).T
    found = mel.log_mel(torch.from_numpy(waveform)[None], CONFIG)[0]
    assert found.shape == (251, 64)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_blocks_are_seamless(monkeypatch):
    waveform = torch.from_numpy(sound(1.0))[None].repeat(2, 1)
    expected = mel.log_mel(waveform, CONFIG)
    monkeypatch.setattr(mel, "BLOCK_FRAMES", 7)
    torch.testing.assert_close(mel.log_mel(waveform, CONFIG), expected, rtol=0, atol=TOLERANCE)


def test_silence_is_the_floor():
    silence = mel.log_mel(torch.zeros(1, 1600), CONFIG)
    torch.testing.assert_close(silence, torch.full((1, 11, 64), np.log(1e-5)))


def test_too_short_a_waveform_is_named():
    with pytest.raises(ValueError, match="512 samples"):
        mel.log_mel(torch.zeros(1, 512), CONFIG)
