"""Resampling against an independent resampler, at usual and at odd rates."""

import numpy as np
import pytest
import torch

from audiolitefocus.audio.resample import resample

RESAMPLING_ERROR = 1e-3  # -60 dB of full scale against an independent resampler, away from the ends


@pytest.mark.parametrize(
    "source, target",
    [(16000, 48000), (48000, 16000), (44100, 16000), (22050, 48000)]
    + [(22254, 16000), (11127, 16000), (22253, 16000), (16000, 44101)],
)
def test_resampling_equals_soxr(source, target):
    soxr = pytest.importorskip("soxr")  # as librosa has it, whose import takes seconds
    time = np.arange(source) / source
    passband = 0.4 * min(source, target)
    sweep = np.sin(2 * np.pi * (100 * time + (passband - 100) * time**2 / 2)).astype(np.float32)
    ours = resample(torch.from_numpy(sweep), source, target).numpy()
    expected = soxr.resample(sweep, source, target, quality="VHQ")
    assert abs(len(ours) - len(expected)) <= 1  # of which one is rounded
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


@pytest.mark.parametrize("samples, expected", [(0, 0), (1, 2), (100, 101)])
def test_sounds_shorter_than_the_filter(samples, expected):
    assert resample(torch.ones(2, samples), 47999, 48000).shape == (2, expected)
