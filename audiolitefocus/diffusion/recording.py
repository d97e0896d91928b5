"""Recordings to start from: varied as a whole, inpainted in a span, or continued.

The denoiser starts from the recording's latents, or keeps putting them back where the sound stays
(masked sampling: Lugmayr et al., "RePaint", 2022, without its jumps back in time). In the end the
recording itself takes the place of what became of it, sample for sample.
"""

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audiolitefocus.audio.files import read_sound
from audiolitefocus.audio.length import MAX_SECONDS, MIN_SECONDS, check_seconds, seconds_of
from audiolitefocus.checks import check_number
from audiolitefocus.codec.decode import encode_mel
from audiolitefocus.codec.mel import log_mel
from audiolitefocus.config import VocoderConfig
from audiolitefocus.diffusion.denoise import Known
from audiolitefocus.models.vae import VAE
from audiolitefocus.validation import shown

Source: TypeAlias = str | os.PathLike | np.ndarray | Tensor

STRENGTH = 0.5  # of a variation, unless given
PEAK = 0.5  # of what the autoencoder was trained on: the original makes every clip this loud
SILENCE = 1e-3  # recordings with a lower peak have no level to go by
FADE_SECONDS = 0.02  # from the recording into what is made anew, inside of the span
MIRRORED_FRAMES = 24  # latent frames (0.96 s), more than the encoder's convolutions see


@dataclass(frozen=True, eq=False)
class Recording:
    """A recording, and what becomes of it.

    Attributes:
        waveform: (n,) float32 at `rate`.
        samples: of the clip, n or, where it is continued, more.
        span: samples start to stop of the clip, made anew; the others stay as they are.
        strength: in (0, 1]: the share of the denoising that the span goes through. At 1 its own
            sound is forgotten.
    """

    waveform: Tensor
    rate: int
    samples: int
    span: tuple[int, int]
    strength: float

    @classmethod
    def take(
        cls,
        init_audio: Source | None,
        continue_audio: Source | None,
        *,
        strength: float | None,
        inpaint: tuple[float, float] | None,
        seconds: float | None,
        rate: int,
    ) -> "Recording | None":
        """What the arguments of a call ask for; None without a recording. Raises ValueError for
        arguments that do not go together and for what `read_sound` refuses.
        """
        check_options(init_audio, continue_audio, strength, inpaint, seconds)
        source = init_audio if continue_audio is None else continue_audio
        if source is None:
            return None
        waveform = _load(source, rate)
        span = changed_span(len(waveform), rate, inpaint, seconds)
        strength = strength_of(strength, init_audio, inpaint)
        return cls(waveform, rate, max(len(waveform), span[1]), span, strength)

    @property
    def seconds(self) -> float:
        """Of the clip."""
        return seconds_of(self.samples, self.rate)

    @property
    def stays(self) -> bool:
        """Whether any of it does."""
        return self.span != (0, self.samples)

    @property
    def gain(self) -> float:
        """What makes it as loud as the autoencoder is used to."""
        peak = float((self.waveform - self.waveform.mean()).abs().max())
        return PEAK / peak if peak > SILENCE else 1.0

    def encode(self, vae: VAE, config: VocoderConfig, frames: int) -> Known:
        """Its latents, `frames` of them. The recording goes on as its own mirror image for about a
        second, so that the autoencoder sees no cliff; what is left, to be made anew, is zero.
        """
        down, per_frame = vae.config.downsampling, vae.config.downsampling * config.hop_length
        heard = min(frames, math.ceil(len(self.waveform) / per_frame) + MIRRORED_FRAMES)
        waveform = self._extended(heard * per_frame)
        mel = log_mel((waveform - self.waveform.mean())[None] * self.gain, config)[
            :, : heard * down
        ]
        device = next(vae.parameters()).device
        latents = encode_mel(vae, mel.to(device)) * vae.config.scale_factor
        start, stop = self.span
        changed = torch.zeros(frames, dtype=torch.bool)
        changed[start // per_frame : None if stop == self.samples else -(-stop // per_frame)] = True
        return Known(F.pad(latents, (0, 0, 0, frames - heard)), changed)

    def restore(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Consecutive blocks (b, n) of clips -> the same with the recording in its place, into
        which the span fades at its ends, and from which it takes its level.
        """
        recorded = self._extended(min(self.samples, len(self.waveform) + self._fade))
        gain, done = self.gain, 0
        for block in blocks:
            first, done = done, done + block.shape[1]
            own = recorded[first:done]
            own = F.pad(own, (0, done - first - len(own))).to(block)
            yield own.lerp((block / gain).clamp(-1, 1), self._share(first, done).to(block))

    @property
    def _fade(self) -> int:
        """Samples."""
        start, stop = self.span
        return min(int(FADE_SECONDS * self.rate), (stop - start) // 2)

    def _share(self, first: int, last: int) -> Tensor:
        """How much of these samples is made anew: all of it in the span, but for half a period of a
        cosine where it meets the recording.
        """
        start, stop = self.span
        time = torch.arange(first, last)
        share = ((time >= start) & (time < stop)).float()
        if start > 0:
            share = share.minimum((time - start + 0.5) / max(self._fade, 1))
        if stop < self.samples:
            share = share.minimum((stop - time - 0.5) / max(self._fade, 1))
        return share.clamp(min=0).mul(math.pi / 2).sin().square()

    def _extended(self, samples: int) -> Tensor:
        """(samples,) of the recording, cut, or followed by its mirror image and so on."""
        waveform = self.waveform.numpy()[:samples]
        return torch.from_numpy(np.pad(waveform, (0, samples - len(waveform)), mode="symmetric"))


def check_options(
    init_audio: Source | None,
    continue_audio: Source | None,
    strength: float | None,
    inpaint: tuple[float, float] | None,
    seconds: float | None,
) -> None:
    """Raise ValueError for options that make no sense, whatever the recording is."""
    if seconds is not None:
        check_seconds(seconds)
    if init_audio is not None and continue_audio is not None:
        raise ValueError("give either init_audio or continue_audio")
    if strength is not None:
        if init_audio is None:
            raise ValueError("strength: give the recording that is changed as init_audio")
        check_number("strength", strength, 0.0, 1.0)
        if strength == 0:
            raise ValueError("strength 0 changes nothing: it must be above 0, and at most 1")
    if inpaint is not None:
        if init_audio is None:
            raise ValueError("inpaint: give the recording that is changed as init_audio")
        check_span(inpaint)
    if init_audio is not None and seconds is not None:
        raise ValueError(
            f"duration {seconds:g} s: a clip made from init_audio is as long as that; what shall "
            f"go on longer, give as continue_audio"
        )
    if continue_audio is not None and seconds is None:
        raise ValueError("continue_audio needs the duration of the whole clip, in seconds")


def strength_of(
    strength: float | None, init_audio: Source | None, inpaint: tuple[float, float] | None
) -> float:
    """As given; else half of the way for a variation, and all of it otherwise."""
    if strength is not None:
        return strength
    return 1.0 if init_audio is None or inpaint is not None else STRENGTH


def check_span(inpaint: tuple[float, float]) -> None:
    """Raise ValueError unless these are two seconds, the first one first."""
    if not isinstance(inpaint, (tuple, list)) or len(inpaint) != 2:
        raise ValueError(f"inpaint {shown(inpaint)}: must be two numbers of seconds")
    for second in inpaint:
        check_number("inpaint", second, 0.0, MAX_SECONDS)
    start, end = inpaint
    if start >= end:
        raise ValueError(f"inpaint from {start:g} to {end:g} s: must end after it starts")


def changed_span(
    recorded: int, rate: int, inpaint: tuple[float, float] | None, seconds: float | None
) -> tuple[int, int]:
    """The samples of the clip that are made anew, of so many recorded at a rate: a span of them,
    what comes after them up to so many `seconds`, or all. Raises ValueError if they do not fit.
    """
    there = f"{recorded / rate:.2f} s"
    if recorded < MIN_SECONDS * rate:
        raise ValueError(f"a recording of {there}: must have {MIN_SECONDS:g} s at least")
    if seconds is not None:
        if int(seconds * rate) <= recorded:
            raise ValueError(f"duration {seconds:g} s: must be longer than the recording, {there}")
        return recorded, int(seconds * rate)
    if inpaint is None:
        return 0, recorded
    start, stop = (round(second * rate) for second in inpaint)
    if stop > recorded:
        raise ValueError(f"inpaint up to {inpaint[1]:g} s: the recording has {there} only")
    if start == stop:
        raise ValueError(f"inpaint from {inpaint[0]:g} to {inpaint[1]:g} s: not one sample")
    return start, stop


def _load(source: Source, rate: int) -> Tensor:
    if isinstance(source, (str, os.PathLike)):
        return read_sound(source, rate)
    waveform = torch.as_tensor(source).detach().cpu()
    if waveform.ndim != 1 or not waveform.is_floating_point() or not len(waveform):
        raise ValueError(
            f"a recording of shape {tuple(waveform.shape)}, {waveform.dtype}: must be a file's "
            f"name, or floating-point samples (n,) at {rate} Hz"
        )
    if len(waveform) > MAX_SECONDS * rate:
        raise ValueError(
            f"a recording of {len(waveform) / rate:.0f} s: more than {MAX_SECONDS:g} s"
        )
    if not waveform.isfinite().all():
        raise ValueError("a recording with NaN or infinite samples")
    return waveform.float()
