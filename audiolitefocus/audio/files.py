"""Sound files: written whole or not at all, and read at any rate and number of channels."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from audiolitefocus.atomic import atomic_file, check_writable
from audiolitefocus.audio.length import MAX_SECONDS
from audiolitefocus.audio.resample import resample

SOUND_SUFFIXES = (".wav", ".flac", ".ogg")
SAMPLE_BYTES = 2  # in files that are written, at most
SOUND_RATES = (4000, 384000)  # of files that are read


def check_sound_path(path: str | os.PathLike) -> Path:
    """Raise ValueError or OSError now for a sound file that could not be written later."""
    path = Path(path)
    if path.suffix.lower() not in SOUND_SUFFIXES:
        raise ValueError(f"{path}: the name must end in one of {', '.join(SOUND_SUFFIXES)}")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a sound file")
    check_writable(path.parent)
    return path


def write_sound(
    path: str | os.PathLike, waveform: np.ndarray | Tensor | Iterable[Tensor], rate: int
) -> Path:
    """Write a mono waveform in [-1, 1] as 16 bit wav or flac, or Vorbis ogg, by the name's ending.

    The waveform may come in blocks, which are written as they are made. The file appears whole or
    not at all. Raises ValueError for NaN or infinite samples, OSError where it cannot be written.
    """
    path = check_sound_path(path)
    with atomic_file(path) as beside:
        encode_sound(beside, path, waveform, rate)
    return path


def encode_sound(
    beside: Path, path: Path, waveform: np.ndarray | Tensor | Iterable[Tensor], rate: int
) -> None:
    """Write a waveform into the file `beside` in the format that the name of `path` asks for."""
    vorbis, kind = path.suffix.lower() == ".ogg", path.suffix[1:].upper()
    subtype = "VORBIS" if vorbis else "PCM_16"
    blocks = [waveform] if isinstance(waveform, (np.ndarray, Tensor)) else waveform
    try:
        with soundfile.SoundFile(beside, "w", rate, 1, subtype, format=kind) as file:
            for block in blocks:
                samples = np.asarray(block, dtype=np.float32)
                if samples.ndim != 1 or not np.isfinite(samples).all():
                    raise ValueError(
                        f"waveform for {path}: one dimension of finite samples, got shape "
                        f"{samples.shape}"
                    )
                # One call with many samples overflows the stack of libsndfile's Vorbis encoder.
                for start in range(0, len(samples), rate):
                    part = samples[start : start + rate]
                    file.write(part.clip(-1, 1) if vorbis else _pcm(part))
    except soundfile.LibsndfileError as error:
        raise OSError(f"cannot write {path}: is the disk full? ({error})") from None


def _pcm(samples: np.ndarray) -> np.ndarray:
    """16 bit, rounded here because libsndfile rounds differently for wav and for flac."""
    return (samples * 32768).round().clip(-32768, 32767).astype(np.int16)


def read_sound(path: str | os.PathLike, rate: int) -> Tensor:
    """The sound of a file that libsndfile reads, mixed down and resampled: (samples,) float32.

    Raises:
        ValueError: no sound file, an empty one, one of more than an hour or of a rate outside
            `SOUND_RATES`, with NaN or infinite samples, or shorter than its header says.
    """
    path = Path(path)
    with _opened(path) as file:
        blocks = [
            torch.from_numpy(block.mean(axis=1))
            for block in file.blocks(1 << 16, dtype="float32", always_2d=True)
        ]
        promised, source_rate = file.frames, file.samplerate
    waveform = torch.cat(blocks) if blocks else torch.empty(0)
    if len(waveform) < promised:
        raise ValueError(f"{path} is cut short: {len(waveform)} of {promised} samples")
    if not waveform.isfinite().all():
        raise ValueError(f"{path}: some samples are NaN or infinite")
    return resample(waveform, source_rate, rate)


def sound_length(path: str | os.PathLike) -> tuple[int, int]:
    """Samples and rate of a sound file, from its header. Raises ValueError as `read_sound`."""
    with _opened(Path(path)) as file:
        return file.frames, file.samplerate


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with soundfile.SoundFile(path) as file:
            _check_header(path, file)
            yield file
    except (soundfile.LibsndfileError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a sound file: {error}") from None


def _check_header(path: Path, file: soundfile.SoundFile) -> None:
    low, high = SOUND_RATES
    if not low <= file.samplerate <= high:
        raise ValueError(f"{path}: {file.samplerate} Hz is not between {low} and {high} Hz")
    if file.frames <= 0:
        raise ValueError(f"{path} is empty")
    if file.frames > MAX_SECONDS * file.samplerate:
        seconds = file.frames / file.samplerate
        raise ValueError(f"{path} says it is {seconds:.0f} s long: more than {MAX_SECONDS:g} s")
    # libsndfile corrects the length of a file that ends too early, and reports it only in its log.
    # Programs that cannot go back to the header write a length of all ones.
    for said, there in re.findall(r"(\d+) \(should be (\d+)\)", file.extra_info):
        if int(there) < int(said) < 0x7FFFFFFF:
            raise ValueError(f"{path} is cut short: {there} of {said} bytes")
