"""How notebooks show outputs: what is embedded is the sound and its picture, and not too much."""

import base64
import io
import re

import numpy as np
import pytest
import soundfile
import torch
from matplotlib import image

from audiolitefocus import AudioOutput
from audiolitefocus.display import COLUMNS, MOST_SECONDS, spectrogram_png

RATE = 16000


def tone(hertz: float, seconds: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype("f4")


def embedded(html: str, kind: str) -> list[bytes]:
    found = re.findall(rf'src="data:{kind};base64,([A-Za-z0-9+/=]+)"', html)
    return [base64.b64decode(content) for content in found]


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_a_player_holds_the_clip_to_16_bits(make):
    clips = np.stack([tone(440, 1), tone(880, 1)])
    html = AudioOutput(make(clips), RATE, scores=torch.tensor([0.5, 0.25]))._repr_html_()
    sounds = embedded(html, "audio/flac")
    for sound, clip in zip(sounds, clips, strict=True):
        samples, rate = soundfile.read(io.BytesIO(sound), dtype="float32")
        assert rate == RATE
        np.testing.assert_allclose(samples, clip, atol=2**-15)
    assert "1 s, CLAP 0.500" in html and "CLAP 0.250" in html
    assert html.count("<audio ") == html.count("</audio>") == html.count("<figcaption>") == 2


def test_the_picture_is_the_spectrogram():
    """Silence, then a high tone and a low one: bright where and when they are."""
    audio = np.concatenate([np.zeros(RATE, "f4"), tone(6000, 1), tone(300, 1)])
    picture = image.imread(io.BytesIO(spectrogram_png(audio, RATE)), format="png")
    bright = picture[..., :3].sum(axis=2)
    rows, columns = bright.shape
    assert (rows, columns) == (64, 301)  # a column every 160 samples
    third = columns // 3
    silent, high, low = (bright[:, k * third + 8 : (k + 1) * third - 8] for k in range(3))
    assert silent.max() < 0.1
    assert high.mean(axis=1).argmax() < 16 and low.mean(axis=1).argmax() > 48  # high ones above
    assert low.max() > 2.5 and high.max() > 1.5  # wide bands are weighted less


def test_long_clips_and_many_are_shown_in_part():
    long = AudioOutput(np.zeros((1, 3600 * RATE), "f4"), RATE)._repr_html_()
    (sound,) = embedded(long, "audio/flac")
    assert soundfile.info(io.BytesIO(sound)).duration == MOST_SECONDS
    (picture,) = embedded(long, "image/png")
    assert image.imread(io.BytesIO(picture), format="png").shape[1] <= COLUMNS
    assert "3600 s, the first 180 s here" in long
    noise = np.random.default_rng(0).uniform(-1, 1, (40, 60 * RATE)).astype("f4")
    many = AudioOutput(noise, RATE)._repr_html_()
    assert many.count("<audio ") == 8 and "and 32 more" in many and "the first 22.5 s here" in many
    assert len(many) < 9e6  # noise is the worst that there is


def test_a_clip_that_is_too_short_for_a_picture_has_a_player():
    html = AudioOutput(np.zeros((1, 512), "f4"), RATE)._repr_html_()
    assert "<audio " in html and "<img" not in html


@pytest.mark.parametrize("level", [0.0, np.nan])
def test_silence_and_damage_are_dark(level):
    picture = spectrogram_png(np.full(RATE, level, "f4"), RATE)
    assert image.imread(io.BytesIO(picture), format="png").shape[:2] == (64, 101)


def test_what_is_no_waveform_says_what_it_is(pipe):
    quick = {"audio_length_in_s": 0.64, "num_inference_steps": 1, "seed": 0}
    latents = pipe("rain", **quick, output_type="latent")
    assert "latents (1, 8, 16, 8)" in latents._repr_html_() and "decode" in repr(latents)
    streams = pipe(["rain", "sea"], **quick, output_type="blocks")
    assert "2 streams of 16000 Hz" in streams._repr_html_()
    assert len(list(streams.audios[0])) > 0  # showing has not read them
    assert repr(pipe("rain", **quick)) == "AudioOutput(1 clip of 0.64 s, 16000 Hz)"
