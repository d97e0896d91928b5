"""Recordings as this ecosystem passes them: files, and samples of many kinds."""

import os
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from audiolitefocus.audio.files import SOUND_RATES, read_sound
from audiolitefocus.audio.length import MAX_SECONDS
from audiolitefocus.audio.resample import resample
from audiolitefocus.validation import Number, check_rule

FULL_SCALE = {torch.uint8: 2**7, torch.int16: 2**15, torch.int32: 2**31}  # of whole numbers
MAX_CHANNELS = 8
EXPECTED = (
    "a sound file, or samples: floating point or int16, (n,) or with channels, or (rate, samples)"
)


def load_recording(
    source: str | os.PathLike | BinaryIO | tuple[int, Any] | np.ndarray | Tensor, rate: int
) -> Tensor:
    """The samples (n,) of a recording at `rate`, mixed down: float32 on the CPU.

    Args:
        source: a sound file, by name or open; or samples, at `rate` or as (their rate, samples).
            Samples are floating point in [-1, 1] or whole numbers of 8, 16 or 32 bits, as WAV files
            have them, (n,) or with a second axis of at most 8 channels, first or last.

    Raises:
        ValueError: a file that `read_sound` refuses; samples of another shape or kind, of more than
            an hour, or not finite.
    """
    if isinstance(source, (str, os.PathLike)) or hasattr(source, "read"):
        return read_sound(source, rate)  # type: ignore[arg-type]
    own_rate = rate
    if isinstance(source, tuple) and len(source) == 2:
        low, high = SOUND_RATES
        own_rate = check_rule("rate of a recording", source[0], Number(low, high, whole=True))
        source = source[1]
    if not isinstance(source, (np.ndarray, Tensor)):
        raise ValueError(f"a recording of type {type(source).__name__}: must be {EXPECTED}")
    samples = _mixed_down(torch.as_tensor(source).detach().cpu())
    if len(samples) > MAX_SECONDS * own_rate:
        seconds = len(samples) / own_rate
        raise ValueError(f"a recording of {seconds:.0f} s: more than {MAX_SECONDS:g} s")
    if not samples.isfinite().all():
        raise ValueError("a recording with NaN or infinite samples")
    return resample(samples, own_rate, rate)


def _mixed_down(samples: Tensor) -> Tensor:
    """(n,), (n, channels) or (channels, n) of any kind -> (n,) float32."""
    described = f"a recording of shape {tuple(samples.shape)}, {samples.dtype}"
    if samples.dtype in FULL_SCALE:
        scale = FULL_SCALE[samples.dtype]
        middle = scale if samples.dtype == torch.uint8 else 0
        samples = (samples.double() - middle) / scale
    elif not samples.is_floating_point():
        raise ValueError(f"{described}: must be {EXPECTED}")
    if samples.ndim == 2 and 0 < min(samples.shape) <= MAX_CHANNELS:
        # soundfile and Gradio have channels last, torchaudio first: they are the shorter axis
        samples = samples.mean(0 if samples.shape[0] < samples.shape[1] else 1)
    if samples.ndim != 1 or not len(samples):
        raise ValueError(f"{described}: must be {EXPECTED}")
    return samples.float()
