"""Frames of a recording that stay: steps take what others need of them from an earlier step.

dKV-Cache (Ma et al., NeurIPS 2025) keeps keys and values of tokens that are decoded, and computes
the others alone. Where a recording is continued or inpainted, the frames that stay are such tokens:
their latents are known in every step, and only their level of noise falls. A full evaluation keeps
what the UNet's operations that look beyond a frame see of them, and the evaluations after it
compute a stretch of frames around the changed ones. If nothing had changed since, these would be
the full evaluation's (as in SIGE, Li et al., NeurIPS 2022, whose convolutions have them too).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from audiolitefocus.attention.modules import SelfAttention
from audiolitefocus.attention.plan import Attend
from audiolitefocus.diffusion.network import Evaluate, Network, Run
from audiolitefocus.models.frames import Frames
from audiolitefocus.models.layers import Conv2d, StepInputs
from audiolitefocus.reuse.settings import full_steps

# Of every norm, convolution and self-attention what it sees of the held frames; batch first.
Kept: TypeAlias = dict[nn.Module, tuple[Tensor, ...]]

MARGIN = 16  # latent frames (0.64 s) beside the changed ones that are computed too
START = 1 / 5  # share of the steps that are taken in full at the beginning


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

        Moments change with the level of noise. Those of the others have changed by as much as the
        margin's, whose frames stay too: the correction of DistriFusion (Li et al., CVPR 2024), with
        its way out where a variance is none.
        """
        others, earlier = self.kept[norm]
        own = sums(x, norm.num_groups)
        margin = self.stretches[x.shape[-1]].margin_sums(x, norm.num_groups)
        change = (margin - earlier) / margin[:, :1].clamp(min=1)
        mean, variance = moments(own + others + others[:, :1] * change)  # b g
        variance = torch.where(variance > 0, variance, moments(own)[1])
        deviation = (variance.clamp(min=0) + norm.eps).sqrt()
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
    """(b, 3, groups) of `sums` -> mean and variance (b, groups)."""
    count, total, squares = sums.unbind(1)
    mean = total / count
    return mean, squares / count - mean.square()


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


def held_frames(network: Network, run: Run) -> "HeldFrames":
    """How the steps of a call evaluate a network."""
    options, known, stretch = run.options, run.known, None
    if options.refresh > 1 and known is not None and known.changed is not None:
        stretch = stretch_around(known.changed.cpu(), network.unet.config.time_multiple, MARGIN)
    # in the first step latents are nothing but noise, in held frames too
    full = full_steps(options.refresh, START, options.steps_taken, least=2)
    levels = len(network.unet.config.channels)
    return HeldFrames(
        network.evaluate, stretch, full, levels, run.clips, compiled=network.is_compiled
    )


class HeldFrames:
    """Evaluates a UNet step by step, in some steps for a stretch of frames alone.

    One call of `denoise` has one.

    Args:
        evaluate: `UNet.evaluate`, or a compiled form of it, which overwrites its results when it
            runs again.
        stretch: what every step computes; None: all frames.
        full: of every step, if it computes all frames. The first one has to.
        levels: of the UNet.
        clips: their number.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        stretch: Stretch | None,
        full: Sequence[bool],
        levels: int,
        clips: int,
        *,
        compiled: bool = False,
    ):
        self.evaluate_frames, self.stretch, self.full = evaluate, stretch, full
        self.levels, self.clips, self.compiled = levels, clips, compiled
        self.kept, self.noise = Kept(), torch.empty(0)

    def evaluate(self, latents: Tensor, inputs: StepInputs, step: int, branches: int) -> Tensor:
        """(clips, 8, t, 16) -> (branches * clips, 8, t, 16): the noise in step `step`.

        In held frames it may be that of an earlier step: their latents are put back anyway.
        """
        if self.stretch is None:
            return self.evaluate_frames(latents, inputs)
        self._adapt(branches * self.clips)
        if self.full[step] or not self.kept:
            return self._evaluate_all(latents, inputs, last=all(self.full[step + 1 : step + 2]))
        own = latents[:, :, self.stretch.start : self.stretch.stop]
        frames = StretchFrames(self._by_length(own.shape[2]), self.kept)
        noise = self.evaluate_frames(own, dataclasses.replace(inputs, frames=frames))
        before, _, after = self.stretch.cut(self.noise, 2)
        return torch.cat([before, noise, after], dim=2)

    def _evaluate_all(self, latents: Tensor, inputs: StepInputs, *, last: bool) -> Tensor:
        """A full evaluation; kept of it is what the next one needs, unless that is full too."""
        if last:
            return self.evaluate_frames(latents, inputs)
        self.kept = Kept()  # before as much is made again
        frames = KeepingFrames(self._by_length(latents.shape[2]))
        noise = self.evaluate_frames(latents, dataclasses.replace(inputs, frames=frames))
        self.kept, self.noise = frames.kept, noise
        if self.compiled:
            copies = {m: tuple(x.clone() for x in kept) for m, kept in frames.kept.items()}
            self.kept, self.noise = copies, noise.clone()
        return noise

    def _by_length(self, length: int) -> dict[int, Stretch]:
        """The stretch on every level, by the length of the level's feature maps."""
        stretch, found = self.stretch, {}
        for _ in range(self.levels):
            assert stretch is not None
            found[length] = stretch
            length, stretch = -(-length // 2), stretch.halved()
        return found

    def _adapt(self, entries: int) -> None:
        """To the branches of guidance: where it ends, the condition's half of what is kept goes on,
        which stands second; where it begins, nothing does.
        """
        if entries > len(self.noise):
            self.kept = Kept()
        elif entries < len(self.noise):
            self.noise = self.noise[-entries:]
            self.kept = {m: tuple(x[-entries:] for x in kept) for m, kept in self.kept.items()}
