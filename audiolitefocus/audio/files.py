"""Sound files: written whole or not at all, and read at any rate and number of channels."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor

from audiolitefocus.atomic import atomic_file, check_writable
from audiolitefocus.audio.formats import bits_of, check_rate, encode_sound
from audiolitefocus.audio.length import MAX_SECONDS
from audiolitefocus.audio.resample import resample
from audiolitefocus.validation import check_not_pointer

SOUND_RATES = (4000, 384000)  # of files that are read
BLOCK_SAMPLES = 1 << 16  # read at a time
UNKNOWN_FRAMES = 1 << 62  # libsndfile's length of a stream that does not say it
MP3_SLACK = 2 * 1152  # samples: two frames, by which its length may be an estimate
MP3_KBITS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # a second, MPEG 1
MP3_LOW_KBITS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # MPEG 2
STREAMED_BYTES = 0x7FFFF000  # sizes from here on were written before the size was known
WHOLE_FILE = ("RIFF", "FORM", "RF64")  # chunks whose size says nothing of the samples
LARGEST_PAGE = 27 + 255 + 255 * 255  # bytes, of Ogg


def check_sound_path(path: str | os.PathLike[str], bits: int | None = None) -> Path:
    """Raise ValueError or OSError now for a sound file that could not be written later.

    `bits` as in `write_sound`. What depends on the rate, `formats.check_rate` checks.
    """
    path = Path(path)
    bits_of(path, bits)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a sound file")
    check_writable(path.parent)
    return path


def write_sound(
    path: str | os.PathLike[str],
    waveform: np.ndarray | Tensor | Iterable[Tensor],
    rate: int,
    *,
    bits: int | None = None,
) -> Path:
    """Write a mono waveform in [-1, 1] as wav, flac, ogg (Vorbis), opus or mp3, by the name.

    The waveform may come in blocks, which are written as they are made. The file appears whole or
    not at all.

    Args:
        bits: a sample: 16, the default, or 24 in wav and flac, or 32, floating point, in wav.

    Raises:
        ValueError: NaN or infinite samples; another ending; bits or a rate that the format lacks.
        OSError: the file cannot be written.
    """
    path = check_sound_path(path, bits)
    check_rate(path, rate)
    with atomic_file(path) as beside:
        encode_sound(beside, path, waveform, rate, bits=bits)
    return path


def read_sound(
    source: str | os.PathLike[str] | BinaryIO, rate: int, *, max_seconds: float = MAX_SECONDS
) -> Tensor:
    """The sound of a file that libsndfile reads, mixed down and resampled: (samples,) float32.

    Args:
        source: a file's name, or an open binary file.
        max_seconds: of the sound; more is an error before it is in memory.

    Raises:
        ValueError: no sound file, an empty one, one that is too long or of a rate outside
            `SOUND_RATES`, with NaN or infinite samples, or one of whose samples some are missing.
    """
    with _opened(source) as (name, file):
        blocks = [torch.from_numpy(b.mean(axis=1)) for b in _blocks(name, file, max_seconds)]
        source_rate = file.samplerate
    waveform = torch.cat(blocks)
    if not waveform.isfinite().all():
        raise ValueError(f"{name}: some samples are NaN or infinite")
    return resample(waveform, source_rate, rate)


def sound_length(source: str | os.PathLike[str]) -> tuple[int, int]:
    """Samples and rate of a sound file: those that can be decoded, whatever its header says.

    Raises ValueError as `read_sound`.
    """
    with _opened(source) as (name, file):
        return sum(map(len, _blocks(name, file))), file.samplerate


@contextmanager
def _opened(source: str | os.PathLike[str] | BinaryIO) -> Iterator[tuple[str, soundfile.SoundFile]]:
    """The file, and what messages call it."""
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        if not Path(name).is_file():
            raise ValueError(f"{name}: no such file")
        check_not_pointer(Path(name))
    else:
        name = str(getattr(source, "name", "the recording"))
    try:
        with soundfile.SoundFile(source) as file:
            low, high = SOUND_RATES
            if not low <= file.samplerate <= high:
                raise ValueError(f"{name}: {file.samplerate} Hz is not between {low} and {high} Hz")
            yield name, file
    except (soundfile.LibsndfileError, TypeError) as error:
        reason = getattr(error, "error_string", error)
        raise ValueError(f"{name} cannot be read as a sound file: {reason}") from None
    if file.format == "OGG" and not _has_last_page(_tail(source)):
        raise ValueError(f"{name} is cut short: the last page of its stream is missing")
    if file.format == "MP3" and _mp3_samples(_tail(source, None)) > file.frames + 2 * MP3_SLACK:
        raise ValueError(
            f"{name} does not say its length, and only {file.frames} samples can be read: convert "
            f"it to another format first"
        )


def _blocks(
    name: str, file: soundfile.SoundFile, max_seconds: float = MAX_SECONDS
) -> Iterator[np.ndarray]:
    """All that can be decoded, in blocks (n, channels).

    What is decoded counts, not what the header says: programs that cannot go back to it write
    lengths that are too large or none, and those of MP3 may be estimates.

    Raises:
        ValueError: after the last block, if samples are missing; or there are too many.
    """
    count, known = 0, file.frames < UNKNOWN_FRAMES
    allowed = int(max_seconds * file.samplerate)
    while count <= allowed and not (known and file.frames > allowed):
        block, whole = _read_block(file)
        count += len(block)
        if len(block):
            yield block
        if not whole:
            break
    else:
        seconds = (file.frames if known else count) / file.samplerate
        raise ValueError(f"{name} is {seconds:.0f} s long: more than {max_seconds:g} s")
    missing = file.frames - count if known else 0
    if missing > (MP3_SLACK if file.format == "MP3" else 0):
        raise ValueError(
            f"{name} is damaged or cut short: {count} of {file.frames} samples can be read"
        )
    if not count:
        raise ValueError(f"{name} is empty")
    _check_log(name, file.extra_info)


def _read_block(file: soundfile.SoundFile) -> tuple[np.ndarray, bool]:
    """The next samples (n, channels), and whether more may follow."""
    block = np.full((BLOCK_SAMPLES, file.channels), np.nan, dtype=np.float32)
    try:
        found = file.read(out=block)
    except soundfile.LibsndfileError:
        # At the end of a damaged FLAC file, or of one of unknown length, the samples are there and
        # moving on behind them fails.
        found = block[: np.isfinite(block).all(axis=1).argmin()]
    return found, len(found) == BLOCK_SAMPLES


def _check_log(name: str, log: str) -> None:
    """Raise ValueError where libsndfile has corrected the size of the samples by a block or more.

    It reads what is there, and reports in its log alone that the header promised more.
    """
    aligned = re.search(r"Block Align\s*: (\d+)", log)
    slack = int(aligned[1]) if aligned else 64
    for chunk, said, there in re.findall(r"(?m)^ *(.*?)\s*: (\d+) \(should be (\d+)\)", log):
        streamed = int(said) >= STREAMED_BYTES
        if chunk not in WHOLE_FILE and not streamed and int(said) - int(there) > slack:
            raise ValueError(f"{name} is cut short: {there} of {said} bytes")


def _tail(source: str | os.PathLike[str] | BinaryIO, size: int | None = 2 * LARGEST_PAGE) -> bytes:
    """The last bytes of a file; None for all."""
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            return _tail(file, size)
    end = source.seek(0, os.SEEK_END)
    source.seek(0 if size is None else max(0, end - size))
    return source.read()


def _has_last_page(end: bytes) -> bool:
    """True if an Ogg file ends with a whole page that says it is the last (RFC 3533, 6)."""
    start = end.rfind(b"OggS")
    page = end[start:] if start >= 0 else b""
    if len(page) < 27 or not page[5] & 4:
        return False
    segments = page[26]
    return len(page) >= 27 + segments + sum(page[27 : 27 + segments])


def _mp3_samples(content: bytes) -> int:
    """Samples of an MP3, by its frames (ISO 11172-3, 2.4.1.3): a decoder estimates them where no
    header says how many there are.
    """
    place, samples = content.find(b"\xff"), 0
    while 0 <= place < len(content) - 4:
        head = int.from_bytes(content[place : place + 4], "big")
        version, layer, rate, speed = (
            head >> 19 & 3,
            head >> 17 & 3,
            head >> 12 & 15,
            head >> 10 & 3,
        )
        if head >> 21 != 0x7FF or version == 1 or layer != 1 or rate in (0, 15) or speed == 3:
            place = content.find(b"\xff", place + 1)  # no frame: a tag, or damage
            continue
        first, halves = version == 3, {3: 0, 2: 1, 0: 2}[version]  # MPEG 1, 2 and 2.5
        kbits = (MP3_KBITS if first else MP3_LOW_KBITS)[rate - 1]
        hertz = (44100, 48000, 32000)[speed] >> halves
        place += (144 if first else 72) * 1000 * kbits // hertz + (head >> 9 & 1)
        samples += 1152 if first else 576
    return samples
