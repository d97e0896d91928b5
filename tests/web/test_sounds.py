"""Sounds as bytes: read back with soundfile, and streamed to the same bytes."""

import io

import numpy as np
import pytest
import soundfile
import torch

from audiolitefocus.audio.formats import FORMATS as SOUND_FORMATS
from audiolitefocus.web.sounds import FORMATS, STREAMED, encode, encode_stream

RATE = 16000
OPUS_SILENCE = RATE // 50  # samples that are added to it at most
PCM_STEP = 0.51 / 32768  # 16-bit samples are rounded
SOUND = (0.5 * np.sin(2 * np.pi * 440 * np.arange(40_000) / RATE)).astype(np.float32)
BLOCKS = [SOUND[:17_000], torch.from_numpy(SOUND[17_000:])]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "pcm"])
def test_every_format_is_read_back_as_what_it_says(name):
    content, written = encode(name, BLOCKS, RATE), SOUND_FORMATS[f".{name}"]
    about, subtype = soundfile.info(io.BytesIO(content)), next(iter(written.subtypes.values()))
    assert (about.format, about.subtype) == (written.container, subtype)
    assert (about.samplerate, about.channels) == (RATE, 1)
    assert 0 <= about.frames - len(SOUND) <= (OPUS_SILENCE if name == "opus" else 0)
    found, _ = soundfile.read(io.BytesIO(content), frames=len(SOUND))
    if subtype == "PCM_16":
        np.testing.assert_allclose(found, SOUND, atol=PCM_STEP)
    else:  # lossy, and shifted by less than a period: the same tone as loud
        spectrum, expected = abs(np.fft.rfft(found)), abs(np.fft.rfft(SOUND))
        assert spectrum.argmax() == expected.argmax()
        assert spectrum.max() == pytest.approx(expected.max(), rel=0.1)


def test_pcm_is_what_a_wav_file_has_after_its_header():
    wav, pcm = (encode(name, BLOCKS, RATE) for name in ("wav", "pcm"))
    assert len(pcm) == 2 * len(SOUND) and wav[44:] == pcm


@pytest.mark.parametrize("name", STREAMED)
def test_streamed_parts_are_the_file(name):
    parts = list(encode_stream(name, BLOCKS, RATE, len(SOUND)))
    assert len(parts) == len(BLOCKS) + (name == "wav")
    assert b"".join(parts) == encode(name, BLOCKS, RATE)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_an_error(wrong):
    with pytest.raises(ValueError, match="NaN or infinite"):
        encode("flac", [np.array([0.0, wrong], np.float32)], RATE)
