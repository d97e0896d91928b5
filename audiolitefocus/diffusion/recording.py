"""Recordings to start from: varied as a whole, inpainted in a span, or continued.

The denoiser starts from the recording's latents, or keeps restoring them where the sound stays
(`inpaint`). In the end the recording itself takes the place of its decoded latents, sample for
sample.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from audiolitefocus.audio.length import MIN_SECONDS, seconds_of
from audiolitefocus.audio.samples import load_recording
from audiolitefocus.codec.decode import encode_mel
from audiolitefocus.codec.mel import log_mel
from audiolitefocus.config import VocoderConfig
from audiolitefocus.diffusion.inpaint import KnownLatents
from audiolitefocus.models.vae import VAE
from audiolitefocus.options import GenerationOptions, OptionError

PEAK = 0.5  # of what the autoencoder was trained on: the original makes every clip this loud
SILENCE = 1e-3  # recordings with a lower peak have no level to go by
FADE_SECONDS = 0.02  # from the recording into what is generated, inside of the span
MIRRORED_FRAMES = 24  # latent frames (0.96 s), more than the encoder's convolutions see


@dataclass(frozen=True, eq=False)
class Recording:
    """A recording, and which part of the clip is generated.

    Attributes:
        waveform: (n,) float32 at `rate`.
        samples: of the clip, n or, where it is continued, more.
        span: samples start to stop of the clip that are generated; the others stay as they are.
    """

    waveform: Tensor
    rate: int
    samples: int
    span: tuple[int, int]

    @classmethod
    def load(cls, options: GenerationOptions, rate: int) -> "Recording | None":
        """The recording that the options name, at `rate`; None without one.

        Raises:
            ValueError: a recording that `load_recording` refuses, or that the options do not fit.
        """
        if options.recording is None:
            return None
        waveform = load_recording(options.recording, rate)
        seconds = options.audio_length_in_s
        span = changed_span(len(waveform), rate, options.inpaint, seconds)
        return cls(waveform, rate, max(len(waveform), span[1]), span)

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return seconds_of(self.samples, self.rate)

    @property
    def keeps_part(self) -> bool:
        """True if part of the recording is kept unchanged."""
        return self.span != (0, self.samples)

    @property
    def gain(self) -> float:
        """The factor that brings it to the level of the autoencoder's training data."""
        peak = float((self.waveform - self.waveform.mean()).abs().max())
        return PEAK / peak if peak > SILENCE else 1.0

    def encode(
        self, vae: VAE, config: VocoderConfig, frames: int, decode: str = "auto"
    ) -> KnownLatents:
        """Its latents, `frames` of them; `decode` as in `GenerationOptions`.

        The recording is followed by its own mirror image for about a second, so that the
        autoencoder sees no cliff; the rest, which is generated, is zero.
        """
        # 1. The recording and its mirror image, in whole latent frames
        down, per_frame = vae.config.downsampling, vae.config.downsampling * config.hop_length
        known = min(frames, math.ceil(len(self.waveform) / per_frame) + MIRRORED_FRAMES)
        waveform = (self._extended(known * per_frame) - self.waveform.mean()) * self.gain

        # 2. Log-mel -> latents
        mel = log_mel(waveform[None], config)[:, : known * down]
        weight = next(vae.parameters())
        latents = encode_mel(vae, mel.to(weight), decode=decode) * vae.config.scale_factor

        # 3. Which frames are generated
        latents = F.pad(latents.float(), (0, 0, 0, frames - known))
        if not self.keeps_part:
            return KnownLatents(latents)
        start, stop = self.span
        changed = torch.zeros(frames, dtype=torch.bool)
        changed[start // per_frame : None if stop == self.samples else -(-stop // per_frame)] = True
        return KnownLatents(latents, changed)

    def splice(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Consecutive blocks (b, n) of clips -> the same with the recording where it is kept.

        The generated span is brought to the recording's level, and fades in at its ends.
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
        """How much of each sample is generated: 1 in the span, after half a cosine at its ends."""
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


def changed_span(
    recorded: int, rate: int, inpaint: tuple[float, float] | None, seconds: float | None
) -> tuple[int, int]:
    """The samples of the clip that are generated, start to stop.

    Args:
        recorded: samples of the recording at `rate`.
        inpaint: the span in seconds; None: all of the recording, or what follows it.
        seconds: of the clip that continues the recording; None if it is not continued.

    Raises:
        ValueError: a recording that is too short for this.
    """
    there = f"{recorded / rate:.2f} s"
    if recorded < MIN_SECONDS * rate:
        raise ValueError(f"a recording of {there}: must have {MIN_SECONDS:g} s at least")
    if seconds is not None:
        if int(seconds * rate) <= recorded:
            raise OptionError(
                "{audio_length_in_s} {0:g}: must be longer than the recording, {1}", seconds, there
            )
        return recorded, int(seconds * rate)
    if inpaint is None:
        return 0, recorded
    start, stop = (round(second * rate) for second in inpaint)
    if stop > recorded:
        raise ValueError(f"inpaint up to {inpaint[1]:g} s: the recording has only {there}")
    if start == stop:
        raise ValueError(f"inpaint from {inpaint[0]:g} to {inpaint[1]:g} s: less than one sample")
    return start, stop
