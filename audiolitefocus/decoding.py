"""From latents to the waveform, and from a spectrogram to latents, in memory that does not grow
with the clip.

The autoencoder works on overlapping windows of time, cross-faded. Two of its layers see more than
their neighbourhood: group norms, whose statistics are first gathered over all windows and then
shared by them, and the attention in the middle, which stays within the window and is what
remains of the difference to whole decoding. The vocoder is convolutions alone: it works on chunks
with as much context as it can see, which is exact."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from audiolitefocus.config import VocoderConfig
from audiolitefocus.vae import VAE
from audiolitefocus.vocoder import HiFiGAN

# In latent frames of 0.04 s. Up to ten minutes a clip is decoded whole, as the reference does: the
# windows, which are run once for each group norm, took four times as long, and where sound changes
# a lot they differed by -18 dB (random weights), since attention ends there. They are for what
# would not fit.
WHOLE_FRAMES = 15000
WINDOW_FRAMES = 2048  # 81.92 s
OVERLAP_FRAMES = 72  # its quarters, 18 frames, are more than the convolutions see to either side
CHUNK_FRAMES = 2048  # mel frames that the vocoder gets at a time: 20.48 s


def decode_mel(vae: VAE, latents: Tensor) -> Iterator[Tensor]:
    """Unscaled latents (b, 8, t, f) -> consecutive blocks (b, n, m) of log-mel, 4 t frames in
    all.
    """
    if latents.shape[2] <= WHOLE_FRAMES:
        yield vae.decode(latents)
    else:
        yield from windowed(
            lambda start, stop: vae.decode(latents[:, :, start:stop]),
            vae.decoder,
            latents.shape[2],
        )


def encode_mel(vae: VAE, mel: Tensor) -> Tensor:
    """Log-mel (b, 4 t, m) -> the means of its latents (b, 8, t, f), unscaled."""
    down = vae.config.downsampling
    frames = mel.shape[1] // down
    if frames <= WHOLE_FRAMES:
        return vae.encode(mel)[0]
    blocks = windowed(
        lambda start, stop: vae.encode(mel[:, start * down : stop * down])[0].transpose(1, 2),
        vae.encoder,
        frames,
    )
    return torch.cat(list(blocks), dim=1).transpose(1, 2)


def windowed(
    run: Callable[[int, int], Tensor], network: nn.Module, frames: int
) -> Iterator[Tensor]:
    """Run a network over a long clip in windows of time.

    Args:
        run: gives the result (b, n, ...) for latent frames start to stop, n a multiple of them.
        network: whose group norms, with inputs (b, c, f, t), are shared by all windows.
        frames: latent frames of the clip.

    Yields:
        Consecutive blocks of the result; where windows overlap, one fades into the next.
    """
    spans, norms = time_windows(frames), SharedNorms(network)
    norms.settle(run, spans)
    tail = None
    for (start, stop), after in zip(spans, [*spans[1:], (frames, frames)], strict=True):
        with norms.shared():
            block = run(start, stop)
        if tail is not None:
            overlap = tail.shape[1]
            faded = torch.lerp(tail, block[:, :overlap], fade_in(overlap, block))
            block = torch.cat([faded, block[:, overlap:]], dim=1)
        scale = block.shape[1] // (stop - start)
        block, tail = block.tensor_split([(after[0] - start) * scale], dim=1)
        yield block


def time_windows(frames: int) -> list[tuple[int, int]]:
    """Windows (start, stop) of much the same length, at most WINDOW_FRAMES, that overlap by
    OVERLAP_FRAMES.
    """
    count = max(1, math.ceil((frames - OVERLAP_FRAMES) / (WINDOW_FRAMES - OVERLAP_FRAMES)))
    starts = [i * (frames - OVERLAP_FRAMES) // count for i in range(count)]
    stops = [start + OVERLAP_FRAMES for start in starts[1:]] + [frames]
    return list(zip(starts, stops, strict=True))


def fade_in(count: int, like: Tensor) -> Tensor:
    """Weights (1, count, 1, ...) from 0 to 1 over the middle half of an overlap: what the end of a
    window spoils is in the outer quarters.
    """
    position = (torch.arange(count, device=like.device, dtype=like.dtype) + 0.5) / count
    return (2 * position - 0.5).clamp(0, 1).reshape(1, -1, *[1] * (like.ndim - 2))


class SharedNorms:
    """The group norms of a network, with the statistics of a whole clip of which they see one
    window at a time.

    What a norm sees depends on the norms before it, so they are settled one after the other: for
    each, all windows run up to it. That costs about half as many evaluations as there are norms.
    """

    def __init__(self, network: nn.Module):
        self.norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
        self.moments: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}  # mean, variance: b groups

    def settle(self, run: Callable[[int, int], Tensor], spans: list[tuple[int, int]]) -> None:
        """Find the statistics, every frame counted in the window of which it is furthest from the
        ends.
        """
        middles = [
            (start + stop) // 2 for (start, _), (_, stop) in zip(spans[1:], spans, strict=False)
        ]
        edges = [0, *middles, spans[-1][1]]
        for norm in self.norms:
            sums: list[Tensor] = []  # count, sum, sum of squares: 3 b groups
            for (start, stop), low, high in zip(spans, edges, edges[1:], strict=False):
                add = partial(_add, sums, low - start, high - start, stop - start)
                handle = norm.register_forward_pre_hook(add)
                try:
                    with self.shared():
                        run(start, stop)
                except _Counted:
                    pass
                finally:
                    handle.remove()
            if sums:
                count, total, squares = torch.stack(sums).sum(0)
                mean = total / count
                self.moments[norm] = mean, (squares / count - mean.square()).clamp(min=0)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Norms that have been settled use their statistics inside of this context."""
        handles = [norm.register_forward_hook(self._normalise) for norm in self.moments]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _normalise(self, norm: nn.GroupNorm, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        mean, variance = self.moments[norm]
        (x,) = inputs
        mean, scale = (
            v.to(x).repeat_interleave(x.shape[1] // norm.num_groups, 1)[:, :, None, None]
            for v in (mean, (variance + norm.eps).rsqrt())
        )
        weight, bias = norm.weight[:, None, None], norm.bias[:, None, None]
        return torch.addcmul(bias, x - mean, scale * weight)


class _Counted(Exception):
    """A window has been counted, and need not run further."""


def _add(sums: list, low: int, high: int, frames: int, norm: nn.GroupNorm, inputs: tuple) -> None:
    """Count frames low to high of what a norm is given for a window of `frames`."""
    scale = inputs[0].shape[-1] // frames
    values = inputs[0][..., low * scale : high * scale]
    values = values.reshape(len(values), norm.num_groups, -1)
    # Sums of many numbers want float64, which not every device has.
    variance, mean = (x.cpu().double() for x in torch.var_mean(values, -1, correction=0))
    count = torch.full_like(mean, values.shape[-1])
    sums.append(torch.stack([count, count * mean, count * (variance + mean.square())]))
    raise _Counted


def receptive_field(config: VocoderConfig) -> int:
    """How many mel frames to either side of its own a sample of the vocoder depends on: 25 for
    AudioLDM2.

    Followed from the output to the input: a transposed convolution of rate r and kernel k takes a
    reach of n samples to one of at most (n + k) / r.
    """
    blocks = zip(config.resblock_kernels, config.resblock_dilations, strict=True)
    widest = max(sum((d + 1) * (size - 1) // 2 for d in dilations) for size, dilations in blocks)
    upsamplings = zip(config.upsample_rates, config.upsample_kernels, strict=True)
    reach = 3  # of the last convolution, and of the first
    for rate, kernel in reversed(list(upsamplings)):
        reach = math.ceil((reach + widest + kernel) / rate)
    return reach + 3


def vocode(vocoder: HiFiGAN, mel: Iterable[Tensor]) -> Iterator[Tensor]:
    """Consecutive blocks (b, n, m) of log-mel -> consecutive blocks (b, samples) of the waveform.

    Together they are `vocoder(torch.cat(mel, 1))`: every chunk is given the frames around it that
    the vocoder can see, and what those become is cut off.
    """
    reach, hop = receptive_field(vocoder.config), vocoder.config.hop_length
    held, done = None, 0  # frames held, and how many of them are context that has been heard
    for piece in (piece for block in mel for piece in block.split(CHUNK_FRAMES, dim=1)):
        if held is None:
            held = piece
            continue
        ready = held.shape[1] - reach
        if ready > done:
            yield vocoder(held)[:, done * hop : ready * hop]
            first = max(0, ready - reach)
            held, done = held[:, first:], ready - first
        held = torch.cat([held, piece], dim=1)
    if held is not None:
        yield vocoder(held)[:, done * hop :]


@torch.inference_mode()
def decode_blocks(
    vae: VAE, vocoder: HiFiGAN, latents: Tensor, samples: int | None = None
) -> Iterator[Tensor]:
    """The denoiser's latents (b, 8, t, f) -> consecutive blocks (b, n) of the waveform, float32, on
    the CPU, `samples` in all.
    """
    device = next(vae.parameters()).device
    unscaled = latents.to(device, torch.float32) / vae.config.scale_factor
    left = math.inf if samples is None else samples
    for block in vocode(vocoder, decode_mel(vae, unscaled)):
        block = block[:, : int(min(left, block.shape[1]))]
        left -= block.shape[1]
        if block.shape[1]:
            yield block.cpu()
