"""What a call of the pipeline returns."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from audiolitefocus.attention.settings import Attention
from audiolitefocus.audio.files import write_sound
from audiolitefocus.display import clips_html
from audiolitefocus.parallel.settings import Parallel
from audiolitefocus.runtime import clips_text


@dataclass(frozen=True, repr=False)
class AudioOutput:
    """Clips that a call has made; those of one prompt stand together, best first.

    Attributes:
        audios: float32 (n, samples) in [-1, 1], numpy or torch; or latents (n, 8, t, 16); or for
            each clip consecutive blocks (samples,), decoded when they are asked for.
        sampling_rate: of `audios`, in Hz.
        scores: CLAP similarity of every clip to its prompt, (n,), where candidates were ranked.
        attention: settings that "auto" or their text stood for, or "dense".
        parallel: the strategy for several devices that "auto" or its text stood for, or "off".
    """

    audios: np.ndarray | Tensor | Sequence[Iterator[Tensor]]
    sampling_rate: int
    scores: Tensor | None = None
    attention: Attention = "dense"
    parallel: Parallel = "off"

    @property
    def is_latent(self) -> bool:
        """True if `audios` are latents, not waveforms or streams of them."""
        return isinstance(self.audios, (np.ndarray, Tensor)) and self.audios.ndim != 2

    def __repr__(self) -> str:
        return f"AudioOutput({self._summary()})"

    def _repr_html_(self) -> str:
        """For notebooks: a player and a spectrogram of each clip; of latents and streams a line."""
        if self.is_latent or not isinstance(self.audios, (np.ndarray, Tensor)):
            return f"<p>{self._summary()}</p>"
        seconds = self.audios.shape[1] / self.sampling_rate
        scores = [] if self.scores is None else self.scores.tolist()
        captions = [f"{seconds:g} s, CLAP {score:.3f}" for score in scores]
        return clips_html(
            np.asarray(self.audios),
            self.sampling_rate,
            captions or [f"{seconds:g} s"] * len(self.audios),
        )

    def _summary(self) -> str:
        """What the output is, in words."""
        count = len(self.audios)
        if not isinstance(self.audios, (np.ndarray, Tensor)):
            streams = "1 stream" if count == 1 else f"{count} streams"
            return (
                f"{streams} of {self.sampling_rate} Hz, decoded while they are read, once; save "
                f"writes them"
            )
        if self.is_latent:
            return (
                f"latents {tuple(self.audios.shape)}; the pipeline's decode makes waveforms of them"
            )
        seconds = self.audios.shape[1] / self.sampling_rate
        return f"{clips_text(count)} of {seconds:g} s, {self.sampling_rate} Hz"

    def save(self, path: str | os.PathLike, *, bits: int | None = None) -> list[Path]:
        """Write the clips as sound files: `path`, or NAME-1, NAME-2, ... where there are several.

        The ending decides: .wav, .flac, .ogg (Vorbis), .opus or .mp3. Files appear whole or not at
        all, and replace what is there.

        Args:
            bits: a sample: 16, the default, or 24 in .wav and .flac, or 32, floating point, in
                .wav.

        Raises:
            ValueError: another ending, bits or a rate that it does not have, no such folder, or
                latents.
        """
        if self.is_latent:
            raise ValueError("latents are no sound: decode them first, or ask for another output")
        path, count = Path(path), len(self.audios)
        names = (
            [path]
            if count == 1
            else [path.with_stem(f"{path.stem}-{number}") for number in range(1, count + 1)]
        )
        return [
            write_sound(name, audio, self.sampling_rate, bits=bits)
            for name, audio in zip(names, self.audios, strict=True)
        ]
