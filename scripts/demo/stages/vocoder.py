"""Stage "vocoder": the HiFi-GAN generator, from log-mel frames to samples, by multi-resolution
STFT losses (Yamamoto et al., "Parallel WaveGAN", 2020) and the absolute error of the log-mel
(Kong et al. 2020). No loss sees a phase, so that its noises are as rough as real ones.

Once there is a trained autoencoder, half of the mels come through it: those of generated sounds
will, too.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from audiolitefocus.codec.mel import log_mel
from audiolitefocus.config import VocoderConfig
from audiolitefocus.models.vocoder import HiFiGAN, ResidualBlock
from scripts.demo.loop import Losses, Run, train
from scripts.demo.networks import last_checkpoint, load_vae
from scripts.demo.world.clips import CHUNK, FRAMES, VOCODER, chunk, shown, stored
from scripts.demo.world.sounds import RMS, draw

CONFIG = VocoderConfig(
    initial_channels=128,
    upsample_rates=(5, 4, 4, 2),
    upsample_kernels=(15, 12, 8, 4),
    resblock_kernels=(3, 7),
    resblock_dilations=((1, 3, 5), (1, 3, 5)),
)
CHUNKS = 4  # thousands of clips
STEPS, RATE = 20000, 3e-3
SEGMENTS, SEGMENT_FRAMES = 8, 32  # a batch
RESOLUTIONS = ((256, 64), (512, 128), (1024, 256), (2048, 512))  # windows and hops in samples
SHORTCUT = 0.3  # size of a residual block's part beside its shortcut, at the beginning
QUIET = 5e-3  # magnitude and
QUIET_MEL = -8.0  # log-mel value that is added to all: what lies far below is as good as silence
CONVERGENCE = 4.0  # weight of spectral convergence
# Half of all segments are of tones above this pitch in Hz: the last that become as loud as they
# should be, the later the higher.
HARD = 400


def segments(
    mels: list[np.ndarray], samples: list[np.ndarray], clips: list[int]
) -> tuple[Tensor, Tensor]:
    """A batch from these clips: log-mels (b, t, 64) and their samples (b, 160 t). `mels` may hold
    the same clips twice, for they can come in two versions.
    """
    versions = CHUNK * len(samples) * torch.randint(len(mels) // len(samples), (SEGMENTS,))
    drawn = torch.randint(len(clips), (SEGMENTS,)).tolist()
    which = [clips[i] + version for i, version in zip(drawn, versions.tolist(), strict=True)]
    starts = torch.randint(FRAMES - SEGMENT_FRAMES + 1, (SEGMENTS,)).tolist()
    hop = CONFIG.hop_length
    cut: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for index, start in zip(which, starts, strict=True):
        part, stop = index // CHUNK, start + SEGMENT_FRAMES
        cut[0].append(mels[part][index % CHUNK, start:stop])
        cut[1].append(samples[part % len(samples)][index % CHUNK, hop * start : hop * stop])
    mel, sound = (torch.from_numpy(np.stack(arrays)).float() for arrays in cut)
    return mel, sound


def stft_loss(made: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
    """Spectral convergence, of the square roots of magnitudes, and absolute error of their
    logarithms: the means over RESOLUTIONS. Roots, because what is as loud as it should be at one
    frequency must not hide that another is missing.
    """
    convergence, log_error = [], []
    for size, hop in RESOLUTIONS:
        window = torch.hann_window(size, device=sound.device)
        a, b = (
            torch.stft(x, size, hop, window=window, return_complex=True).abs() + QUIET
            for x in (made, sound)
        )
        convergence.append((a.sqrt() - b.sqrt()).norm() / b.sqrt().norm())
        log_error.append((a.log() - b.log()).abs().mean())
    return torch.stack(convergence).mean(), torch.stack(log_error).mean()


def vocoder_loss(run: Run, vocoder: HiFiGAN, batch: tuple[Tensor, Tensor]) -> Losses:
    mel, sound = (tensor.to(run.device) for tensor in batch)
    with run.autocast():
        made = vocoder(mel).float()[:, : sound.shape[1]]
    convergence, log_error = stft_loss(made, sound)
    quiet = torch.tensor(QUIET_MEL, device=run.device)
    a, b = (torch.logaddexp(log_mel(x, VOCODER), quiet) for x in (made, sound))
    mel_error = (a - b).abs().mean()
    return {
        "loss": CONVERGENCE * convergence + log_error + mel_error,
        "convergence": convergence,
        "log_error": log_error,
        "mel_error": mel_error,
    }


@torch.no_grad()
def decoded_mels(run: Run, index: int, mels: np.ndarray) -> np.ndarray:
    """A chunk's mels after the trained autoencoder, kept as a file: (1000, 256, 64) float16."""

    def compute() -> np.ndarray:
        vae = load_vae(run.out / "vae").to(run.device)
        parts = torch.from_numpy(mels.astype(np.float32)).to(run.device).split(20)
        decoded = torch.cat([vae.decode(vae.encode(part)[0]).cpu() for part in parts])
        return decoded.numpy().astype(np.float16)

    return stored(run.folder("vocoder") / f"decoded-{index:03d}.npy", compute)


def build(mels: Tensor) -> HiFiGAN:
    """A vocoder whose layers keep the size of what they are given, from log-mels like these (b, t,
    64), and whose samples are as loud as sounds: near silence, losses of magnitudes have no slope.
    """
    torch.manual_seed(0)
    vocoder = HiFiGAN(CONFIG)
    with torch.no_grad():
        for layer in vocoder.modules():
            if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
                # Of a transposed convolution's kernel, a sample meets one in so many numbers.
                fan = (
                    layer.weight[0].numel()
                    if isinstance(layer, nn.Conv1d)
                    else (layer.in_channels * layer.kernel_size[0] / layer.stride[0])
                )
                layer.weight.normal_(std=(2 / (1 + CONFIG.slope**2) / fan) ** 0.5)
                layer.bias.zero_()  # type: ignore[union-attr]
        for block in vocoder.modules():
            if isinstance(block, ResidualBlock):
                for conv in block.convs2:
                    conv.weight.mul_(SHORTCUT)  # type: ignore[operator]
        first = vocoder.conv_pre
        first.weight /= mels.std()
        first.bias -= mels.mean() * first.weight.sum((1, 2))
        last = vocoder.conv_post
        last.weight *= 1e-3  # far from where tanh bends
        last.weight *= RMS / vocoder(mels).square().mean().sqrt()
    return vocoder


def train_vocoder(run: Run) -> None:
    samples, mels = map(
        list, zip(*(chunk(run.out / "clips", i) for i in range(CHUNKS)), strict=True)
    )
    vocoder = build(torch.from_numpy(mels[0][:50].astype(np.float32)))
    clips = shown(CHUNKS)
    tones = [i for i in clips if draw(i).families == ("tone",)]
    hard = [i for i in tones if draw(i).attributes["pitch"] > HARD]
    clips += hard * (len(clips) // max(1, len(hard)))
    if (run.out / "vae" / "vae.safetensors").exists():
        mels += [decoded_mels(run, index, mels[index]) for index in range(CHUNKS)]
    train(
        run,
        "vocoder",
        vocoder,
        lambda: vocoder_loss(run, vocoder, segments(mels, samples, clips)),
        steps=STEPS,
        rate=RATE,
    )


def trained_vocoder(out: Path) -> HiFiGAN:
    return last_checkpoint(out / "vocoder", HiFiGAN(CONFIG))
