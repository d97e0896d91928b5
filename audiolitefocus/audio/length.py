"""Clip lengths: the one home of seconds <-> samples <-> mel frames <-> latent frames.

A second of AudioLDM2's audio is 16000 samples, 100 mel frames or 25 latent frames.
"""

import math
from numbers import Real

from audiolitefocus.config import BundleConfig
from audiolitefocus.validation import MAX_SECONDS, MIN_SECONDS


class ClipLength:
    """One clip length in every unit that the networks count in.

    Attributes:
        seconds: as asked for.
        samples: of the waveform, int(seconds * rate), as in diffusers.
        least_latent_frames: int(seconds * mel frames a second), rounded up to whole latent frames.
        latent_frames: rounded up to the UNet's time multiple (8 frames, 0.32 s, for AudioLDM2), so
            that every level halves exactly as it did in training; the surplus is cut from the
            waveform.
        latent_rows: frequency rows of the latent (16).
    """

    def __init__(self, seconds: float, config: BundleConfig):
        self.seconds = check_seconds(seconds)
        rate, hop = config.vocoder.sampling_rate, config.vocoder.hop_length
        down, multiple = config.vae.downsampling, config.unet.time_multiple
        self.samples = int(self.seconds * rate)
        # Divide by the hop in seconds, as diffusers does, so that 10.24 s is 1024 frames in
        # floating point too.
        mel_frames = int(self.seconds / (hop / rate))
        self.least_latent_frames = max(1, math.ceil(mel_frames / down))
        self.latent_frames = math.ceil(self.least_latent_frames / multiple) * multiple
        while self.latent_frames * down * hop < self.samples:
            self.latent_frames += multiple
        self.latent_rows = config.vocoder.mel_bins // down


def check_seconds(seconds: float, name: str = "duration") -> float:
    """`seconds` as a float. Raises ValueError that names it unless a clip can be this long."""
    if isinstance(seconds, bool) or not isinstance(seconds, Real):
        raise ValueError(f"{name} {seconds!r}: give a number of seconds")
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:  # NaN lies nowhere
        raise ValueError(
            f"{name} {seconds} s: must lie between {MIN_SECONDS:g} and {MAX_SECONDS:g} seconds"
        )
    return float(seconds)


def seconds_of(samples: int, rate: int) -> float:
    """The least number of seconds whose `ClipLength` has `samples` samples."""
    seconds = samples / rate
    return seconds if int(seconds * rate) == samples else math.nextafter(seconds, math.inf)
