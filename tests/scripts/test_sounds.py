"""The synthetic world: sounds are what their captions say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scripts.demo.world.sounds import (
    ADJECTIVES,
    ADVERBS,
    FAMILIES,
    HELD_OUT,
    LOUDNESS,
    RATE,
    WORLD,
    Sound,
    draw,
    sound,
)
from tests.support.listen import direction, envelope, flatness, pitch, steadiness, tempo

CLIP = 2.56  # seconds: the length of training clips
SEEDS = range(3)
MUST_OCCUR = (
    "a high steady tone", "a low steady tone", "a rising chirp", "a falling chirp",
    "a fast metronome", "a slow metronome", "white noise",
)  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> list[Sound]:
    return [draw(seed) for seed in range(2000)]


def test_a_seed_gives_the_same_sound_in_another_process():
    program = (
        "import hashlib; from scripts.demo.world import sounds; s = sounds.draw(77); "
        "print(s.caption, hashlib.sha256(s.render(1).tobytes()).hexdigest())"
    )
    root = Path(__file__).resolve().parents[2]
    runs = {
        subprocess.run(
            [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(runs) == 1
    assert runs.pop().startswith(draw(77).caption + " ")


def test_other_seeds_give_other_sounds():
    a, b = (sound("white noise", seed=seed).render(1) for seed in (0, 1))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.05


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seconds", [0.1, CLIP, 7.3])
def test_every_family_fills_any_length(family, seconds):
    samples = sound(family, seed=3).render(seconds)
    assert samples.dtype == np.float32 and samples.shape == (round(seconds * RATE),)
    assert np.isfinite(samples).all() and np.abs(samples).max() <= 1
    if seconds > 4:  # it goes on to the end
        early, late = np.array_split(samples, 2)
        assert 0.2 < early.std() / late.std() < 5


def test_families_and_pairs_occur_as_often_as_they_should(drawn):
    singles = [s.families[0] for s in drawn if len(s.families) == 1]
    assert 0.75 < len(singles) / len(drawn) < 0.85
    counts = [singles.count(family) for family in FAMILIES]
    assert len(FAMILIES) >= 16
    assert min(counts) > 0.6 * np.mean(counts) and max(counts) < 1.6 * np.mean(counts)


def test_captions_vary(drawn):
    assert len({s.caption for s in drawn}) > len(drawn) / 2
    assert all(s.caption == s.caption.strip() and "  " not in s.caption for s in drawn)


def test_the_grammar_has_these_captions():
    wanted = set(MUST_OCCUR)
    for seed in range(20000):
        wanted.discard(draw(seed).caption)
        if not wanted:
            break
    assert not wanted


def test_what_is_said_is_true(drawn):
    """Every word of a range is said only of numbers in it, and numbers lie in some range."""
    for s in drawn:
        ranges = {name: of for f in s.families for name, of in WORLD[f].attributes.items()}
        for name, words in (ranges | {"loudness": LOUDNESS}).items():
            inside = [w for w, (low, high) in words.items() if low <= s.attributes[name] <= high]
            assert len(inside) == 1, (s.caption, name)
            if len(s.families) == 1:
                false = set(words) - set(inside)
                wordings = {w for word in false for w in (word, *ADJECTIVES.get(word, ()))}
                wordings |= {w for word in false for w in ADVERBS.get(word, ())}
                assert not wordings & set(s.caption.split()), s.caption


def test_held_out_seeds_are_others(drawn):
    assert HELD_OUT > len(drawn)
    assert draw(HELD_OUT).attributes != draw(0).attributes


def test_pairs_hold_both_sounds():
    pair = next(s for s in map(draw, range(2000)) if s.families == ("metronome", "rain"))
    alone = sound("metronome", seed=1).render(CLIP)
    assert np.median(envelope(pair.render(CLIP))) > 10 * np.median(envelope(alone))
    assert "rain" in pair.caption and "metronome" in pair.caption


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", ["tone", "bell", "chord", "melody", "plucked string"])
def test_low_and_high(family, seed):
    low, high = (sound(family, seed=seed, pitch=word) for word in ("low", "high"))
    assert pitch(high.render(CLIP)) > 1.4 * pitch(low.render(CLIP))
    if family == "tone":
        for tone in (low, high):
            np.testing.assert_allclose(
                pitch(tone.render(CLIP)), tone.attributes["pitch"], rtol=0.01
            )
        assert low.attributes["pitch"] <= 300 and high.attributes["pitch"] >= 1000


@pytest.mark.parametrize("seed", SEEDS)
def test_steady_and_pulsing_tones(seed):
    assert steadiness(sound("tone", seed=seed, rhythm="steady").render(CLIP)) > 0.9
    assert steadiness(sound("tone", seed=seed, rhythm="pulsing").render(CLIP)) < 0.5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("seconds", [CLIP, 10.24])
@pytest.mark.parametrize("speed", ["slow", "fast"])
def test_chirps_rise_and_fall(speed, seconds, seed):
    assert direction(sound("rising chirp", seed=seed, speed=speed).render(seconds)) > 0.8
    assert direction(sound("falling chirp", seed=seed, speed=speed).render(seconds)) < -0.8


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("seconds", [CLIP, 10.24])
@pytest.mark.parametrize("family", ["metronome", "drum"])
def test_slow_and_fast_beats(family, seconds, seed):
    steady = {"rhythm": "steady"} if family == "drum" else {}
    slow, fast = (sound(family, seed=seed, speed=word, **steady) for word in ("slow", "fast"))
    assert 50 <= slow.attributes["speed"] <= 80 and 160 <= fast.attributes["speed"] <= 240
    for beat in (slow, fast):
        np.testing.assert_allclose(tempo(beat.render(seconds)), beat.attributes["speed"], rtol=0.04)


@pytest.mark.parametrize("seed", SEEDS)
def test_noises_are_recognised_by_their_flatness(seed):
    measured = {name: flatness(sound(name, seed=seed).render(CLIP)) for name in FAMILIES}
    white = measured.pop("white noise")
    assert white > 0.95
    assert max(set(measured.values()) - {measured["clicks"]}) < 0.7  # clicks are short noise
    assert measured["pink noise"] > 5 * max(measured["tone"], measured["siren"], measured["wind"])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_soft_and_loud(family, seed):
    soft, loud = (sound(family, seed=seed, loudness=word) for word in ("soft", "loud"))
    assert loud.render(CLIP).std() > 4 * soft.render(CLIP).std()


@pytest.mark.parametrize("seed", SEEDS)
def test_density_and_force(seed):
    """Dense clicks fill more of the time, strong wind is higher, a racing engine higher too."""
    sparse, dense = (
        envelope(sound("clicks", seed=seed, density=word).render(CLIP))
        for word in ("sparse", "dense")
    )
    assert (dense > dense.max() / 20).mean() > 1.5 * (sparse > sparse.max() / 20).mean()
    gentle, strong = (sound("wind", seed=seed, force=w).render(CLIP) for w in ("gentle", "strong"))
    assert pitch(strong) > 1.5 * pitch(gentle)


@pytest.mark.parametrize(
    "family, words", [("whistle", {}), ("tone", {"speed": "fast"}), ("tone", {"pitch": "wide"})]
)
def test_what_there_is_not_is_refused(family, words):
    with pytest.raises(ValueError, match=next(iter(words.values()), "whistle")):
        sound(family, **words)


def test_no_length_is_refused():
    with pytest.raises(ValueError, match="0 seconds"):
        draw(0).render(0)
