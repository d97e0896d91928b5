"""Recordings of every kind that this ecosystem passes, against the same sound as float samples."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiolitefocus.audio.samples import load_recording

RATE = 16000
SOUND = 0.5 * np.sin(np.arange(RATE) * 0.05)
INT16 = (SOUND * 32768).astype(np.int16)
STEREO = np.stack([INT16, INT16], 1)
STEP = 2**-14  # of 16 bits, rounded twice


def file(**kind) -> io.BytesIO:
    made = io.BytesIO()
    soundfile.write(made, SOUND, RATE, format="WAV", **kind)
    made.seek(0)
    return made


KINDS = {
    "float64": SOUND,
    "float32 tensor": torch.from_numpy(SOUND).float(),
    "half tensor": torch.from_numpy(SOUND).half(),
    "with a gradient": torch.from_numpy(SOUND).requires_grad_(),
    "int16": INT16,
    "int32": (SOUND * 2**31).astype(np.int32),
    "stereo, channels last": STEREO,
    "stereo, channels first": torch.from_numpy(STEREO.T.copy()),
    "one channel": SOUND[:, None],
    "gradio": (RATE, INT16),
    "gradio, stereo": (RATE, STEREO),
    "numpy rate": (np.int64(RATE), SOUND),
    "open file": file(),
    "bytes of a float file": file(subtype="FLOAT"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_same_sound(kind):
    found = load_recording(KINDS[kind], RATE)
    assert found.dtype == torch.float32 and not found.requires_grad
    np.testing.assert_allclose(found, SOUND, atol=4e-4 if "half" in kind else STEP)


def test_eight_bits_have_their_middle_at_128():
    found = load_recording(np.array([0, 128, 192, 255], np.uint8), RATE)
    np.testing.assert_allclose(found, [-1, 0, 0.5, 127 / 128])


def test_files_by_name(tmp_path: Path):
    path = tmp_path / "x.wav"
    path.write_bytes(file().getvalue())
    assert torch.equal(load_recording(path, RATE), load_recording(str(path), RATE))


def test_another_rate_is_resampled():
    time = np.arange(44100) / 44100
    found = load_recording((44100, np.sin(2 * np.pi * 440 * time)), RATE)
    expected = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    assert found.shape == (RATE,)
    np.testing.assert_allclose(found[500:-500], expected[500:-500], atol=2e-3)


@pytest.mark.parametrize(
    "source, message",
    [
        (3, "type int"),
        ((RATE,), "type tuple"),
        ((RATE, "x"), "type str"),
        ((16000.5, SOUND), "rate of a recording 16000.5"),
        (np.zeros(0), "shape"),
        (np.zeros((2, 2, 2)), "shape"),
        (np.zeros(10, complex), "complex"),
        (np.zeros(10, bool), "bool"),
        (np.full(10, np.inf), "infinite"),
    ],
)
def test_anything_else_is_named(source, message):
    with pytest.raises(ValueError, match=message):
        load_recording(source, RATE)
