"""Log-mel spectrograms as AudioLDM2 was trained on: the way from a waveform to the autoencoder.

Magnitudes (not powers) of a Hann-windowed transform of 1024 samples every hop, in Slaney's
triangular bands up to 8 kHz, and the logarithm of them, at least 1e-5.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from audiolitefocus.config import VocoderConfig

WINDOW = 1024  # samples of the Fourier transform and of its window
HIGHEST_HZ = 8000.0
FLOOR = 1e-5  # of the magnitudes, before the logarithm
BLOCK_FRAMES = 4096  # transformed at a time: the complex spectra are larger than the result
LINEAR_HZ, LINEAR_MELS = 1000.0, 15.0  # Slaney's scale is linear up to 15 mel ...
MELS_PER_LOG = 27 / math.log(6.4)  # ... and logarithmic from there


def log_mel(waveform: Tensor, config: VocoderConfig) -> Tensor:
    """Waveforms (b, samples) -> log-mel frames (b, 1 + samples // hop, m).

    Frame i is centred on sample i * hop; the ends are continued by reflection. Raises ValueError
    for waveforms shorter than half a window.
    """
    hop, half = config.hop_length, WINDOW // 2
    if waveform.shape[-1] <= half:
        raise ValueError(f"{waveform.shape[-1]} samples: a spectrogram needs more than {half}")
    padded = F.pad(waveform, (half, half), mode="reflect")
    window = torch.hann_window(WINDOW, device=waveform.device)
    filters = mel_filters(config.mel_bins, config.sampling_rate).to(waveform)  # m bins
    frames, blocks = 1 + waveform.shape[-1] // hop, []
    for start in range(0, frames, BLOCK_FRAMES):
        stop = min(start + BLOCK_FRAMES, frames)
        part = padded[:, start * hop : (stop - 1) * hop + WINDOW]
        spectrum = torch.stft(part, WINDOW, hop, window=window, center=False, return_complex=True)
        blocks.append((filters @ spectrum.abs()).clamp(min=FLOOR).log().transpose(1, 2))
    return torch.cat(blocks, dim=1)


def mel_filters(bands: int, rate: int) -> Tensor:
    """Triangular bands (m, WINDOW // 2 + 1), evenly spaced in mel, each of the same area.

    Malcolm Slaney, "Auditory Toolbox", 1998.
    """
    highest = min(HIGHEST_HZ, rate / 2)
    edges = _hz(torch.linspace(0, _mels(highest), bands + 2, dtype=torch.float64))[:, None]
    bins = torch.linspace(0, rate / 2, WINDOW // 2 + 1, dtype=torch.float64)
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]  # m 1
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (high - low)).float()


def _mels(hz: float) -> float:
    if hz < LINEAR_HZ:
        return hz * LINEAR_MELS / LINEAR_HZ
    return LINEAR_MELS + MELS_PER_LOG * math.log(hz / LINEAR_HZ)


def _hz(mels: Tensor) -> Tensor:
    linear = mels * LINEAR_HZ / LINEAR_MELS
    return torch.where(
        mels < LINEAR_MELS, linear, LINEAR_HZ * ((mels - LINEAR_MELS) / MELS_PER_LOG).exp()
    )
