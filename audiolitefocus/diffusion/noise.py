"""Where the noise comes from: a stream for every clip, so that none depends on its batch."""

import secrets
from collections.abc import Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from audiolitefocus.audio.length import ClipLength
from audiolitefocus.runtime import as_finite
from audiolitefocus.validation import shown


class ClipNoise:
    """Gaussian noise for a batch of clips, each from a stream of its own.

    Initial latents come from the caller's generators, clip after clip: what diffusers draws from
    the same generators. Fresh noise comes from one more generator a clip, seeded from a copy of the
    caller's state. The global random state is neither read nor changed.

    Args:
        generator: one for all clips, one for each, or None for an unpredictable seed.
        clips: their number.

    Raises:
        ValueError: a list of another length than `clips`, or of anything but generators.
    """

    def __init__(self, generator: torch.Generator | Sequence[torch.Generator] | None, clips: int):
        # One generator for all is drawn from clip after clip, as diffusers draws a batch.
        if generator is None:
            generator = torch.Generator().manual_seed(secrets.randbits(63))
        streams = [generator] * clips if isinstance(generator, torch.Generator) else generator
        if not isinstance(streams, (list, tuple)) or not all(
            isinstance(stream, torch.Generator) for stream in streams
        ):
            raise ValueError(
                f"generator {shown(generator)}: must be a torch.Generator, or one for each clip; "
                f"give a number as seed"
            )
        streams = list(streams)
        if len(streams) != clips:
            raise ValueError(f"{len(streams)} generators for {clips} clips: give one for each")
        self.initial_streams = streams
        self.seeds = _peek_seeds(streams)
        self.fresh_streams = [torch.Generator().manual_seed(seed) for seed in self.seeds]

    def __getitem__(self, clips: slice) -> "ClipNoise":
        """The fresh noise of some of the clips, from its beginning."""
        part = copy(self)
        part.initial_streams, part.seeds = self.initial_streams[clips], self.seeds[clips]
        part.fresh_streams = [torch.Generator().manual_seed(seed) for seed in part.seeds]
        return part

    def initial(self, shape: Sequence[int]) -> Tensor:
        """(clips, *shape) on the CPU, float32."""
        return _normal(self.initial_streams, shape)

    def fresh(self, shape: Sequence[int]) -> Tensor:
        """(clips, *shape) on the CPU, float32, new at every call."""
        return _normal(self.fresh_streams, shape)


def seeded_streams(
    generator: torch.Generator | Sequence[torch.Generator] | None, seed: int | None
) -> torch.Generator | Sequence[torch.Generator] | None:
    """The caller's generators, or one made from the seed. Raises ValueError for both."""
    if generator is not None and seed is not None:
        raise ValueError("give either seed or generator")
    return generator if seed is None else torch.Generator().manual_seed(seed)


def initial_latents(
    given: Tensor | np.ndarray | None,
    noise: ClipNoise,
    clips: int,
    length: ClipLength,
    channels: int,
) -> Tensor:
    """Fresh noise (clips, channels, t, rows), or the caller's.

    Raises:
        ValueError: given latents that are not finite, or do not fit the batch and the length.
    """
    if given is None:
        return noise.initial((channels, length.latent_frames, length.latent_rows))
    given = as_finite("latents", given)
    least, frames = length.least_latent_frames, given.shape[2] if given.ndim == 4 else 0
    if tuple(given.shape) != (clips, channels, max(frames, least), length.latent_rows):
        raise ValueError(
            f"latents {tuple(given.shape)}: {length.seconds} s for {clips} clips need "
            f"({clips}, {channels}, {least} or more, {length.latent_rows})"
        )
    return given


def _normal(streams: list[torch.Generator], shape: Sequence[int]) -> Tensor:
    # Each on its generator's device, whose numbers differ from the CPU's.
    drawn = [
        torch.randn((1, *shape), generator=g, device=g.device, dtype=torch.float32) for g in streams
    ]
    return torch.cat([noise.cpu() for noise in drawn])


def _peek_seeds(streams: list[torch.Generator]) -> list[int]:
    """A seed for each clip from its generator's state, which stays; all of them different."""
    copies = {id(stream): stream.clone_state() for stream in streams}
    return [
        int(torch.randint(2**62, (), generator=copies[id(stream)], device=stream.device))
        for stream in streams
    ]
