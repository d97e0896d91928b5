"""Rates and lengths, and sound files: the one home of seconds <-> samples <-> mel frames <-> latent
frames.

A clip of AudioLDM2 is 16000 samples, 100 mel frames or 25 latent frames a second.
"""

import math
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
from audiolitefocus.config import BundleConfig
from audiolitefocus.validation import MAX_SECONDS, MIN_SECONDS

SOUND_SUFFIXES = (".wav", ".flac", ".ogg")
SAMPLE_BYTES = 2  # in files that are written, at most
SOUND_RATES = (4000, 384000)  # of files that are read
MAX_TAPS = 1 << 24  # of all phases of a resampling filter: enough for any two rates in use


class ClipLength:
    """One clip length in every unit that the networks count in.

    Attributes:
        seconds: as asked for.
        samples: of the waveform, int(seconds * rate), as in diffusers.
        mel_frames: int(seconds * frame rate), rounded up to whole latent frames.
        latent_frames: rounded up to the UNet's time multiple (8 frames, 0.32 s, for AudioLDM2), so
            that every level halves exactly as it did in training; the surplus is cut from the
            waveform.
        latent_rows: frequency rows of the latent (16).
    """

    def __init__(self, seconds: float, config: BundleConfig):
        self.seconds = check_seconds(seconds)
        rate, hop = config.vocoder.sampling_rate, config.vocoder.hop_length
        down, multiple = config.vae.downsampling, config.unet.time_multiple
        self.samples = int(seconds * rate)
        # Divide by the hop in seconds, as diffusers does, so that 10.24 s is 1024 frames in
        # floating point too.
        least_frames = max(1, math.ceil(int(seconds / (hop / rate)) / down))
        self.latent_frames = math.ceil(least_frames / multiple) * multiple
        while self.latent_frames * down * hop < self.samples:
            self.latent_frames += multiple
        self.least_latent_frames = least_frames
        self.latent_rows = config.vocoder.mel_bins // down


def check_seconds(seconds: float) -> float:
    """Raise ValueError unless a clip can be this long."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise ValueError(f"duration {seconds!r}: give a number of seconds")
    if not math.isfinite(seconds) or not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise ValueError(
            f"duration {seconds} s: must lie between {MIN_SECONDS:g} and {MAX_SECONDS:g} seconds"
        )
    return float(seconds)


def seconds_of(samples: int, rate: int) -> float:
    """The least length in seconds that is so many samples of a `ClipLength`."""
    seconds = samples / rate
    return seconds if int(seconds * rate) == samples else math.nextafter(seconds, math.inf)


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
    """Write a mono waveform in [-1, 1] as wav, flac or ogg by the name's ending: 16 bit, or Vorbis
    for ogg.

    The waveform may come in blocks, which are written as they are made. The file appears whole or
    not at all. Raises ValueError for NaN or infinite samples.
    """
    path = check_sound_path(path)
    with atomic_file(path) as beside:
        encode_sound(beside, path, waveform, rate)
    return path


def encode_sound(
    beside: Path, path: Path, waveform: np.ndarray | Tensor | Iterable[Tensor], rate: int
) -> None:
    """`write_sound` into another file, which is not there under its own name yet."""
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
    """A sound file of any format and rate that libsndfile reads, mixed down and resampled:
    (samples,) float32.

    Raises:
        ValueError: no sound file, an empty one, one of more than an hour, one with NaN or infinite
            samples, or one that holds less sound than it says.
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
    try:
        return resample(waveform, source_rate, rate)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def sound_length(path: str | os.PathLike) -> tuple[int, int]:
    """Samples and rate of a sound file as its header tells. Raises ValueError as `read_sound`."""
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
    # libsndfile corrects the length of a file that ends too early, and tells only its log. A length
    # of all ones is what programs write that cannot go back to the header.
    for said, there in re.findall(r"(\d+) \(should be (\d+)\)", file.extra_info):
        if int(there) < int(said) < 0x7FFFFFFF:
            raise ValueError(f"{path} is cut short: {there} of {said} bytes")


def resample(waveform: Tensor, source_rate: int, target_rate: int, *, zeros: int = 32) -> Tensor:
    """Band-limited resampling of (..., samples) by a Kaiser-windowed sinc (Smith, "Digital Audio
    Resampling").

    Args:
        waveform: float tensor, time last.
        zeros: zero crossings of the sinc on each side: more is a steeper filter.

    Returns:
        (..., ceil(samples * target_rate / source_rate)) at the target rate.

    Raises:
        ValueError: rates with so few common divisors that the filter would be huge.
    """
    divisor = math.gcd(source_rate, target_rate)
    down, up = source_rate // divisor, target_rate // divisor
    if up == down:
        return waveform
    # Of the source's Nyquist frequency; the rest is transition band.
    cutoff = 0.95 * min(1.0, up / down)
    reach = math.ceil(zeros / cutoff)
    if up * (2 * reach + down + 1) > MAX_TAPS:  # rates with no large common divisor
        raise ValueError(
            f"{source_rate} Hz does not go into {target_rate} Hz in few enough steps: convert the "
            f"sound to a usual rate first"
        )
    phases = torch.arange(up, dtype=torch.float64)[:, None] * down / up
    # Phase p of the output sits at source time p * down / up: its taps span `reach` samples on both
    # sides.
    taps = torch.arange(-reach, reach + down + 1, dtype=torch.float64)[None] - phases
    window = torch.special.i0(9.0 * (1 - (taps / reach).clamp(-1, 1) ** 2).sqrt())
    window = (
        window / torch.special.i0(torch.tensor(9.0, dtype=torch.float64)) * (taps.abs() <= reach)
    )
    kernel = (cutoff * torch.sinc(cutoff * taps) * window).to(waveform)[:, None]  # up 1 taps
    length = waveform.shape[-1]
    padded = torch.nn.functional.pad(waveform.reshape(-1, 1, length), (reach, reach + down))
    phased = torch.nn.functional.conv1d(padded, kernel, stride=down)  # n up frames
    return phased.transpose(1, 2).reshape(*waveform.shape[:-1], -1)[
        ..., : math.ceil(length * up / down)
    ]
