"""Formats of the sound files that are written, and the comment that a file can carry."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
from torch import Tensor

from audiolitefocus.validation import shown


@dataclass(frozen=True)
class SoundFormat:
    """How soundfile writes the files of one ending.

    Attributes:
        container: libsndfile's name of the format.
        subtypes: bits a sample -> libsndfile's name, the default first; None where there are none.
        rates: in Hz, that it has; empty for any.
    """

    container: str
    subtypes: Mapping[int | None, str]
    rates: tuple[int, ...] = ()


PCM: dict[int | None, str] = {16: "PCM_16", 24: "PCM_24"}
FLOATING = 32  # bits of floating-point samples
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
FORMATS = {
    ".wav": SoundFormat("WAV", {**PCM, FLOATING: "FLOAT"}),
    ".flac": SoundFormat("FLAC", PCM),
    ".ogg": SoundFormat("OGG", {None: "VORBIS"}),
    ".opus": SoundFormat("OGG", {None: "OPUS"}, OPUS_RATES),
    ".mp3": SoundFormat("MP3", {None: "MPEG_LAYER_III"}, MP3_RATES),
}
SOUND_SUFFIXES = tuple(FORMATS)
BITS = (16, 24, FLOATING)
COMMENT_BYTES = 1 << 14  # libsndfile drops longer ones from wav, and fails on them in opus
LONGEST_LIST = 1 << 20  # bytes of a wav's list of tags that are looked through


def sound_format(path: Path) -> SoundFormat:
    """The format that a name's ending asks for. Raises ValueError for another ending."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: the name must end in one of {', '.join(SOUND_SUFFIXES)}")
    return FORMATS[path.suffix.lower()]


def bits_of(path: Path, bits: int | None = None) -> int | None:
    """The bits a sample of a file: those asked for, or the default of its format.

    Raises:
        ValueError: another ending, or bits that its format does not have.
    """
    subtypes = sound_format(path).subtypes
    if bits is None:
        return next(iter(subtypes))
    if bits not in subtypes:
        there = " or ".join(str(n) for n in subtypes if n) or "no choice of bits"
        raise ValueError(f"bits {shown(bits)}: {path.suffix} has {there}")
    return bits


def check_rate(path: Path, rate: int) -> None:
    """Raise ValueError if the format of a file does not have this rate, or cannot be written."""
    chosen = sound_format(path)
    if chosen.rates and rate not in chosen.rates:
        raise ValueError(
            f"{path}: {path.suffix} has no {rate} Hz, only {', '.join(map(str, chosen.rates))}; "
            f"choose .wav or .flac"
        )
    subtype = next(iter(chosen.subtypes.values()))
    if not soundfile.check_format(chosen.container, subtype):  # libsndfile before 1.1 has no MP3
        raise ValueError(
            f"{path}: libsndfile {soundfile.__libsndfile_version__} cannot write {path.suffix}: "
            f"pip install --upgrade soundfile, or choose .wav or .flac"
        )


def encode_sound(
    beside: Path,
    path: Path,
    waveform: "np.ndarray | Tensor | Iterable[np.ndarray | Tensor]",
    rate: int,
    *,
    bits: int | None = None,
    comment: str = "",
) -> None:
    """Write a mono waveform, whole or in blocks, into the file `beside`, in the format of `path`.

    Args:
        bits: a sample; see `bits_of`.
        comment: ASCII, at most `COMMENT_BYTES`, for the file's tags.
    """
    assert comment.isascii() and len(comment) <= COMMENT_BYTES
    bits, kind = bits_of(path, bits), sound_format(path)
    check_rate(path, rate)
    blocks = [waveform] if isinstance(waveform, (np.ndarray, Tensor)) else waveform
    subtype = kind.subtypes[bits]
    with open(beside, "wb", buffering=0) as binary:
        target = KeepsFailure(binary)
        try:
            with soundfile.SoundFile(target, "w", rate, 1, subtype, format=kind.container) as file:
                if comment:
                    file.comment = comment  # first, as only wav can go back to its head
                for samples in _pieces(path, blocks, rate, pad=subtype == "OPUS"):
                    file.write(_quantised(samples, bits))
                    target.check(path)
        except soundfile.LibsndfileError as error:
            raise OSError(f"cannot write {path}: {error}") from None
        target.check(path)


class KeepsFailure:
    """A binary file whose first failure to write is kept, as libsndfile reports not all of them."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: OSError | None = None
        self.seek, self.tell = file.seek, file.tell

    def write(self, content: bytes) -> int:
        rest = memoryview(content)
        while rest and self.error is None:
            try:
                rest = rest[self.file.write(rest) :]
            except OSError as error:
                self.error = error
        return len(content)

    def check(self, path: Path) -> None:
        """Raise OSError that names the file if a write has failed."""
        if self.error is not None:
            raise OSError(f"cannot write {path}: is the disk full? ({self.error.strerror})")


def _pieces(path: Path, blocks: Iterable, rate: int, *, pad: bool) -> Iterator[np.ndarray]:
    """Samples of a second at most; with `pad`, silence after them as Opus needs it."""
    count = 0
    for block in blocks:
        samples = np.asarray(block, dtype=np.float32)
        if samples.ndim != 1 or not np.isfinite(samples).all():
            raise ValueError(
                f"waveform for {path}: one dimension of finite samples, got shape {samples.shape}"
            )
        # One call with many samples overflows the stack of libsndfile's Vorbis encoder.
        yield from (samples[start : start + rate] for start in range(0, len(samples), rate))
        count += len(samples)
    if pad:
        yield np.zeros(_opus_padding(count, rate), np.float32)


def _quantised(samples: np.ndarray, bits: int | None) -> np.ndarray:
    """Samples as the file holds them: rounded here, for libsndfile rounds wav and flac differently.

    Of 24 bits, in the upper ones of 32.
    """
    if bits == FLOATING:
        return samples
    if bits is None:
        return samples.clip(-1, 1)
    scale = 1 << (bits - 1)
    whole = (samples * np.float32(scale)).round().clip(-scale, scale - 1)
    return whole.astype(np.int16) if bits == 16 else whole.astype(np.int32) << 8


def to_pcm16(samples: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] as 16 bit, as wav and flac hold them."""
    return _quantised(samples, 16)


def _opus_padding(count: int, rate: int) -> int:
    """Samples of silence to write after `count`, 5 ms where clips are whole packets of 20 ms.

    libsndfile 1.2 forgets the encoder's look-ahead (6.5 ms) when the last packet is nearly full or
    nearly empty, and the file then ends in a click.
    """
    packet = rate // 50
    quarter, used = packet // 4, count % packet
    return 0 if quarter <= used <= 2 * quarter else (quarter - used) % packet


def read_comment(source: Path) -> str:
    """The comment in the tags of a sound file that libsndfile reads; empty if there is none.

    Raises:
        ValueError: no sound file.
    """
    try:
        with soundfile.SoundFile(source) as file:
            if file.format not in ("WAV", "WAVEX"):
                return file.comment
    except (soundfile.LibsndfileError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} cannot be read as a sound file: {error}") from None
    # libsndfile writes comments of any length into wav, and reads those of at most 2 kB
    with open(source, "rb") as binary:
        binary.seek(12)
        for name, size in _chunks(binary):
            if name == b"LIST" and 4 <= size <= LONGEST_LIST and binary.read(4) == b"INFO":
                return _info_comment(binary, size - 4)
    return ""


def _info_comment(file: BinaryIO, size: int) -> str:
    end = file.tell() + size
    for name, length in _chunks(file):
        if file.tell() + length > end:
            break
        if name == b"ICMT":
            return file.read(length).rstrip(b"\0").decode(errors="replace")
    return ""


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Name and size of each chunk of a RIFF file from here on, placed at its content."""
    while len(head := file.read(8)) == 8:
        size = int.from_bytes(head[4:], "little")
        start = file.tell()
        yield head[:4], size
        file.seek(start + size + size % 2)
