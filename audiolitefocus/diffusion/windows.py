"""Very long clips in windows, so that the memory of denoising does not grow with the clip.

Dai et al., "SaFa", ICCV 2025. Windows of one length overlap; in every step each is denoised by
itself, and of an overlap's frames one window gives the even ones, the other the odd ones. Averages,
which are the usual way, would take noise out of the overlap and with it high frequencies.

The paper swaps latents after a step. Windows then agree in their overlap, and a sampler's step is a
sum of latents and predictions frame by frame, so that taking each frame's prediction from one of
its windows is the same, for any sampler and with one long tensor of latents.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audiolitefocus.diffusion.samplers import Predict

OVERLAP = 1 / 4  # of a window, at least; shared with the next
REFERENCE = 0.3  # of the steps, in which the first window lends its frames to the others
TOGETHER = 4  # windows in one evaluation, times clips
LONGEST = 8  # trained lengths that "auto" denoises at once: as far as that has been measured


def window_seconds(choice: str | float, seconds: float, trained_seconds: float) -> float | None:
    """The length of the windows for a clip of `seconds`, or None to denoise it at once."""
    if choice == "auto":
        choice = "off" if seconds <= LONGEST * trained_seconds else trained_seconds
    if isinstance(choice, str) or seconds <= choice:
        return None
    return choice


@dataclass(frozen=True)
class Layout:
    """Where windows lie in a clip, in latent frames.

    Attributes:
        frames: of the clip.
        length: of every window, less than the clip's.
    """

    frames: int
    length: int

    @property
    def starts(self) -> list[int]:
        """First frames, evenly spread: the last window ends with the clip."""
        overlap = math.ceil(OVERLAP * self.length)
        gaps = math.ceil((self.frames - self.length) / (self.length - overlap))
        return [round(i * (self.frames - self.length) / gaps) for i in range(gaps + 1)]

    def owners(self) -> Tensor:
        """(frames,) the window that gives each frame: in an overlap the left even, right odd."""
        starts, frame = torch.tensor(self.starts), torch.arange(self.frames)
        right = torch.searchsorted(starts, frame, right=True) - 1
        left = torch.searchsorted(starts + self.length, frame, right=True)
        return torch.where(frame % 2 == 0, left, right)

    def lenders(self) -> Tensor:
        """(frames,) the frame that each is taken from while the first window is the reference.

        Of what lies in one window alone, every other frame: the first window's at the same place.
        """
        starts, frame = torch.tensor(self.starts), torch.arange(self.frames)
        right = torch.searchsorted(starts, frame, right=True) - 1
        left = torch.searchsorted(starts + self.length, frame, right=True)
        place = frame - starts[right]
        return torch.where((left == right) & (place % 2 == 1), place, frame)


class WindowedNoise:
    """Called with the latents of a long clip and the number of a step: the noise in them.

    Args:
        layout: of the windows.
        make: called with a number of windows, and that of their group: predicts the noise in as
            many of every clip, those of one clip together. What its steps keep must be its own.
        clips: their number.
        referring: in so many steps the first window lends its frames to the others.
        device: of the latents.
    """

    def __init__(
        self,
        layout: Layout,
        make: Callable[[int, int], Predict],
        clips: int,
        referring: int,
        device: torch.device,
    ):
        self.length, self.clips, self.referring = layout.length, clips, referring
        groups = _groups(layout.starts, clips)
        self.groups = [(starts, make(len(starts), n)) for n, starts in enumerate(groups)]
        self.owners, self.lenders = layout.owners().to(device), layout.lenders().to(device)

    def __call__(self, latents: Tensor, step: int) -> Tensor:
        """(clips, 8, t, 16) -> as many, float32."""
        noise, window = torch.empty_like(latents), 0
        for starts, predict in self.groups:
            cut = torch.stack([latents[:, :, start : start + self.length] for start in starts], 1)
            predicted = predict(cut.flatten(0, 1), step).unflatten(0, (self.clips, -1))
            for start, part in zip(starts, predicted.unbind(1), strict=True):
                covered = slice(start, start + self.length)
                owned = (self.owners[covered] == window)[:, None]
                noise[:, :, covered] = torch.where(owned, part, noise[:, :, covered])
                window += 1
        return self.share(noise, step)

    def share(self, x: Tensor, step: int) -> Tensor:
        """Noise (clips, 8, t, 16), drawn or predicted, with the frames that the first window lends.

        Where all noise up to a step has them, latents have them too.
        """
        return x[:, :, self.lenders] if step < self.referring else x


def share_nothing(x: Tensor, step: int) -> Tensor:
    """The `share` of clips that are denoised at once."""
    return x


def _groups(starts: Sequence[int], clips: int) -> list[Sequence[int]]:
    """Windows that are evaluated together: of at most two sizes, as few as can be."""
    count = math.ceil(len(starts) / max(1, TOGETHER // clips))
    bounds = [round(i * len(starts) / count) for i in range(count + 1)]
    return [starts[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
