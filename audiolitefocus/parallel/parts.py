"""The UNet cut into parts of nearly equal operations, one after another."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from torch import nn

from audiolitefocus.attention.modules import CrossAttention, SelfAttention
from audiolitefocus.attention.settings import Attention, TokenMerging
from audiolitefocus.models.layers import Conv2d, ResnetBlock
from audiolitefocus.models.unet import UNet

T5_TOKENS = 16  # of a prompt, about


def cut(costs: Sequence[float], parts: int) -> list[range]:
    """Ranges of consecutive pieces, of which the most expensive one costs as little as possible.

    Raises:
        ValueError: more parts than pieces.
    """
    if parts > len(costs):
        raise ValueError(f"{parts} parts: the UNet has only {len(costs)} pieces")
    sums = [0.0, *accumulate(costs)]

    @cache
    def best(start: int, left: int) -> tuple[float, tuple[int, ...]]:
        """The largest cost of the pieces from `start` on in `left` parts, and their ends."""
        if left == 1:
            return sums[-1] - sums[start], (len(costs),)
        choices = []
        for end in range(start + 1, len(costs) - left + 2):
            largest, ends = best(end, left - 1)
            choices.append((max(largest, sums[end] - sums[start]), (end, *ends)))
        return min(choices)

    ends = best(0, parts)[1]
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def piece_operations(
    unet: UNet, frames: int, rows: int, attention: Attention, branches: int
) -> list[float]:
    """Multiplications in each of `UNet.pieces`, of one clip with latents of frames x rows.

    Those of convolutions, linear layers and attention; norms, activations and the search of Token
    Merging do not count.
    """
    places, constant = _places(unet, rows, frames), _constant(unet)
    counts, entries = [], 1
    for piece in unet.pieces():
        place, count = places[piece], 0.0
        for module in piece.modules():
            # from the first attention to the text on, every branch of guidance is computed
            if isinstance(module, CrossAttention):
                entries = branches
            if module not in constant:
                count += entries * _operations(module, place, attention)
        counts.append(count)
    return counts


@dataclass(frozen=True)
class Place:
    """Where a piece works: its level, that level's rows and frames, and the pixels it puts out."""

    level: int
    rows: int
    frames: int
    pixels: int


def _places(unet: UNet, rows: int, frames: int) -> dict[nn.Module, Place]:
    """Of every piece."""
    grids = [(rows, frames)]
    for _ in unet.down[1:]:
        grids.append((-(-grids[-1][0] // 2), -(-grids[-1][1] // 2)))  # as a strided convolution

    def at(level: int, output: int) -> Place:
        return Place(level, *grids[level], grids[output][0] * grids[output][1])

    deepest = len(grids) - 1
    found = {unet.conv_in: at(0, 0), unet.conv_out: at(0, 0), unet.middle: at(deepest, deepest)}
    for level, (down, up) in enumerate(zip(unet.down, reversed(unet.up), strict=True)):
        found |= {stage: at(level, level) for stage in [*down.stages, *up.stages]}
        if level < deepest:
            found[down.resample] = at(level, level + 1)
        if level > 0:
            found[up.resample] = at(level, level - 1)
    return found


def _constant(unet: UNet) -> set[nn.Module]:
    """Linear layers that run once a call, or of which a step needs few products."""
    found: set[nn.Module] = set()
    for module in unet.modules():
        if isinstance(module, CrossAttention):
            found |= {module.to_k, module.to_v}
        elif isinstance(module, ResnetBlock):
            found.add(module.time_emb_proj)
    return found


def _operations(module: nn.Module, place: Place, attention: Attention) -> float:
    """Of a module itself, without those in it, in one branch."""
    tokens = place.rows * place.frames
    if isinstance(module, CrossAttention):
        return 2 * module.to_q.weight.shape[0] * tokens * T5_TOKENS
    if isinstance(module, SelfAttention):
        return 2 * module.to_q.weight.shape[0] * _scores(attention, place)
    if isinstance(module, Conv2d):
        return module.weight.numel() * place.pixels
    return module.weight.numel() * tokens if isinstance(module, nn.Linear) else 0.0


def _scores(attention: Attention, place: Place) -> float:
    """Pairs of a query and a key of one self-attention."""
    tokens = place.rows * place.frames
    if isinstance(attention, str) or place.level not in attention.levels:
        return tokens * tokens
    if isinstance(attention, TokenMerging):
        return (tokens * (1 - attention.ratio)) ** 2
    sampled = attention.sparse_ratio * tokens if attention.cross_frequency else 0.0
    if not attention.same_frequency:
        return tokens * sampled
    # of its own row a query has all keys, and sampled ones beside them only as duplicates
    again = 0.0 if attention.uniform or attention.duplicates else sampled / place.rows
    return tokens * (place.frames + sampled - again)
