"""The autoencoder over clips that are too long for it at once: window after window, and exact.

Convolutions see a few frames to either side: a window is given those too, and what they become is
cut off. Two kinds of layers see the whole clip. Each group norm has its statistics summed over all
windows, which then share them; what a norm is given depends on those before it, so that each takes
a pass over the windows. The attention in the middle has its queries from one window and its keys
from all: in between, feature maps of the whole clip are held at the latents' resolution, in files,
which take no more memory than the system has to spare.
"""

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from audiolitefocus.config import VAEConfig
from audiolitefocus.models.vae import Decoder, Encoder, MiddleAttention

WINDOW_FRAMES = 256  # latent frames of 0.04 s: 10.24 s

Run = Callable[[int, int], Tensor]  # latent frames low to high -> their feature map (b, c, f, n)


def reach(config: VAEConfig) -> int:
    """How many latent frames the convolutions of a head, a block or a tail see to either side, at
    most: every level halves what those of one see.
    """
    return 2 * (2 * config.resnets + 3)


@dataclass(frozen=True)
class Window:
    """Latent frames `start` to `stop` of a clip, and `low` to `high` with what they depend on."""

    start: int
    stop: int
    low: int
    high: int

    def cut(self, x: Tensor) -> Tensor:
        """(b, c, f, n) of `low` to `high`, at any resolution in time -> of `start` to `stop`."""
        scale = x.shape[-1] // (self.high - self.low)
        return x[..., (self.start - self.low) * scale : (self.stop - self.low) * scale]


def windows(frames: int, halo: int) -> list[Window]:
    """Windows of at most WINDOW_FRAMES that cover a clip, with at least `halo` around each but at
    the ends. All are evaluated at the same width, so that one can have the memory of another.
    """
    step = math.ceil(frames / math.ceil(frames / WINDOW_FRAMES))
    width = min(frames, step + 2 * halo)
    found = []
    for start in range(0, frames, step):
        low = max(0, min(start - halo, frames - width))
        found.append(Window(start, min(start + step, frames), low, low + width))
    return found


def in_windows(
    half: Encoder | Decoder,
    inputs: Run,
    frames: int,
    halo: int,
    on_window: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[Tensor]:
    """Run one half of the autoencoder over a clip.

    Args:
        half: without hooks or compilation.
        inputs: gives what it needs for latent frames low to high.
        frames: latent frames of the clip.
        halo: `reach` of the autoencoder.
        on_window: is told how many of all evaluations of a window are done.

    Yields:
        The result in consecutive blocks (b, c, f, n).

    Raises:
        OSError: no room for the feature maps' files.
    """
    passes = Passes(half, windows(frames, halo), on_window)
    maps: list[Tensor] = []
    for window, found in passes.results(lambda low, high: half.head(inputs(low, high))):
        maps = maps or [in_file(found, frames) for _ in range(2)]
        maps[0][..., window.start : window.stop] = found
    x, spare = maps
    device = found.device
    for block in half.blocks:
        if isinstance(block, MiddleAttention):
            passes.attend(block, x, spare, device)
            continue
        for window, found in passes.results(_on(block, x, device)):
            spare[..., window.start : window.stop] = found
        x, spare = spare, x
    del spare
    for _, found in passes.results(_on(half.tail, x, device)):
        yield found


class Passes:
    """Passes of one half of the autoencoder over the windows of a clip."""

    def __init__(
        self,
        half: Encoder | Decoder,
        windows: list[Window],
        on_window: Callable[[int, int], object],
    ):
        self.windows, self.on_window, self.done = windows, on_window, 0
        self.norms = [module for module in half.modules() if isinstance(module, nn.GroupNorm)]
        self.moments: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}  # mean, variance: b groups
        # One to settle each norm, one for each of head, blocks and tail, one more to attend.
        self.total = (len(self.norms) + len(half.blocks) + 3) * len(windows)

    def results(self, run: Run) -> Iterator[tuple[Window, Tensor]]:
        """Every window, and what `run` makes of it once all norms on the way have been settled."""
        while True:
            sums: dict[nn.GroupNorm, Tensor] = {}
            for window in self.windows:
                try:
                    with self._norms(window, sums):
                        found = window.cut(run(window.low, window.high))
                except _Counted:
                    found = None
                self._count()
                if found is not None:
                    yield window, found
            if not sums:
                return
            for norm, (count, total, squares) in sums.items():
                mean = total / count
                self.moments[norm] = mean, (squares / count - mean.square()).clamp(min=0)

    def attend(
        self, attention: MiddleAttention, x: Tensor, spare: Tensor, device: torch.device
    ) -> None:
        """Change a clip's feature map as `attention` does."""
        for window, normed in self.results(_on(attention.norm, x, device)):
            spare[..., window.start : window.stop] = normed
        clip = spare.to(device)
        for window in self.windows:
            here = slice(window.start, window.stop)
            x[..., here] += attention.attend(clip[..., here], clip).to(x.device)
            self._count()

    def _count(self) -> None:
        self.done += 1
        self.on_window(self.done, self.total)

    @contextmanager
    def _norms(self, window: Window, sums: dict[nn.GroupNorm, Tensor]) -> Iterator[None]:
        """Inside, norms normalise by the statistics of the clip; the first without counts what it
        is given, and ends the evaluation.
        """

        def forward(norm: nn.GroupNorm, x: Tensor) -> Tensor:
            if norm not in self.moments:
                found = _sums(window.cut(x), norm.num_groups)
                # Summed in place: small tensors, one kept for each window, would lie between the
                # freed feature maps, whose room an allocator then cannot use again.
                sums[norm] = sums[norm].add_(found) if norm in sums else found
                raise _Counted
            return _normalise(norm, x, *self.moments[norm])

        try:
            for norm in self.norms:
                norm.forward = forward.__get__(norm)  # type: ignore[method-assign]
            yield
        finally:
            for norm in self.norms:
                norm.__dict__.pop("forward", None)


class _Counted(Exception):
    """A norm has counted a window, which need not be evaluated further."""


def _on(module: Callable[[Tensor], Tensor], x: Tensor, device: torch.device) -> Run:
    return lambda low, high: module(x[..., low:high].to(device))


def _sums(x: Tensor, groups: int) -> Tensor:
    """(b, c, f, n) -> count, sum and sum of squares, (3, b, groups)."""
    x = x.reshape(len(x), groups, -1)
    # Sums of many numbers want float64, which not every device has.
    variance, mean = (y.cpu().double() for y in torch.var_mean(x, -1, correction=0))
    count = torch.full_like(mean, x.shape[-1])
    return torch.stack([count, count * mean, count * (variance + mean.square())])


def _normalise(norm: nn.GroupNorm, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Statistics that are given make a group norm a batch norm, of b c channels."""
    size = x.shape[1] // norm.num_groups
    mean, variance = (y.to(x).repeat_interleave(size, 1).flatten() for y in (mean, variance))
    weight, bias = (y.repeat(len(x)) for y in (norm.weight, norm.bias))
    channels = rearrange(x, "b c f t -> 1 (b c) f t")
    out = F.batch_norm(channels, mean, variance, weight, bias, eps=norm.eps)
    return rearrange(out, "1 (b c) f t -> b c f t", b=len(x))


def check_room(config: VAEConfig, frames: int, rows: int) -> None:
    """Raise OSError now if there will be no room for the files of a clip."""
    size = 2 * config.channels[-1] * frames * rows * torch.float32.itemsize
    if os.name == "posix" and shutil.disk_usage(tempfile.gettempdir()).free < size:
        raise _no_room(size, "it is full")


def _no_room(size: int, reason: str | None) -> OSError:
    return OSError(
        f"no room for {size / 1e9:.2g} GB in {tempfile.gettempdir()} ({reason}): let TMPDIR name "
        f"another folder"
    )


def in_file(like: Tensor, frames: int) -> Tensor:
    """A feature map (b, c, f, frames), in channels_last memory, in a file that goes with it.

    Raises:
        OSError: there is no room for it.
    """
    batch, channels, rows, _ = like.shape
    shape = (batch, rows, frames, channels)
    if os.name != "posix":  # files that are in use cannot be removed
        return rearrange(torch.empty(shape, dtype=like.dtype), "b f t c -> b c f t")
    size = math.prod(shape)
    with tempfile.NamedTemporaryFile() as file:
        try:
            if hasattr(os, "posix_fallocate"):  # else a full disk would be noticed by a signal
                os.posix_fallocate(file.fileno(), 0, size * like.element_size())
        except OSError as error:
            raise _no_room(size * like.element_size(), error.strerror) from None
        flat = torch.from_file(file.name, shared=True, size=size, dtype=like.dtype)
    return rearrange(flat.view(shape), "b f t c -> b c f t")
