"""What the bundled model makes of captions, judged by measurements that know nothing of it.

In few steps, loose ones tell its families apart; in more, `recognise.VERDICTS` hold. High tones,
which ripple most, are steady in fewer seeds where attention is sparse.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.attention.settings import parse_attention
from scripts.evaluate.recognise import SILENCE, VERDICTS, beat, flatness, glide, rms, tone

TRAINED = 2.56  # seconds
# dense, the paper's setting, and by clip length in trained lengths what the demo's rule makes
RULE = {1: "litefocus:0.2:weight=1", 4: "litefocus:0.05:weight=1"}
ATTENTIONS = ("dense", "litefocus:0.1", "rule")
STEADY = {"dense": 9, "rule": 7}  # high tones, of ten seeds; unweighted samples leave one or two


def is_tone(waveform: np.ndarray, lowest: float, highest: float) -> bool:
    found = tone(waveform)
    return lowest < found.hz < highest and found.steady > 0.8 and found.purity > 0.5


def rises(waveform: np.ndarray) -> bool:
    found = glide(waveform)
    return found.up - found.down > 0.2 and found.octaves > 1.2


def ticks(waveform: np.ndarray) -> bool:
    """Short, wooden, and with silence between."""
    found = beat(waveform)
    return found.duty < 0.2 and found.woody > 0.8


def is_flat(waveform: np.ndarray) -> bool:
    return flatness(waveform) > 0.75


FAMILIES: dict[str, Callable[[np.ndarray], bool]] = {
    "a high steady tone": lambda waveform: is_tone(waveform, 850, 3000),
    "a low steady tone": lambda waveform: is_tone(waveform, 90, 350),
    "a rising chirp": rises,
    "a fast metronome": ticks,
    "white noise": is_flat,
}


@pytest.fixture(scope="module")
def make():
    """Waveforms (seeds, samples) of captions at a multiple of the trained length."""
    pipe = AudioLDM2Pipeline.from_pretrained("demo", device="cpu")

    def made(
        captions: list[str], lengths: int, attention: str, seeds: int, steps: int
    ) -> dict[str, np.ndarray]:
        audios = pipe(
            [caption for caption in captions for _ in range(seeds)],
            audio_length_in_s=lengths * TRAINED,
            num_inference_steps=steps,
            sampler="dpm++",
            guidance_scale=7.0,
            attention=RULE[lengths] if attention == "rule" else attention,
            generator=[torch.Generator().manual_seed(s) for _ in captions for s in range(seeds)],
        ).audios
        return dict(zip(captions, audios.reshape(len(captions), seeds, -1), strict=True))

    return made


def recognised(waveform: np.ndarray) -> list[str]:
    """The captions that fit."""
    return [caption for caption, fits in FAMILIES.items() if fits(waveform)]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("lengths, seeds", [(1, 2), (4, 1)])
def test_families_are_recognised_apart(make, lengths, seeds, attention):
    for caption, waveforms in make(list(FAMILIES), lengths, attention, seeds, 8).items():
        for waveform in waveforms:
            assert rms(waveform) > SILENCE
            assert recognised(waveform) == [caption]


@pytest.mark.slow
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("lengths", [1, 4])
def test_nine_of_ten_seeds(make, lengths, attention):
    captions = ["a rising chirp", "a fast metronome", "white noise"]
    for caption, waveforms in make(captions, lengths, attention, 10, 25).items():
        assert sum(map(VERDICTS[caption], waveforms)) >= 9, caption


@pytest.mark.parametrize(
    "attention", [pytest.param("dense", marks=pytest.mark.slow), pytest.param("rule")]
)
@pytest.mark.parametrize("lengths", [1, 4])
def test_high_tones_are_steady(make, lengths, attention):
    high = "a high steady tone"
    waveforms = make([high], lengths, attention, 10, 25)[high]
    assert sum(map(VERDICTS[high], waveforms)) >= STEADY[attention]


def test_the_rule_is_the_demos_own():
    pipe = AudioLDM2Pipeline.from_pretrained("demo", device="cpu")
    assert pipe.choose_attention("auto", 4 * TRAINED) == parse_attention(RULE[4])
