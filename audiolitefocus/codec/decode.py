"""From latents to the waveform, and from a spectrogram to latents.

Where memory is short of a clip, the autoencoder works on windows of it (`windows`), to the same
result. The vocoder is convolutions alone: it always works on chunks, with as much context as it can
see.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from audiolitefocus.codec.tiling import in_windows, reach
from audiolitefocus.config import VocoderConfig
from audiolitefocus.memory import fits_whole
from audiolitefocus.models.vae import VAE
from audiolitefocus.models.vocoder import CHUNK_FRAMES, HiFiGAN

OnWindow = Callable[[int, int], object]  # is told how many evaluations of how many are done


def nothing(done: int, total: int) -> None:
    """An `OnWindow` for callers who do not care."""


def decode_mel(
    vae: VAE,
    latents: Tensor,
    *,
    whole: bool | None = None,
    on_window: OnWindow = nothing,
) -> Iterator[Tensor]:
    """Unscaled latents (b, 8, t, f) -> consecutive blocks (b, n, m) of log-mel, 4 t frames in
    all.

    Args:
        whole: at once, or in windows. Default: at once where that takes less than half of the
            memory that is free.
        on_window: called after each evaluation of a window.
    """
    frames, rows = latents.shape[2:]
    if fits_whole(vae.config, frames, rows, latents.device) if whole is None else whole:
        yield vae.decode(latents)
        return
    blocks = in_windows(
        vae.decoder,
        lambda low, high: vae.post_quant_conv(latents[:, :, low:high].mT),
        frames,
        reach(vae.config),
        on_window,
    )
    for block in blocks:
        yield block[:, 0].mT


def encode_mel(vae: VAE, mel: Tensor, *, whole: bool | None = None) -> Tensor:
    """Log-mel (b, 4 t, m) -> the means of its latents (b, 8, t, f), unscaled. `whole` as in
    `decode_mel`.
    """
    down = vae.config.downsampling
    frames, rows = mel.shape[1] // down, mel.shape[2] // down
    if fits_whole(vae.config, frames, rows, mel.device) if whole is None else whole:
        return vae.encode(mel)[0]
    blocks = in_windows(
        vae.encoder,
        lambda low, high: mel[:, None, low * down : high * down].mT,
        frames,
        reach(vae.config),
    )
    latents, done = mel.new_empty(len(mel), vae.config.latent_channels, frames, rows), 0
    for block in blocks:
        means, _ = vae.quant_conv(block).mT.chunk(2, dim=1)
        latents[:, :, done : done + means.shape[2]] = means
        done += means.shape[2]
    return latents


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
    vae: VAE,
    vocoder: HiFiGAN,
    latents: Tensor,
    samples: int | None = None,
    on_window: OnWindow = nothing,
) -> Iterator[Tensor]:
    """The denoiser's latents (b, 8, t, f) -> consecutive blocks (b, n) of the waveform, float32, on
    the CPU, `samples` in all.
    """
    device = next(vae.parameters()).device
    unscaled = latents.to(device, torch.float32) / vae.config.scale_factor
    left = math.inf if samples is None else samples
    for block in vocode(vocoder, decode_mel(vae, unscaled, on_window=on_window)):
        block = block[:, : int(min(left, block.shape[1]))]
        left -= block.shape[1]
        if block.shape[1]:
            yield block.cpu()


def fill(waveform: Tensor, blocks: Iterable[Tensor]) -> None:
    """Put consecutive blocks (1, n) where they belong in (samples,), so that it is held once."""
    done = 0
    for block in blocks:
        waveform[done : done + block.shape[1]] = block[0]
        done += block.shape[1]
