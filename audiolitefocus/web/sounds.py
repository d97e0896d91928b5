"""Sounds as bytes, in the formats that the server answers with."""

import io
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import soundfile
from torch import Tensor

from audiolitefocus.audio.files import SAMPLE_BYTES, to_pcm16

Blocks = Iterable["np.ndarray | Tensor"]


@dataclass(frozen=True)
class Format:
    """A media type, and what libsndfile calls the container and the encoding in it."""

    media_type: str
    container: str
    encoding: str = "PCM_16"


FORMATS = {
    "wav": Format("audio/wav", "WAV"),
    "flac": Format("audio/flac", "FLAC"),
    "ogg": Format("audio/ogg", "OGG", "VORBIS"),
    "mp3": Format("audio/mpeg", "MP3", "MPEG_LAYER_III"),
    "opus": Format("audio/ogg; codecs=opus", "OGG", "OPUS"),
    "pcm": Format("audio/pcm", "RAW"),  # 16 bit, little endian
}
STREAMED = ("wav", "pcm")  # whose bytes are known while later samples are not


def encode(name: str, blocks: Blocks, rate: int) -> bytes:
    """A whole file of mono blocks (n,) in [-1, 1]. Raises ValueError for samples not finite."""
    kind, whole = FORMATS[name], io.BytesIO()
    with soundfile.SoundFile(
        whole, "w", rate, 1, kind.encoding, endian="FILE", format=kind.container
    ) as file:
        for block in _finite(blocks):
            # one call with many samples overflows the stack of libsndfile's Vorbis encoder
            for start in range(0, len(block), rate):
                part = block[start : start + rate]
                file.write(to_pcm16(part) if kind.encoding == "PCM_16" else part.clip(-1, 1))
    return whole.getvalue()


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
