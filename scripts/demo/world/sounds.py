"""A synthetic world of sounds with captions, deterministic by seed.

A sound is one of FAMILIES, or one of them over a backdrop such as rain. Its attributes are numbers;
the words a caption may say of them stand for ranges that lie well apart. What a caption leaves out
can be anything, but for loudness, which is then in the middle.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from scripts.demo.world import synthesis
from scripts.demo.world.synthesis import RATE, Random, Samples

Ranges = Mapping[str, tuple[float, float]]  # of words; "" is between them and never said

HELD_OUT = 10_000_000  # seeds from here on are for evaluation: nothing is trained on them
RMS, PEAK = 0.1, 0.5  # of a sound of middle loudness: whichever it meets first
BACKDROP = 0.3  # gain of what a pair's first sound is heard over
ROOM = 1e-4  # RMS of the noise floor of every recording
# Hz, of tones. From frames that are all alike, a vocoder made of convolutions makes a sound that
# repeats with every frame, 100 times a second: only multiples of 100 Hz can be steady. And between
# pitches that share their mel bands, a small model wavers.
PITCHES = (200, 300, 500, 700, 1000, 1300)

LOUDNESS: Ranges = {"soft": (0.2, 0.3), "": (0.8, 1.1), "loud": (1.6, 1.9)}
PER_MINUTE: Ranges = {"slow": (50, 80), "": (100, 130), "fast": (160, 240)}
# A tick every 24, 16 or 8 latent frames of 0.04 s: 3, 2 or 1 of the UNet's deepest level.
MARKS: Ranges = {"slow": (62.5, 62.5), "": (93.75, 93.75), "fast": (187.5, 187.5)}
STRIKES: Ranges = {"slow": (0.6, 0.9), "": (1.2, 1.7), "fast": (2.6, 4.0)}
SWEEPS: Ranges = {"slow": (0.5, 0.8), "": (1.0, 1.5), "fast": (2.2, 3.5)}


@dataclass(frozen=True)
class Family:
    """What a caption may call it, and the ranges of its attributes. Names start with "a" where
    one can be counted.
    """

    names: tuple[str, ...]
    attributes: Mapping[str, Ranges]


WORLD: Mapping[str, Family] = {
    "tone": Family(
        ("a tone", "a sine tone", "a tone sounding"),
        {
            "pitch": {"low": (160, 300), "": (460, 700), "high": (1000, 1300)},
            "rhythm": {"steady": (0, 0), "pulsing": (3, 6)},
        },
    ),
    "chord": Family(
        ("a chord", "an organ chord", "a held chord"),
        {
            "pitch": {"low": (110, 180), "": (220, 330), "high": (440, 700)},
            "third": {"minor": (3, 3), "major": (4, 4)},
        },
    ),
    "rising chirp": Family(
        ("a rising chirp", "an upward chirp", "a chirp going up", "a rising sweep"),
        {"speed": SWEEPS},
    ),
    "falling chirp": Family(
        ("a falling chirp", "a downward chirp", "a chirp going down", "a falling sweep"),
        {"speed": SWEEPS},
    ),
    "siren": Family(
        ("a siren", "a wailing siren", "a siren wailing"),
        {"speed": {"slow": (0.4, 0.7), "": (1.1, 1.7), "fast": (2.8, 4.5)}},
    ),
    "bell": Family(
        ("a bell", "a bell ringing", "a ringing bell", "a struck bell"),
        {"pitch": {"low": (220, 380), "": (500, 750), "high": (1000, 1700)}, "speed": STRIKES},
    ),
    "plucked string": Family(
        ("a plucked string", "a guitar string", "a string being plucked"),
        {"pitch": {"low": (80, 140), "": (180, 260), "high": (350, 600)}, "speed": STRIKES},
    ),
    "drum": Family(
        ("a drum", "a beating drum", "a drum beat", "drumming"),
        {"speed": PER_MINUTE, "rhythm": {"steady": (0, 0), "uneven": (0.25, 0.35)}},
    ),
    "metronome": Family(
        ("a metronome", "a ticking metronome", "a metronome ticking"), {"speed": MARKS}
    ),
    "white noise": Family(("white noise", "hissing white noise", "a hiss of white noise"), {}),
    "pink noise": Family(("pink noise", "rumbling pink noise", "a rush of pink noise"), {}),
    "rain": Family(
        ("rain", "rain falling", "falling rain", "rainfall"),
        {"density": {"light": (15, 30), "": (60, 90), "heavy": (200, 350)}},
    ),
    "wind": Family(
        ("wind", "wind blowing", "blowing wind", "a wind"),
        {"force": {"gentle": (220, 320), "": (420, 560), "strong": (800, 1100)}},
    ),
    "engine hum": Family(
        ("an engine hum", "an engine", "an engine running", "a humming engine"),
        {"revs": {"idling": (22, 32), "": (45, 60), "racing": (90, 130)}},
    ),
    "clicks": Family(
        ("clicks", "irregular clicks", "clicking"),
        {"density": {"sparse": (2, 4), "": (7, 10), "dense": (18, 30)}},
    ),
    "melody": Family(
        ("a melody", "a short melody", "a simple tune", "a tune"),
        {
            "pitch": {"low": (110, 170), "": (230, 340), "high": (500, 800)},
            "speed": {"slow": (1.2, 1.8), "": (2.5, 3.5), "fast": (5.0, 7.0)},
        },
    ),
    "crickets": Family(
        ("crickets", "a cricket", "crickets trilling", "a trilling cricket"),
        {"speed": {"slow": (1.0, 1.5), "": (2.0, 2.8), "fast": (4.0, 6.0)}},
    ),
}
FAMILIES = tuple(WORLD)
BACKDROPS = ("white noise", "pink noise", "rain", "wind", "engine hum")
FOREGROUNDS = tuple(family for family in FAMILIES if family not in (*BACKDROPS, "clicks"))
PAIRS = 0.2  # share of sounds over a backdrop
SAID = 0.65  # how often a caption says a word it could
JOINTS = ("{} over {}", "{} and {}", "{} with {} in the background", "{} in front of {}")
OPENINGS = ("",) * 8 + ("the sound of ", "a recording of ")
ADJECTIVES = {
    "low": ("low", "deep"),
    "high": ("high", "high-pitched"),
    "slow": ("slow",),
    "fast": ("fast", "quick", "rapid"),
    "soft": ("soft", "quiet"),
}  # other words are their only adjective
ADVERBS = {
    "slow": ("slowly",),
    "fast": ("quickly", "rapidly"),
    "soft": ("softly", "quietly"),
    "loud": ("loudly",),
    "steady": ("steadily",),
    "uneven": ("unevenly",),
}
VERBS = ("ing", "up", "down", "plucked")  # at the end of a name, they can take an adverb


@dataclass(frozen=True)
class Sound:
    """A caption and the numbers behind it.

    Attributes:
        families: what is heard; the second is behind the first.
        attributes: of both families, whose names for them differ, and "loudness", a gain. Pitch in
            Hz; the units of the others are given by the family's voice in `synthesis`.
    """

    families: tuple[str, ...]
    caption: str
    attributes: Mapping[str, float]
    seed: int

    def render(self, seconds: float) -> Samples:
        """float32 (samples,) in [-1, 1] at RATE. The same seconds give the same samples.

        Raises ValueError for lengths below one sample.
        """
        count = round(seconds * RATE)
        if count < 1:
            raise ValueError(f"{seconds} seconds hold no sample")
        rng = np.random.default_rng([self.seed, 1])
        mixed = ROOM * rng.standard_normal(count)
        for family, gain in zip(
            self.families, (self.attributes["loudness"], BACKDROP), strict=False
        ):
            mixed += gain * level(self._voice(family, count, rng))
        return np.clip(mixed, -1, 1).astype(np.float32)

    def _voice(self, family: str, count: int, rng: Random) -> Samples:
        own = {name: self.attributes[name] for name in WORLD[family].attributes}
        return getattr(synthesis, family.replace(" ", "_"))(count, rng, **own)


def level(samples: Samples) -> Samples:
    """Scaled to middle loudness; silence stays silent."""
    rms, peak = np.sqrt(np.mean(samples**2)), np.abs(samples).max()
    return samples * min(RMS / max(rms, 1e-9), PEAK / max(peak, 1e-9))


def draw(seed: int) -> Sound:
    """The sound of this seed: its family or two, its attributes and a wording."""
    rng = np.random.default_rng([seed, 0])
    families: tuple[str, ...]
    if rng.uniform() < PAIRS:
        families = (str(rng.choice(FOREGROUNDS)), str(rng.choice(BACKDROPS)))
    else:
        families = (str(rng.choice(FAMILIES)),)
    attributes: dict[str, float] = {}
    phrases = []
    for family in families:
        words = {name: str(rng.choice(list(of))) for name, of in WORLD[family].attributes.items()}
        attributes |= values(family, words, rng)
        said = [word for word in words.values() if word and rng.uniform() < SAID]
        phrases.append((family, said))
    loudness = str(rng.choice(list(LOUDNESS), p=(0.2, 0.6, 0.2))) if len(families) == 1 else ""
    attributes["loudness"] = rng.uniform(*LOUDNESS[loudness])
    phrases[0][1].extend([loudness] if loudness else [])
    parts = [phrase(family, said, rng) for family, said in phrases]
    joint = str(rng.choice(JOINTS)) if len(parts) == 2 else "{}"
    caption = str(rng.choice(OPENINGS)) + joint.format(*parts)
    return Sound(families, caption, MappingProxyType(attributes), seed)


def sound(family: str, *, seed: int = 0, **words: str) -> Sound:
    """A sound of one family of which `words` are said, such as speed="fast"; all else is drawn.

    Raises ValueError for families, attributes and words that there are not.
    """
    if family not in WORLD:
        raise ValueError(f"{family!r} is no family: choose from {', '.join(FAMILIES)}")
    ranges = {**WORLD[family].attributes, "loudness": LOUDNESS}
    for name, word in words.items():
        if word not in ranges.get(name, {}):
            raise ValueError(f"{name}={word!r}: a {family} has no such attribute or word")
    rng = np.random.default_rng([seed, 0])
    free = {name: str(rng.choice(list(of))) for name, of in WORLD[family].attributes.items()}
    attributes = values(family, {**free, **words}, rng)
    attributes["loudness"] = rng.uniform(*LOUDNESS[words.get("loudness", "")])
    said = [word for word in words.values() if word]
    return Sound((family,), phrase(family, said, rng), MappingProxyType(attributes), seed)


def values(family: str, words: Mapping[str, str], rng: Random) -> dict[str, float]:
    """A number from each word's range, evenly in logarithms where it can be."""
    drawn = {}
    for name, ranges in WORLD[family].attributes.items():
        low, high = ranges[words[name]]
        drawn[name] = low * (high / low) ** rng.uniform() if low else rng.uniform(low, high)
    if family == "tone":
        drawn["pitch"] = min(PITCHES, key=lambda pitch: abs(pitch - drawn["pitch"]))
    return drawn


def phrase(family: str, said: list[str], rng: Random) -> str:
    """A family's name with the words said of it, as adjectives or one adverb, in any order."""
    name, adverb = pick(WORLD[family].names, rng), ""
    words = [str(word) for word in rng.permutation(said)]
    if words and words[-1] in ADVERBS and name.endswith(VERBS) and rng.uniform() < 0.5:
        adverb = " " + pick(ADVERBS[words.pop()], rng)
    first, _, rest = name.partition(" ")
    counted = first in ("a", "an")
    adjectives = [pick(ADJECTIVES.get(word, (word,)), rng) for word in words]
    text = " ".join([*adjectives, rest if counted else name]) + adverb
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}" if counted else text


def pick(wordings: tuple[str, ...], rng: Random) -> str:
    """The first, plainest one more than half of the time."""
    return str(rng.choice(wordings)) if rng.uniform() < 0.5 else wordings[0]
