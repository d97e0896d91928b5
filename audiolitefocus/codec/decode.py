"""From latents to the waveform, and from a spectrogram to latents.

The autoencoder takes long clips in tiles (`tiling`), with a crossfade. The vocoder is convolutions
alone: it always works on chunks, with as much context as it can see, to the same result.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from audiolitefocus.codec.tiling import in_tiles, is_tiled
from audiolitefocus.config import VocoderConfig
from audiolitefocus.models.vae import VAE
from audiolitefocus.models.vocoder import HiFiGAN

# Mel frames that are vocoded at a time, and their context: 5.12 s. The feature maps of longer
# chunks (80 s, float32, two cores of an Intel Xeon) are so large that allocators return them to the
# system each time: 28 s with 1024 frames, 33 s with 2048, 25 s with 512.
CHUNK_FRAMES = 512

OnBlock = Callable[[int, int], object]  # called with the number of tiles that are done, and of all


def ignore(done: int, total: int) -> None:
    """An `OnBlock` that does nothing."""


def decode_mel(
    vae: VAE, latents: Tensor, *, decode: str = "auto", on_block: OnBlock | None = None
) -> Iterator[Tensor]:
    """Decode unscaled latents (b, 8, t, f) to consecutive blocks (b, n, m) of log-mel, 4 t in all.

    Args:
        decode: "whole"; "tiled", which bounds memory; or "auto": tiled from two tiles on.
        on_block: called as on_block(done, total) after each tile.

    Raises:
        ValueError: `decode` is none of these.
    """
    on_block, frames = on_block or ignore, latents.shape[2]
    if is_tiled(decode, frames):
        run = lambda start, stop: vae.decode(latents[:, :, start:stop])  # noqa: E731
        yield from in_tiles(run, frames, on_block)
    else:
        mel = vae.decode(latents)
        on_block(1, 1)
        yield mel


def encode_mel(vae: VAE, mel: Tensor, *, decode: str = "auto") -> Tensor:
    """Encode log-mel (b, 4 t, m) to the means of its latents (b, 8, t, f), unscaled.

    `decode` and errors as in `decode_mel`.
    """
    down = vae.config.downsampling
    frames = mel.shape[1] // down
    if not is_tiled(decode, frames):
        return vae.encode(mel)[0]

    def run(start: int, stop: int) -> Tensor:
        return vae.encode(mel[:, start * down : stop * down])[0].transpose(1, 2)

    return torch.cat(list(in_tiles(run, frames, ignore)), dim=1).transpose(1, 2)


def receptive_field(config: VocoderConfig) -> int:
    """Return how many mel frames to either side of its own a sample depends on: 25 for AudioLDM2.

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
    """Turn consecutive blocks (b, n, m) of log-mel into blocks (b, samples) of the waveform.

    Together they are `vocoder(torch.cat(mel, 1))`: every chunk has the frames around it that the
    vocoder can see, and what those become is cut off. All chunks but the last are evaluated at one
    width, so that one can have the memory of another.
    """
    reach, hop = receptive_field(vocoder.config), vocoder.config.hop_length
    width = CHUNK_FRAMES + 2 * reach
    held, done = None, 0  # frames held, and how many of them are context, vocoded before
    for block in mel:
        held = block if held is None else torch.cat([held, block], dim=1)
        while held.shape[1] > width:
            yield vocoder(held[:, :width])[:, done * hop : (width - reach) * hop]
            held, done = held[:, width - 2 * reach :], reach
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
    """Decode the denoiser's latents (b, 8, t, f) to float32 blocks (b, n) on the CPU.

    They are consecutive, `samples` in all (default: all there are), and each is computed when it is
    asked for. `decode`, `on_block` and errors as in `decode_mel`.
    """
    device = next(vae.parameters()).device
    unscaled = latents.to(device, torch.float32) / vae.config.scale_factor
    left = math.inf if samples is None else samples
    for block in vocode(vocoder, decode_mel(vae, unscaled, decode=decode, on_block=on_block)):
        block = block[:, : int(min(left, block.shape[1]))]
        left -= block.shape[1]
        if block.shape[1]:
            yield block.float().cpu()


def fill(waveform: Tensor, blocks: Iterable[Tensor]) -> None:
    """Copy consecutive blocks (1, n) into a waveform (samples,), so that it is held only once."""
    done = 0
    for block in blocks:
        waveform[done : done + block.shape[1]] = block[0]
        done += block.shape[1]
