"""What a sound is, by measurements that know nothing of who made it."""

import numpy as np

RATE = 16000
WINDOW, HOP = 1024, 80


def spectrogram(samples: np.ndarray) -> np.ndarray:
    """Magnitudes (frames, bins) of Hann-windowed frames, 5 ms apart."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    return np.abs(np.fft.rfft(frames * np.hanning(WINDOW)))


def pitch(samples: np.ndarray) -> float:
    """The strongest frequency of the whole sound, in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * RATE / len(samples))


def pitch_track(samples: np.ndarray) -> np.ndarray:
    """The strongest frequency of every frame, in Hz; NaN in frames that are 30 dB below the
    loudest.
    """
    spectra = spectrogram(samples)
    track = spectra.argmax(1) * RATE / WINDOW
    level = spectra.max(1)
    return np.where(level < level.max() / 30, np.nan, track)


def direction(samples: np.ndarray) -> float:
    """How much more of the time the pitch rises than falls: 1 for ever rising, -1 for ever falling.

    Steps of more than half an octave in 25 ms are jumps, not glides, and do not count.
    """
    track = np.log2(np.maximum(pitch_track(samples), 1))
    steps = (track[5:] - track[:-5])[::5]
    glides = steps[np.isfinite(steps) & (np.abs(steps) < 0.5) & (steps != 0)]
    return float(np.sign(glides).mean()) if len(glides) else 0.0


def envelope(samples: np.ndarray) -> np.ndarray:
    """Levels of the sound every 5 ms."""
    return np.sqrt(np.square(spectrogram(samples)).sum(1))


def tempo(samples: np.ndarray, slowest: float = 45, fastest: float = 260) -> float:
    """Beats a minute: the shortest lag at which the onsets nearly repeat best."""
    onsets = np.maximum(np.diff(envelope(samples)), 0)
    onsets -= onsets.mean()
    spectrum = np.fft.rfft(onsets, 2 * len(onsets))
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[: len(onsets)]
    correlation /= np.arange(len(onsets), 0, -1)  # as many products at every lag
    per_minute = 60 * RATE / HOP
    lags = np.arange(int(per_minute / fastest), min(int(per_minute / slowest), len(onsets) - 20))
    smooth = np.convolve(correlation, np.ones(5) / 5, "same")[lags]
    first = np.flatnonzero(smooth > 0.7 * smooth.max())[0]
    peak = first + smooth[first : first + 12].argmax()
    return float(per_minute / lags[peak])


def flatness(samples: np.ndarray) -> float:
    """Geometric over arithmetic mean of the mean power spectrum: near 1 for white noise, near 0
    for tones. Up to 7.5 kHz.
    """
    power = np.square(spectrogram(samples)).mean(0)[4 : 7500 * WINDOW // RATE]
    return float(np.exp(np.log(power).mean()) / power.mean())


def steadiness(samples: np.ndarray) -> float:
    """The quietest 5% of the sound over its median level: near 1 for steady sounds."""
    levels = envelope(samples)
    return float(np.quantile(levels, 0.05) / np.median(levels))
