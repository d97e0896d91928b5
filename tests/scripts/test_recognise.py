"""The measurements of recognise.py, on sounds of known families, pitches and tempi."""

import numpy as np
import pytest

from scripts.demo.world import sounds
from scripts.evaluate.recognise import VERDICTS, beat, flatness, glide, power_spectra, tone

# Of each caption: the family, and what is said of it.
MEANT = {
    "a high steady tone": ("tone", {"pitch": "high", "rhythm": "steady"}),
    "a low steady tone": ("tone", {"pitch": "low", "rhythm": "steady"}),
    "a rising chirp": ("rising chirp", {}),
    "a falling chirp": ("falling chirp", {}),
    "a fast metronome": ("metronome", {"speed": "fast"}),
    "a slow metronome": ("metronome", {"speed": "slow"}),
    "white noise": ("white noise", {}),
}
SECONDS = (2.56, 10.24)


@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("caption", VERDICTS)
def test_true_sounds_are_recognised_as_nothing_else(caption, seconds):
    family, words = MEANT[caption]
    for seed in range(6):
        waveform = sounds.sound(family, seed=seed, **words).render(seconds)
        assert [other for other, verdict in VERDICTS.items() if verdict(waveform)] == [caption]


@pytest.mark.parametrize("seconds", SECONDS)
@pytest.mark.parametrize("family", sounds.FAMILIES)
def test_other_families_are_not_taken_for_these(family, seconds):
    for seed in range(100, 103):
        waveform = sounds.sound(family, seed=seed).render(seconds)
        heard = [caption for caption, verdict in VERDICTS.items() if verdict(waveform)]
        assert all(MEANT[caption][0] == family for caption in heard), (seed, heard)


def test_silence_is_nothing():
    for waveform in (np.zeros(40960), np.full(40960, 1e-4), np.zeros(100)):
        assert not any(verdict(waveform) for verdict in VERDICTS.values())


@pytest.mark.parametrize("hz", [120.0, 299.0, 1000.0, 2500.0])
def test_pitch_of_a_tone(hz):
    waveform = 0.1 * np.sin(2 * np.pi * hz * np.arange(40960) / 16000)
    found = tone(waveform)
    assert found.hz == pytest.approx(hz, rel=0.01)
    assert found.steady == 1 and found.purity > 0.99 and found.ripple < 0.1


def test_a_pulsing_tone_ripples():
    time = np.arange(40960) / 16000
    assert tone(np.sin(6000 * time) * (0.5 + 0.4 * np.sin(25 * time))).ripple > 3


def test_a_tone_does_not_glide_and_a_reversed_chirp_glides_back():
    time = np.arange(40960) / 16000
    assert glide(np.sin(6000 * time)).octaves < 0.01
    chirp = sounds.sound("rising chirp", seed=3).render(2.56)
    there, back = glide(chirp), glide(chirp[::-1])
    assert there.up > 0.8 and back.down == pytest.approx(there.up, abs=0.05)
    assert there.octaves == pytest.approx(back.octaves, abs=0.05) and there.octaves > 2


@pytest.mark.parametrize("per_minute", [50.0, 80.0, 120.0, 160.0, 240.0])
@pytest.mark.parametrize("seconds", SECONDS)
def test_tempo_of_clicks(per_minute, seconds):
    waveform = np.zeros(int(16000 * seconds))
    tick = np.exp(-np.arange(300) / 60) * np.sin(2 * np.pi * 2000 * np.arange(300) / 16000)
    for start in range(1000, len(waveform) - 300, round(16000 * 60 / per_minute)):
        waveform[start : start + 300] = tick
    found = beat(waveform)
    assert found.per_minute == pytest.approx(per_minute, rel=0.05)
    assert found.regular > 0.8 and found.woody > 0.8 and found.duty < 0.15


def test_flatness_of_shaped_noise():
    """Noise whose power is flat up to 4 kHz and a tenth above: means of a spectrum of two steps."""
    noise = np.random.default_rng(0).standard_normal(1 << 17)
    assert flatness(noise) > 0.98
    spectrum = np.fft.rfft(noise)
    spectrum[len(spectrum) // 2 :] *= np.sqrt(0.1)
    upper = (7500 - 4000) / (7500 - 60)
    expected = 0.1**upper / (1 - upper + 0.1 * upper)
    assert flatness(np.fft.irfft(spectrum)) == pytest.approx(expected, rel=0.03)


def test_spectra_hold_the_power_of_the_waveform():
    """Parseval, under a window."""
    waveform = np.random.default_rng(0).standard_normal(1024)
    power = power_spectra(waveform, 1024)
    both_sides = 2 * power.sum() - power[0, 0] - power[0, -1]
    assert both_sides / 1024 == pytest.approx(np.square(waveform * np.hanning(1024)).sum())
