"""Band-limited resampling between any two rates."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ZERO_CROSSINGS = 32  # of the sinc on each side: more is a steeper filter
KAISER_BETA = 9.0  # of the window: stopband about 90 dB down
PASSBAND = 0.95  # of the lower Nyquist frequency; the rest is transition band
PHASES = 64  # computed together: more waste taps that are zero, fewer take more convolutions


def resample(waveform: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Resample by a Kaiser-windowed sinc (Smith, "Digital Audio Resampling Home Page", 2002).

    Args:
        waveform: (..., samples), floating point.

    Returns:
        (..., ceil(samples * target_rate / source_rate)).
    """
    divisor = math.gcd(source_rate, target_rate)
    down, up = source_rate // divisor, target_rate // divisor
    if up == down or not waveform.numel():
        return waveform
    cutoff = PASSBAND * min(1.0, up / down)
    reach = math.ceil(ZERO_CROSSINGS / cutoff)  # source samples on each side of a target sample

    # Target sample k * up + p lies at source time k * down + p * down / up: `up` phases p, each of
    # them a strided convolution. Neighbouring phases need nearly the same source samples.
    length = waveform.shape[-1]
    rounds = math.ceil(length / down)  # k = 0 ... rounds - 1
    padded = F.pad(waveform.reshape(-1, 1, length), (reach, reach + rounds * down + down - length))
    resampled = padded.new_empty(len(padded), up, rounds)
    samples = math.ceil(length * up / down)
    for first in range(0, min(up, samples), PHASES):
        times = torch.arange(first, min(first + PHASES, up), dtype=torch.float64) * down / up
        start, stop = int(times[0]), int(times[-1]) + 2 * reach + 1
        taps = torch.arange(start, stop + 1, dtype=torch.float64) - reach - times[:, None]
        kernel = cutoff * torch.sinc(cutoff * taps) * _window(taps / reach)
        phases = F.conv1d(padded[..., start:], kernel[:, None].to(padded), stride=down)
        resampled[:, first : first + PHASES] = phases[..., :rounds]
    return resampled.transpose(1, 2).reshape(*waveform.shape[:-1], -1)[..., :samples]


def _window(place: Tensor) -> Tensor:
    """The Kaiser window at places from -1 to 1; zero outside."""
    inside = (1 - place**2).clamp(min=0).sqrt()
    peak = torch.special.i0(place.new_tensor(KAISER_BETA))
    return torch.special.i0(KAISER_BETA * inside) / peak * (place.abs() <= 1)
