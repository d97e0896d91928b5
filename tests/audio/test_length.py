"""Clip lengths in seconds, samples and latent frames."""

import numpy as np
import pytest

from audiolitefocus.audio.length import ClipLength, check_seconds, seconds_of
from audiolitefocus.config import BundleConfig


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
def test_lengths_outside_the_bounds_are_refused(seconds):
    with pytest.raises(ValueError, match="duration"):
        ClipLength(seconds, BundleConfig())


@pytest.mark.parametrize("seconds", [np.float32(2.5), np.float64(2.5), np.int64(2), 2])
def test_numbers_of_numpy_are_numbers(seconds):
    assert type(check_seconds(seconds)) is float and check_seconds(seconds) == seconds


def test_an_error_has_the_name_that_is_given():
    with pytest.raises(ValueError, match="audio_length_in_s 0 s: must lie between 0.04 and 3600"):
        check_seconds(0, "audio_length_in_s")


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_every_number_of_samples_has_its_seconds(rate):
    for samples in range(1, 40000, 7):
        assert int(seconds_of(samples, rate) * rate) == samples
