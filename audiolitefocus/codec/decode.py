"""From latents to the waveform, and from a spectrogram to latents, in blocks of bounded memory.

Long clips pass the autoencoder in tiles (`tiling`). The vocoder is convolutions alone: it works on
chunks with as much context as it can see, to the same result as at once.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from audiolitefocus.codec.tiling import OnBlock, in_tiles, use_tiles
from audiolitefocus.config import VocoderConfig
from audiolitefocus.models.vae import VAE
from audiolitefocus.models.vocoder import CHUNK_FRAMES, HiFiGAN


def decode_mel(
    vae: VAE, latents: Tensor, *, decode: str = "auto", on_block: OnBlock | None = None
) -> Iterator[Tensor]:
    """Unscaled latents (b, 8, t, f) -> consecutive blocks (b, n, m) of log-mel, 4 t frames in all.

    Args:
        decode: "whole", "tiled", or "auto": in tiles where the clip is longer than two of them.
        on_block: called after each tile as on_block(done, total).
    """
    frames = latents.shape[2]
    if not use_tiles(decode, frames):
        yield vae.decode(latents)
        return
    yield from in_tiles(lambda start, stop: vae.decode(latents[:, :, start:stop]), frames, on_block)


def encode_mel(vae: VAE, mel: Tensor, *, decode: str = "auto") -> Tensor:
    """Log-mel (b, 4 t, m) -> the means of its latents (b, 8, t, f), unscaled; `decode` as above."""
    down = vae.config.downsampling
    frames = mel.shape[1] // down
    if not use_tiles(decode, frames):
        return vae.encode(mel)[0]

    def encode(start: int, stop: int) -> Tensor:
        return vae.encode(mel[:, start * down : stop * down])[0].transpose(1, 2).flatten(2)

    means = torch.cat(list(in_tiles(encode, frames)), dim=1)  # b t (c f)
    return means.unflatten(2, (vae.config.latent_channels, -1)).transpose(1, 2)


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
    *,
    decode: str = "auto",
    on_block: OnBlock | None = None,
) -> Iterator[Tensor]:
    """The denoiser's latents (b, 8, t, f) -> consecutive blocks (b, n) of the waveform.

    They are float32 on the CPU, `samples` in all. `decode`, `on_block`: as in `decode_mel`.
    """
    unscaled = latents.to(next(vae.parameters())) / vae.config.scale_factor
    left = math.inf if samples is None else samples
    for block in vocode(vocoder, decode_mel(vae, unscaled, decode=decode, on_block=on_block)):
        block = block[:, : int(min(left, block.shape[1]))]
        left -= block.shape[1]
        if block.shape[1]:
            yield block.float().cpu()


def fill(waveform: Tensor, blocks: Iterable[Tensor]) -> None:
    """Put consecutive blocks (1, n) where they belong in (samples,), so that it is held once."""
    done = 0
    for block in blocks:
        waveform[done : done + block.shape[1]] = block[0]
        done += block.shape[1]
