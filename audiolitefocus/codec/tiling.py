"""Long clips through the autoencoder in tiles, joined by a crossfade.

The autoencoder was trained on clips of one length, whose statistics its group norms and its
attention expect: a tile has that length and statistics of its own.

Measured against whole decoding, in nats of log-mel where tiles overlap / elsewhere, with tiles of
10.24 s. The autoencoder's own error on the demo is 0.20. Overlaps of less than 1.28 s are shorter
than the context of audioldm2's convolutions, and can be seen.

| overlap of latent frames   |     1      |     8      |     16     |     32     |     64     |
| 12 sounds of the demo      | .265/.013  | .015/.013  | .010/.012  | .009/.012  | .009/.012  |
| audioldm2, random weights  | .223/.010  | .036/.007  | .013/.005  | .005/.005  |            |

Half the tile gives .013/.016 with 32 frames (demo), twice the tile .006/.007. Of the demo's
waveforms, levels in 0.1 s differ by 0.09 dB at seams, by 0.11 dB elsewhere.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

DECODES = ("auto", "whole", "tiled")
TILE_FRAMES = 256  # latent frames of 0.04 s: 10.24 s
OVERLAP_FRAMES = 32  # that neighbours share at least: 1.28 s


def is_tiled(decode: str, frames: int) -> bool:
    """True if a clip of so many latent frames is taken in tiles: for "auto", longer than two.

    Raises:
        ValueError: `decode` is none of `DECODES`.
    """
    if decode not in DECODES:
        raise ValueError(f"decode {decode!r}: must be one of {', '.join(DECODES)}")
    return decode == "tiled" or (decode == "auto" and frames > 2 * TILE_FRAMES)


def tiles(frames: int) -> list[tuple[int, int]]:
    """First and last frame (exclusive) of tiles of equal length, evenly spread over a clip."""
    if frames <= TILE_FRAMES:
        return [(0, frames)]
    count = math.ceil((frames - OVERLAP_FRAMES) / (TILE_FRAMES - OVERLAP_FRAMES))
    starts = (round(i * (frames - TILE_FRAMES) / (count - 1)) for i in range(count))
    return [(start, start + TILE_FRAMES) for start in starts]


def in_tiles(
    run: Callable[[int, int], Tensor], frames: int, on_tile: Callable[[int, int], object]
) -> Iterator[Tensor]:
    """Yield consecutive blocks (b, n, ...) of what `run` makes of a clip.

    Args:
        run: makes (b, n, ...) of latent frames start to stop, n a multiple of their number.
        frames: latent frames of the clip.
        on_tile: called as on_tile(done, total) after each tile.
    """
    spans, held = tiles(frames), None
    for index, (start, stop) in enumerate(spans):
        tile = run(start, stop)
        # the beginning fades in over the end of the tile before
        if held is not None:
            shared = held.shape[1]
            share = (torch.arange(shared, device=tile.device) + 0.5) / shared
            share = share.to(tile).view(-1, *[1] * (tile.ndim - 2))
            tile = torch.cat([held.lerp(tile[:, :shared], share), tile[:, shared:]], dim=1)
        # all is ready but what the next tile shares
        following = spans[index + 1][0] if index + 1 < len(spans) else stop
        ready = (following - start) * (tile.shape[1] // (stop - start))
        on_tile(index + 1, len(spans))
        yield tile[:, :ready]
        held = tile[:, ready:]
