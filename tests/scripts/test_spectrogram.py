"""The spectrogram script of `make demo`."""

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("matplotlib")

from scripts.plots.spectrogram import HOP, RANGE_DB, WINDOW, decibels, draw

RATE = 16000


def test_a_tone_is_one_bright_row():
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(RATE) / RATE)
    picture = decibels(tone)
    assert picture.shape == (WINDOW // 2 + 1, RATE // HOP + 1)
    rows = picture.mean(1)
    assert rows.argmax() == 1000 * WINDOW // RATE
    assert -RANGE_DB <= picture.min() < -60 and picture.max() == 0


def test_silence_is_dark():
    assert (decibels(torch.zeros(RATE)) == -RANGE_DB).all()


def test_draws_mono_and_stereo(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE, 2))
    for channels in (1, 2):
        sound, picture = tmp_path / "noise.wav", tmp_path / f"{channels}.png"
        soundfile.write(sound, noise[:, :channels], RATE)
        draw(sound, picture)
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_too_short_a_sound_is_refused(tmp_path):
    soundfile.write(tmp_path / "click.wav", np.zeros(10), RATE)
    with pytest.raises(ValueError, match="10 samples are too few"):
        draw(tmp_path / "click.wav", tmp_path / "click.png")
    assert not (tmp_path / "click.png").exists()
