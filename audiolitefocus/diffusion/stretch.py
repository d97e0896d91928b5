"""Evaluating a stretch of frames: what is kept of the others in a full evaluation, and used after.

If nothing has changed since, the results are the full evaluation's. Convolutions take their
neighbour frames from what is kept, as SIGE's do (Li et al., NeurIPS 2022).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from audiolitefocus.attention.modules import SelfAttention
from audiolitefocus.attention.plan import Attend
from audiolitefocus.models.frames import Frames
from audiolitefocus.models.layers import Conv2d

# Of every norm, convolution and self-attention what it sees of the other frames; batch first.
Kept: TypeAlias = dict[nn.Module, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Stretch:
    """Frames start to stop, which are computed in every step: first to last change, and the others
    are their margin.
    """

    start: int
    stop: int
    first: int
    last: int

    def halved(self) -> "Stretch":
        """One level down, as strided convolutions round."""
        return Stretch(self.start // 2, -(-self.stop // 2), self.first // 2, -(-self.last // 2))

    def cut(self, x: Tensor, axis: int = 3) -> tuple[Tensor, Tensor, Tensor]:
        """Frames before, in and after the stretch, as views."""
        sizes = self.start, self.stop - self.start, x.shape[axis] - self.stop
        before, own, after = x.split(sizes, axis)
        return before, own, after

    def margin_sums(self, own: Tensor, groups: int) -> Tensor:
        """`sums` of the margin, of a map of the stretch."""
        before, after = own[..., : self.first - self.start], own[..., self.last - self.start :]
        return sums(before, groups) + sums(after, groups)


class KeepingFrames(Frames):
    """All frames, of which is kept what an evaluation of the stretch needs of the others.

    Args:
        stretches: by the length of a feature map.
    """

    def __init__(self, stretches: Mapping[int, Stretch]):
        self.stretches, self.kept = stretches, Kept()

    def norm(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        stretch, groups = self.stretches[x.shape[-1]], norm.num_groups
        before, own, after = stretch.cut(x)
        others = sums(before, groups) + sums(after, groups)
        self.kept[norm] = others, stretch.margin_sums(own, groups)
        return norm(x)

    def conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        self.kept[conv] = self._neighbours(x)
        return conv(x)

    def upsample(self, upsample: nn.Module, x: Tensor, size: tuple[int, ...]) -> Tensor:
        self.kept[upsample] = self._neighbours(x)
        return upsample(x, size)

    def attention(self, module: SelfAttention, attend: Attend) -> Attend:
        def attend_and_keep(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            stretch = self.stretches[k.shape[2]]
            self.kept[module] = *stretch.cut(k, 2)[::2], *stretch.cut(v, 2)[::2]
            return attend(q, k, v)

        return attend_and_keep

    def _neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The one frame before and the one after the stretch: none at the ends of the clip."""
        before, _, after = self.stretches[x.shape[-1]].cut(x)
        return before[..., -1:].clone(), after[..., :1].clone()


class StretchFrames(Frames):
    """The frames of the stretch alone, beside what has been kept of the others.

    Args:
        stretches: by the length of a feature map of the stretch.
    """

    def __init__(self, stretches: Mapping[int, Stretch], kept: Kept):
        self.stretches, self.kept = stretches, kept

    def norm(self, norm: nn.GroupNorm, x: Tensor) -> Tensor:
        """Group norm (Wu and He 2018) by mean and variance of all frames.

        They change with the level of noise, for which DistriFusion (Li et al., CVPR 2024) corrects
        them; here by the margin, whose frames stay as the others do.
        """
        others, earlier = self.kept[norm]
        margin = self.stretches[x.shape[-1]].margin_sums(x, norm.num_groups)
        others = changed_alike(others, earlier, margin, norm.eps)
        mean, variance = moments(sums(x, norm.num_groups) + others)  # b g
        deviation = (variance + norm.eps).sqrt()
        size = x.shape[1] // norm.num_groups
        mean, deviation = (m.repeat_interleave(size, dim=1) for m in (mean, deviation))  # b c
        scale = norm.weight / deviation
        shift = norm.bias - mean * scale
        return (x * scale[..., None, None]).add_(shift[..., None, None]).to(x.dtype)

    def conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        assert isinstance(conv, Conv2d)
        zeros = torch.zeros_like(x[..., :1])
        before, after = (side if side.shape[-1] else zeros for side in self.kept[conv])
        return conv(torch.cat([before, x, after], dim=-1), padding=(1, 0))

    def upsample(self, upsample: nn.Module, x: Tensor, size: tuple[int, ...]) -> Tensor:
        before, after = self.kept[upsample]
        rows, length = size
        first, more = 2 * before.shape[-1], 2 * after.shape[-1]
        wider = upsample(torch.cat([before, x, after], dim=-1), (rows, first + length + more))
        return wider[..., first : first + length]

    def attention(self, module: SelfAttention, attend: Attend) -> Attend:
        k_before, k_after, v_before, v_after = self.kept[module]

        def attend_to_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k = torch.cat([k_before, k, k_after], dim=2)
            return attend(q, k, torch.cat([v_before, v, v_after], dim=2))

        return attend_to_all


def sums(x: Tensor, groups: int) -> Tensor:
    """(b, c, f, t) -> (b, 3, groups): how many numbers, their sum, and that of their squares.

    In float32 or the wider dtype of x.
    """
    # dense, as CPUs take long to sum up what is not
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = x.contiguous(memory_format=torch.channels_last)
    total, squares = x.sum((2, 3)), x.square().sum((2, 3))  # b c
    count = torch.full_like(total, x.shape[2] * x.shape[3])
    return torch.stack([count, total, squares], dim=1).unflatten(2, (groups, -1)).sum(3)


def moments(sums: Tensor) -> tuple[Tensor, Tensor]:
    """(b, 3, groups) of `sums` -> mean and variance (b, groups), 0 of no numbers."""
    count, total, squares = sums.unbind(1)
    mean, square = total / count.clamp(min=1), squares / count.clamp(min=1)
    return mean, (square - mean.square()).clamp(min=0)


def changed_alike(others: Tensor, earlier: Tensor, margin: Tensor, eps: float) -> Tensor:
    """Sums of the other frames, taken to have changed by x -> a x + b as the margin has.

    Args:
        others, earlier: (b, 3, groups), `sums` of other frames and of the margin in a full step.
        margin: of the margin now.
        eps: added to variances.
    """
    (mean, variance), (mean_was, was), (mean_is, now) = map(moments, (others, earlier, margin))
    gain = (now + eps) / (was + eps)
    mean, variance = mean_is + (mean - mean_was) * gain.sqrt(), variance * gain
    count = others[:, 0]
    return torch.stack([count, count * mean, count * (variance + mean.square())], dim=1)


def stretch_around(changed: Tensor, multiple: int, margin: int) -> Stretch | None:
    """The frames to compute; None if they are all.

    Args:
        changed: (t,) bool, on the CPU.
        multiple: of frames, on which the stretch begins and ends so that every level halves it
            exactly; or it ends with the clip.
        margin: frames beside the changed ones, at least.
    """
    frames = changed.nonzero().flatten().tolist() or [0]
    first, last = frames[0], frames[-1] + 1
    start = max(0, first - margin) // multiple * multiple
    stop = min(len(changed), -(-(last + margin) // multiple) * multiple)
    whole = (start, stop) == (0, len(changed))
    return None if whole else Stretch(start, stop, first, last)
