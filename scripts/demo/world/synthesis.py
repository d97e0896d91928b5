"""The waveforms of the synthetic world, each from a formula: oscillators, shaped noise, and strikes
that ring out.

Every voice takes the number of samples, a generator for what no caption tells (phases, drops of
rain, the notes of a tune) and the sound's attributes; it returns (count,) samples of any size.
Sounds go on for as long as they are asked to: sweeps and tunes repeat, strikes keep their rhythm.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

RATE = 16000  # samples a second
RING = 2.0  # seconds of strikes before the first sample, whose ends are still heard
PENTATONIC = (0, 2, 4, 7, 9, 12)  # semitones

Samples = np.ndarray
Random = np.random.Generator


def seconds(count: int) -> Samples:
    return np.arange(count) / RATE


def oscillate(frequency: Samples | float, count: int, rng: Random) -> Samples:
    """A sine of constant or changing frequency in Hz."""
    steps = np.broadcast_to(frequency, count) / RATE
    return np.sin(2 * np.pi * (np.cumsum(steps) + rng.uniform()))


def shaped_noise(count: int, rng: Random, response: Callable[[Samples], Samples]) -> Samples:
    """Gaussian noise whose magnitudes at the frequencies in Hz are `response`."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    return np.fft.irfft(spectrum * response(np.fft.rfftfreq(count, 1 / RATE)), count)


def wander(count: int, rng: Random, rate: float) -> Samples:
    """A smooth curve in [-1, 1] that turns about `rate` times a second."""
    waves = [
        np.sin(2 * np.pi * (rate * ratio * seconds(count) + rng.uniform()))
        for ratio in (0.37, 0.61, 1.0)
    ]
    return np.mean(waves, axis=0)


def beats(count: int, rng: Random, rate: float, jitter: float = 0.0) -> Samples:
    """Onsets in seconds, `rate` a second, each moved by up to `jitter` intervals."""
    onsets = (np.arange(int(rate * (count / RATE + RING)) + 1) + rng.uniform()) / rate - RING
    return onsets + rng.uniform(-jitter, jitter, len(onsets)) / rate


def scattered(count: int, rng: Random, rate: float) -> Samples:
    """Onsets in seconds of a Poisson process, `rate` a second on average."""
    length = count / RATE + RING
    return rng.uniform(-RING, length - RING, rng.poisson(rate * length))


def strike(count: int, onsets: Iterable[float], voices: Sequence[Samples]) -> Samples:
    """The sum of `voices`, one after the other, each begun at its onset."""
    lead = int(RATE * RING)
    track = np.zeros(lead + count)
    for index, onset in enumerate(onsets):
        start, voice = lead + round(onset * RATE), voices[index % len(voices)]
        if 0 <= start < len(track):
            part = voice[: len(track) - start]
            track[start : start + len(part)] += part
    return track[lead:]


def ring(partials: Sequence[tuple[float, float, float]], length: float, attack: float) -> Samples:
    """Decaying sines (Hz, amplitude, seconds to 1 / e) after an attack of some seconds."""
    time = seconds(int(length * RATE))
    waves = (a * np.exp(-time / decay) * np.sin(2 * np.pi * f * time) for f, a, decay in partials)
    ends = np.clip(time / attack, 0, 1) * np.clip((length - time) / 0.02, 0, 1)
    return ends * sum(waves)


def tone(count: int, rng: Random, pitch: float, rhythm: float) -> Samples:
    """`rhythm`: pulses a second; 0 is steady."""
    pulses = 0.5 - 0.5 * np.cos(2 * np.pi * (rhythm * seconds(count) + rng.uniform()))
    return oscillate(pitch, count, rng) * (pulses if rhythm else 1.0)


def chord(count: int, rng: Random, pitch: float, third: float) -> Samples:
    """A triad in root position; `third`: semitones of its third."""
    notes = pitch * 2 ** (np.array([0.0, third, 7.0]) / 12)
    voices = [oscillate(n, count, rng) + 0.3 * oscillate(2 * n, count, rng) for n in notes]
    return np.sum(voices, axis=0)


def chirp(count: int, rng: Random, speed: float, low: float, high: float) -> Samples:
    """Sweeps from `low` to `high` Hz, evenly in octaves, `speed` a second with short gaps."""
    phase = (speed * seconds(count) + rng.uniform()) % 1
    edges = np.clip(np.minimum(phase, 0.92 - phase) / 0.04, 0, 1)
    return edges * oscillate(low * (high / low) ** phase, count, rng)


def rising_chirp(count: int, rng: Random, speed: float) -> Samples:
    return chirp(count, rng, speed, 300.0, 3500.0)


def falling_chirp(count: int, rng: Random, speed: float) -> Samples:
    return chirp(count, rng, speed, 3500.0, 300.0)


def siren(count: int, rng: Random, speed: float) -> Samples:
    """Glides up and down by an octave, `speed` times a second."""
    glide = np.sin(2 * np.pi * (speed * seconds(count) + rng.uniform()))
    frequency = 850 * 2 ** (0.6 * glide)
    return oscillate(frequency, count, rng) + 0.4 * oscillate(3 * frequency, count, rng)


def bell(count: int, rng: Random, pitch: float, speed: float) -> Samples:
    """Inharmonic partials; `speed`: strikes a second."""
    partials = ((1.0, 1.0, 0.6), (2.0, 0.6, 0.45), (2.76, 0.5, 0.3), (5.4, 0.25, 0.15))
    voice = ring(
        [(pitch * ratio, a, d) for ratio, a, d in partials if pitch * ratio < 7500], 2, 3e-3
    )
    return strike(count, beats(count, rng, speed), [voice])


def plucked_string(count: int, rng: Random, pitch: float, speed: float) -> Samples:
    """Harmonics that fade the faster the higher they are; `speed`: plucks a second."""
    harmonics = np.arange(1, min(20, int(7500 / pitch)) + 1)
    voice = ring([(pitch * k, 1 / k, 0.5 / k**0.7) for k in harmonics], 1.5, 2e-3)
    return strike(count, beats(count, rng, speed), [voice])


def drum(count: int, rng: Random, speed: float, rhythm: float) -> Samples:
    """A thump that drops in pitch, with a burst of noise; `speed`: beats a minute; `rhythm`: how
    far beats stray, in intervals.
    """
    time = seconds(int(0.3 * RATE))
    thump = np.sin(2 * np.pi * (60 * time + 3.5 * (1 - np.exp(-time / 0.03)))) * np.exp(
        -time / 0.07
    )
    skin = 0.25 * rng.standard_normal(len(time)) * np.exp(-time / 0.012)
    return strike(count, beats(count, rng, speed / 60, rhythm), [thump + skin])


def metronome(count: int, rng: Random, speed: float) -> Samples:
    """Wooden ticks from the very beginning; `speed`: beats a minute."""
    tick = ring([(1800.0, 1.0, 0.012), (2900.0, 0.5, 0.008)], 0.08, 5e-4)
    return strike(count, np.arange(0, count / RATE, 60 / speed), [tick])


def white_noise(count: int, rng: Random) -> Samples:
    return rng.standard_normal(count)


def pink_noise(count: int, rng: Random) -> Samples:
    """Power falls with 1 / f, down to 30 Hz."""
    return shaped_noise(count, rng, lambda hz: np.maximum(hz, 30.0) ** -0.5)


def rain(count: int, rng: Random, density: float) -> Samples:
    """Drops, `density` a second, over the hiss of those too many to tell apart."""
    hiss = shaped_noise(count, rng, lambda hz: np.exp(-(((hz - 5000) / 1800) ** 2)))
    drops = [ring([(hz, 1.0, 0.004)], 0.05, 5e-4) for hz in rng.uniform(2000, 6000, 24)]
    level = 0.04 * np.sqrt(density / 20) / hiss.std()
    return level * hiss + 0.6 * strike(count, scattered(count, rng, density), drops)


def wind(count: int, rng: Random, force: float) -> Samples:
    """Narrow noise around `force` Hz that wanders up and down, the louder the higher."""
    gust = wander(count, rng, 0.8)
    frequency = force * 2 ** (0.7 * gust)
    cosine, sine = (shaped_noise(count, rng, lambda hz: np.exp(-hz / 60)) for _ in range(2))
    phase = 2 * np.pi * np.cumsum(frequency) / RATE
    return (cosine * np.cos(phase) + sine * np.sin(phase)) * 2 ** (1.5 * gust)


def engine_hum(count: int, rng: Random, revs: float) -> Samples:
    """Harmonics of the firing rate `revs` in Hz, a little unsteady, with exhaust noise."""
    phase = np.cumsum(revs * (1 + 0.02 * wander(count, rng, 2.0))) / RATE
    harmonics = np.arange(1, int(1200 / revs) + 1)
    hum = sum(np.sin(2 * np.pi * (k * phase + rng.uniform())) / k**0.7 for k in harmonics)
    exhaust = shaped_noise(count, rng, lambda hz: np.exp(-hz / 900))
    return hum / np.std(hum) + 0.25 * exhaust / exhaust.std() * (1 + np.sin(2 * np.pi * phase))


def clicks(count: int, rng: Random, density: float) -> Samples:
    """Short bursts of noise at no rhythm, `density` a second."""
    time = seconds(int(0.02 * RATE))
    bursts = [rng.standard_normal(len(time)) * np.exp(-time / 0.002) for _ in range(8)]
    return strike(count, scattered(count, rng, density), bursts)


def melody(count: int, rng: Random, pitch: float, speed: float) -> Samples:
    """A pentatonic tune of six notes from `pitch` Hz up that repeats; `speed`: notes a second."""
    steps = rng.choice(PENTATONIC, 6)
    length = 0.9 / speed
    notes = [
        ring([(f, 1.0, length), (2 * f, 0.3, length), (3 * f, 0.1, length)], length, 0.01)
        for f in pitch * 2 ** (steps / 12)
    ]
    return strike(count, beats(count, rng, speed), notes)


def crickets(count: int, rng: Random, speed: float) -> Samples:
    """Trills around 4.5 kHz, `speed` a second."""
    phase = (speed * seconds(count) + rng.uniform()) % 1
    flutter = 0.6 + 0.4 * np.sin(2 * np.pi * 32 * seconds(count))
    trill = np.clip(np.minimum(phase, 0.5 - phase) / 0.06, 0, 1)
    return trill * flutter * oscillate(rng.uniform(4200, 4800), count, rng)
