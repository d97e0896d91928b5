"""How much memory clips need, how much there is, and what helps where it is not enough.

What is needed is counted from the architecture: the weights, and the feature maps that are alive
together at the worst moment of the denoiser and of the decoder. What libraries take besides
(workspaces, the rounding of allocators) is measured.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from audiolitefocus.audio.files import ClipLength
from audiolitefocus.checkpoints.bundle import open_safetensors
from audiolitefocus.codec.decode import CHUNK_FRAMES
from audiolitefocus.codec.tiling import TILE_FRAMES
from audiolitefocus.config import BundleConfig, UNetConfig, VAEConfig, VocoderConfig

# Bytes for each byte counted, and besides. Measured on two x86 cores with PyTorch 2.13 and networks
# of audioldm2's size in float32: the denoiser took 123, 218, 344 and 632 MB for 10.24, 20.48, 40.96
# and 80 s, where 55, 109, 218 and 426 are counted; decoder or vocoder 218 and 292 MB for 5.12 and
# 10.24 s, of which 101 and 201; the decoder 310 MB in windows, of which 252. Networks of the demo's
# size took 150 MB to decode 60 and 600 s in windows once these had been denoised, of which 63 are
# counted: of small feature maps, allocators keep what is freed. bfloat16 takes less; GPUs were not
# measured. The text towers bring their library's code, which is as large however small they are.
FACTOR, WORKSPACE, TEXT_CODE = 1.4, 100e6, 120e6
FLOAT32 = 4  # bytes; of everything but the denoiser


@dataclass(frozen=True)
class Demand:
    """What is asked for, as far as memory goes.

    Attributes:
        config: of the bundle.
        seconds: of each clip.
        clips: that are denoised together.
        guided: whether every clip is evaluated twice.
        itemsize: bytes of a number in the denoiser.
        dense: whether some self-attention compares every token with every other.
        parameters: numbers in "text", "denoiser" and "decoder" (with the vocoder).
        device: where the networks work.
        offload: whether a network is there only while it works.
        text_loaded: whether the text towers are in memory already, as the others are.
    """

    config: BundleConfig
    seconds: float
    clips: int
    guided: bool
    itemsize: int
    dense: bool
    parameters: dict[str, int]
    device: torch.device
    offload: bool = False
    text_loaded: bool = False

    def weights(self) -> dict[str, int]:
        """Bytes of each network's weights."""
        sizes = {"text": FLOAT32, "denoiser": self.itemsize, "decoder": FLOAT32}
        return {name: self.parameters[name] * sizes[name] for name in sizes}

    def phases(self) -> dict[str, float]:
        """Bytes that are needed while text is read, while clips are denoised, and while one is
        decoded.
        """
        weights = self.weights()
        working = {"text": 0.0, "denoiser": self._denoising(), "decoder": self._decoding()}
        moved = self.offload and self.device.type != "cpu"
        resident = 0 if moved else sum(weights.values())
        return {name: working[name] + (weights[name] if moved else resident) for name in working}

    def needed(self) -> float:
        """Bytes at the peak, weights included."""
        return max(self.phases().values())

    def missing(self) -> float:
        """Bytes that are not in use already."""
        if self.offload and self.device.type != "cpu":
            return self.needed()
        loaded = self.weights()
        if self.text_loaded:
            return self.needed() - sum(loaded.values())
        code = TEXT_CODE if self.device.type == "cpu" else 0.0
        return self.needed() - loaded["denoiser"] - loaded["decoder"] + code

    def _denoising(self) -> float:
        length, unet = ClipLength(self.seconds, self.config), self.config.unet
        batch = self.clips * (2 if self.guided else 1)
        size = denoiser_elements(unet, length.latent_frames, length.latent_rows)
        if self.dense and self.device.type == "mps":  # which holds all scores of one attention
            tokens = length.latent_frames * length.latent_rows // 4
            size += 2 * unet.heads[1] * tokens**2
        return batch * size * self.itemsize * FACTOR + WORKSPACE

    def _decoding(self) -> float:
        """Of one clip, in windows if it is long, and the waveforms of all."""
        length, vae = ClipLength(self.seconds, self.config), self.config.vae
        frames = min(length.latent_frames, 2 * TILE_FRAMES)
        mel_frames = length.latent_frames * vae.downsampling
        size = max(
            autoencoder_elements(vae, frames, length.latent_rows),
            vocoder_elements(self.config.vocoder, min(mel_frames, CHUNK_FRAMES)),
        )
        tokens = length.latent_frames * length.latent_rows
        held = tokens * vae.channels[-1] if self.device.type != "cpu" else 0  # to attend to
        held += 2 * self.clips * length.samples
        return (size * FACTOR + held) * FLOAT32 + WORKSPACE


def denoiser_elements(config: UNetConfig, frames: int, rows: int) -> int:
    """Numbers that are alive together at the worst moment of one evaluation of one clip.

    That is on the way up, where a level holds the skip connections of those above and works either
    on the first residual block (its input, the same joined with a skip connection, normalised, and
    two results) or on a feed-forward (the map, its shortcut, and GEGLU's 8 + 4 widths).
    """
    worst = skips = 0
    for level, channels in enumerate(config.channels):
        above = config.channels[max(level - 1, 0)]
        below = config.channels[min(level + 1, len(config.channels) - 1)]
        tokens = -(-frames // 2**level) * -(-rows // 2**level)
        skips += tokens * (config.resnets * channels + above)
        residual = below + 2 * (below + channels) + 2 * channels
        attending = level in config.attention_levels
        worst = max(worst, skips + tokens * max(residual, 15 * channels * attending))
    return worst


def autoencoder_elements(config: VAEConfig, frames: int, rows: int) -> int:
    """The same for encoding or decoding, at full resolution: two maps of the level's input and two
    of its own.
    """
    inputs = config.channels[min(1, len(config.channels) - 1)]
    pixels = frames * rows * config.downsampling**2
    return pixels * (2 * inputs + 2 * config.channels[0])


def vocoder_elements(config: VocoderConfig, mel_frames: int) -> int:
    """The same for the vocoder: six maps of its widest level."""
    rate, widest = 1, 0
    for level, up in enumerate(config.upsample_rates, 1):
        rate *= up
        widest = max(widest, rate * config.initial_channels // 2**level)
    return 6 * mel_frames * widest


def numbers_in(path: Path) -> int:
    """How many a safetensors file holds; 0 if there is none."""
    if not path.is_file():
        return 0
    with open_safetensors(path) as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())


def fit(demand: Demand, free: float | None) -> int:
    """How many of the clips can be denoised together.

    Raises:
        MemoryError: not even one; the message says what would help.
    """
    while free is not None and demand.missing() > free:
        if demand.clips == 1:
            raise MemoryError(shortage(demand, free))
        demand = replace(demand, clips=math.ceil(demand.clips / 2))
    return demand.clips


def shortage(demand: Demand, free: float | None) -> str:
    """What is needed and the three things that help most, those that are enough first."""
    clips = f"{demand.clips} clip{'s' if demand.clips > 1 else ''} of {demand.seconds:g} s"
    parts = ", ".join(f"{name} {_gb(size)}" for name, size in demand.weights().items())
    left = "" if free is None else f", of which {_gb(demand.missing())} more; {_gb(free)} are free"
    helps = sorted(_helps(demand, free), key=lambda pair: pair[1].missing() > (free or 0))
    what = "; ".join(f"{text} ({_gb(other.needed())})" for text, other in helps[:3])
    return (
        f"out of memory on {demand.device}: {clips} need about {_gb(demand.needed())} at once "
        f"(weights: {parts}){left}. What would help: {what}"
    )


def _helps(demand: Demand, free: float | None) -> list[tuple[str, Demand]]:
    """Changes that lessen the need, the gentlest first."""
    shorter = replace(demand, seconds=_longest(demand, free))
    candidates = [
        ("offload", replace(demand, offload=True)),
        ("fewer clips at a time (--batch-size, --candidates)", replace(demand, clips=1)),
        ("half precision (--dtype bfloat16)", replace(demand, itemsize=min(demand.itemsize, 2))),
        ("LiteFocus (--attention litefocus)", replace(demand, dense=False)),
        (f"a shorter clip (--duration {shorter.seconds:g})", shorter),
        ("no guidance (--guidance-scale 1)", replace(demand, guided=False)),
    ]
    return [(text, other) for text, other in candidates if other.needed() < 0.99 * demand.needed()]


def _longest(demand: Demand, free: float | None) -> float:
    """The longest clip that fits, in steps of a tenth of the length asked for; else that tenth."""
    lengths = [round(demand.seconds * tenth / 10, 2) for tenth in range(9, 0, -1)]
    lengths = [length for length in lengths if length >= 0.04] or [demand.seconds]
    fitting = [
        length
        for length in lengths
        if free is not None and replace(demand, seconds=length).missing() <= free
    ]
    return fitting[0] if fitting else lengths[-1] if free is not None else demand.seconds / 2


def _gb(size: float) -> str:
    return f"{size / 1e9:.2g} GB" if size < 1e10 else f"{size / 1e9:.0f} GB"
