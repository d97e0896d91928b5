"""Long clips in tiles of the trained length, with a crossfade where they overlap.

Each tile has group norms and attention of its own, as in training. The trained length is 256 latent
frames of 0.04 s.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

TILE_FRAMES = 256  # latent frames: 10.24 s
OVERLAP_FRAMES = 32  # at least, between two tiles: 1.28 s

OnBlock = Callable[[int, int], object]  # called with how many tiles of how many are done


def use_tiles(decode: str, frames: int) -> bool:
    """True if a clip of so many latent frames is processed in tiles: "auto" beyond two of them."""
    if decode == "auto":
        return frames > 2 * TILE_FRAMES
    return decode == "tiled" and frames > TILE_FRAMES


def tiles(frames: int) -> list[tuple[int, int]]:
    """Start and stop of equally long tiles that cover so many latent frames, evenly spaced."""
    step = TILE_FRAMES - OVERLAP_FRAMES
    count = max(2, -(-(frames - OVERLAP_FRAMES) // step))
    starts = [round(i * (frames - TILE_FRAMES) / (count - 1)) for i in range(count)]
    return [(start, start + TILE_FRAMES) for start in starts]


def in_tiles(
    function: Callable[[int, int], Tensor], frames: int, on_block: OnBlock | None = None
) -> Iterator[Tensor]:
    """Consecutive blocks of what `function` makes of a clip, tile by tile.

    Args:
        function: latent frames start to stop -> (b, n, m), n a multiple or a part of their number.
        frames: of the clip, more than a tile has.
        on_block: called after each tile.
    """
    spans, tail = tiles(frames), None
    for number, (start, stop) in enumerate(spans, 1):
        tile = function(start, stop)
        if tail is not None:  # fade from the end of the last tile into the start of this one
            shared = tail.shape[1]
            ramp = (torch.arange(shared, device=tile.device) + 0.5)[:, None] / shared
            faded = tail.lerp(tile[:, :shared], ramp.to(tile.dtype))
            tile = torch.cat([faded, tile[:, shared:]], dim=1)
        if on_block is not None:
            on_block(number, len(spans))
        shared_with_next = stop - spans[number][0] if number < len(spans) else 0
        whole = tile.shape[1] - shared_with_next * tile.shape[1] // (stop - start)
        yield tile[:, :whole]
        tail = tile[:, whole:]
