"""What a waveform sounds like, measured: pitch, glides, tempo, flatness of the spectrum.

Nothing here knows of a model or of how sounds are made. Waveforms are (samples,) in [-1, 1] at
RATE. `VERDICTS` holds, for some captions of the demo world, whether a waveform is what they say.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RATE = 16000  # samples a second
HOP = 160  # samples between frames: 10 ms
SILENCE = 0.003  # RMS below which nothing is recognised
LOUD = 25.0  # dB below the loudest frame: quieter ones have no pitch


@dataclass(frozen=True)
class Track:
    """The strongest frequency over time, of the frames that are loud.

    Attributes:
        hz: (frames,), NaN where it is quiet.
        share: median part of a loud frame's power within a sixth of an octave of it.
    """

    hz: np.ndarray
    share: float


def power_spectra(waveform: np.ndarray, window: int) -> np.ndarray:
    """Power (frames, window // 2 + 1) under a Hann window, a frame every 10 ms."""
    padded = np.pad(np.asarray(waveform, np.float64), (0, max(0, window - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::HOP]
    return np.abs(np.fft.rfft(frames * np.hanning(window))) ** 2


def rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def levels(waveform: np.ndarray, window: int = 1024) -> np.ndarray:
    """Level in dB of every frame, at most 80 dB below the loudest."""
    power = power_spectra(waveform, window).sum(1)
    return 10 * np.log10(power / max(power.max(), 1e-20) + 1e-8)


def track(waveform: np.ndarray, window: int = 1024, lowest: float = 60.0) -> Track:
    """Follow the strongest frequency above `lowest` Hz, between bins by a parabola through the
    logarithms of three.
    """
    power = power_spectra(waveform, window) + 1e-20
    step = RATE / window
    first = max(1, int(lowest / step))
    peaks = first + power[:, first:-1].argmax(1)
    rows = np.arange(len(power))
    below, at, above = (np.log(power[rows, peaks + side]) for side in (-1, 0, 1))
    curve = below - 2 * at + above
    shift = np.where(curve < 0, 0.5 * (below - above) / np.minimum(curve, -1e-12), 0.0)
    hz = (peaks + np.clip(shift, -0.5, 0.5)) * step
    bins = np.arange(power.shape[1]) * step
    reach = np.maximum(hz * (2 ** (1 / 6) - 1), 2.5 * step)[:, None]  # 2 bins: the window's lobe
    share = (power * (np.abs(bins - hz[:, None]) <= reach)).sum(1) / power.sum(1)
    total = power.sum(1)
    loud = total > total.max() * 10 ** (-LOUD / 10)
    return Track(np.where(loud, hz, np.nan), float(np.median(share[loud])))


@dataclass(frozen=True)
class Tone:
    """A dominant pitch and how steady it is.

    Attributes:
        hz: median pitch.
        steady: part of all frames that are loud and within a semitone and a half of it.
        purity: median part of a frame's power that is at the pitch.
        ripple: standard deviation of the level in dB.
    """

    hz: float
    steady: float
    purity: float
    ripple: float


def tone(waveform: np.ndarray) -> Tone:
    found = track(waveform)
    hz = float(np.nanmedian(found.hz))
    semitones = np.abs(12 * np.log2(np.nan_to_num(found.hz, nan=1.0) / hz))
    return Tone(hz, float((semitones < 1.5).mean()), found.share, float(levels(waveform).std()))


@dataclass(frozen=True)
class Glide:
    """How the strongest frequency moves, jumps left out.

    Attributes:
        up, down: part of the time in which it is loud and rises, or falls, by more than two
            semitones a tenth of a second.
        octaves: from its 10 % quantile to its 90 % quantile.
    """

    up: float
    down: float
    octaves: float


def glide(waveform: np.ndarray) -> Glide:
    octaves = np.log2(track(waveform, window=512, lowest=150.0).hz)
    lag = 4  # frames: long enough for slow sweeps to move, short enough for fast ones to be whole
    moved = octaves[lag:] - octaves[:-lag]
    small = np.where(np.abs(moved) < 0.7, moved, 0.0)  # also where it is quiet
    least = lag * HOP / RATE * 2 / 12 / 0.1
    spread = np.nanquantile(octaves, 0.9) - np.nanquantile(octaves, 0.1)
    return Glide(float((small > least).mean()), float((small < -least).mean()), float(spread))


@dataclass(frozen=True)
class Beat:
    """A regular pulse.

    Attributes:
        per_minute: its tempo.
        regular: autocorrelation of onsets at that interval, about 1 for a clock.
        duty: part of all frames within 15 dB of the loudest.
        woody: part of the power between 1.3 and 3.5 kHz.
    """

    per_minute: float
    regular: float
    duty: float
    woody: float


def beat(waveform: np.ndarray, slowest: float = 45.0, fastest: float = 280.0) -> Beat:
    """The shortest interval at which onsets repeat nearly as well as at any."""
    level = np.maximum(levels(waveform, 256), -30.0)
    onsets = np.convolve(np.maximum(np.diff(level), 0), np.hanning(7)[1:-1], "same")
    count, rate = len(onsets), RATE / HOP
    lags = np.arange(int(60 * rate / fastest), min(int(60 * rate / slowest) + 1, count - 1))
    overlap = np.array([onsets[lag:] @ onsets[: count - lag] for lag in lags])
    power = onsets @ onsets
    alike = overlap / max(power, 1e-9) * count / (count - lags)
    best = alike.max()
    first = np.flatnonzero(alike >= 0.6 * best)[0]
    top = first + alike[first : first + int(0.06 * rate)].argmax()  # of the peak that begins there
    spectrum = power_spectra(waveform, 1024).sum(0)
    hz = np.arange(len(spectrum)) * RATE / 1024
    woody = spectrum[(hz > 1300) & (hz < 3500)].sum() / max(spectrum.sum(), 1e-20)
    return Beat(
        float(60 * rate / lags[top]), float(alike[top]), float((level > -15).mean()), float(woody)
    )


def flatness(waveform: np.ndarray) -> float:
    """Geometric over arithmetic mean of the average power from 60 Hz to 7.5 kHz: 1 for white
    noise.
    """
    spectrum = power_spectra(waveform, 1024).mean(0)
    hz = np.arange(len(spectrum)) * RATE / 1024
    spectrum = spectrum[(hz > 60) & (hz < 7500)] + 1e-20
    return float(np.exp(np.log(spectrum).mean()) / spectrum.mean())


def is_steady_tone(waveform: np.ndarray, lowest: float, highest: float) -> bool:
    if rms(waveform) < SILENCE:
        return False
    found = tone(waveform)
    steady = found.steady > 0.9 and found.purity > 0.9 and found.ripple < 1.5
    return steady and lowest <= found.hz <= highest


def is_chirp(waveform: np.ndarray, direction: int) -> bool:
    """direction: 1 for rising, -1 for falling."""
    if rms(waveform) < SILENCE:
        return False
    found = glide(waveform)
    return direction * (found.up - found.down) > 0.45 and found.octaves > 1.2


def is_metronome(waveform: np.ndarray, slowest: float, fastest: float) -> bool:
    if rms(waveform) < SILENCE:
        return False
    found = beat(waveform)
    ticking = found.regular > 0.5 and found.duty < 0.35 and found.woody > 0.5
    return ticking and slowest <= found.per_minute <= fastest


def is_white_noise(waveform: np.ndarray) -> bool:
    return rms(waveform) >= SILENCE and flatness(waveform) > 0.75 and levels(waveform).std() < 2.0


VERDICTS: dict[str, Callable[[np.ndarray], bool]] = {
    "a high steady tone": lambda waveform: is_steady_tone(waveform, 850, 3000),
    "a low steady tone": lambda waveform: is_steady_tone(waveform, 90, 350),
    "a rising chirp": lambda waveform: is_chirp(waveform, 1),
    "a falling chirp": lambda waveform: is_chirp(waveform, -1),
    "a fast metronome": lambda waveform: is_metronome(waveform, 145, 265),
    "a slow metronome": lambda waveform: is_metronome(waveform, 45, 90),
    "white noise": is_white_noise,
}
