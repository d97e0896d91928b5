"""Sounds as bytes, in the formats that the server answers with."""

import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from audiolitefocus.audio.formats import encode_sound, to_pcm16

Blocks = Iterable["np.ndarray | Tensor"]


# name -> media type
FORMATS = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg; codecs=opus",
    "pcm": "audio/pcm",  # 16 bit, little endian
}
SAMPLE_BYTES = 2  # of a wav's and pcm's
STREAMED = ("wav", "pcm")  # whose bytes are known while later samples are not


def encode(name: str, blocks: Blocks, rate: int) -> bytes:
    """A whole file of mono blocks (n,) in [-1, 1]. Raises ValueError for samples not finite."""
    if name == "pcm":
        return b"".join(encode_stream(name, blocks, rate, 0))
    path = Path(f"sound.{name}")
    with tempfile.TemporaryDirectory() as folder:
        encode_sound(Path(folder) / path, path, _finite(blocks), rate)
        return (Path(folder) / path).read_bytes()


def encode_stream(name: str, blocks: Blocks, rate: int, samples: int) -> Iterator[bytes]:
    """The same bytes in parts, one a block, for the formats of `STREAMED`.

    Args:
        samples: of all blocks together, which a WAV file says at its beginning.
    """
    if name == "wav":
        yield wav_header(samples, rate)
    for block in _finite(blocks):
        yield to_pcm16(block).astype("<i2").tobytes()


def wav_header(samples: int, rate: int) -> bytes:
    """What precedes so many samples of 16 bit mono in a WAV file (44 bytes)."""
    size = samples * SAMPLE_BYTES
    layout = struct.pack("<HHIIHH", 1, 1, rate, rate * SAMPLE_BYTES, SAMPLE_BYTES, 16)
    return b"RIFF%sWAVEfmt \x10\0\0\0%sdata%s" % (
        struct.pack("<I", 36 + size),
        layout,
        struct.pack("<I", size),
    )


def _finite(blocks: Blocks) -> Iterator[np.ndarray]:
    for block in blocks:
        samples = np.asarray(block, dtype=np.float32)
        if not np.isfinite(samples).all():
            raise ValueError("the waveform has NaN or infinite samples; try --dtype float32")
        yield samples
