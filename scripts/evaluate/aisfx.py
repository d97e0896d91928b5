"""A judge that knows nothing of this project: aisfx, trained on libraries of sound effects.

Ma and Lerch, "Representation Learning for the Automatic Indexing of Sound Effects Libraries", ISMIR
2022: four blocks of convolutions over a mel spectrogram of 44.1 kHz. The weights (CC BY 4.0) come
with the package of that name, whose code is not run:

pip install --no-deps aisfx
"""

import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolitefocus.checkpoints.bundle import sha256

RATE = 44100
WINDOW, HOP, BANDS = 2048, 1024, 96  # samples, samples, mel bands up to RATE / 2
GAIN, LOUDEST = 1e4, 9.457798957824707  # of the compression, and what it is divided by
FRAMES, STEP = 100, 50  # of a block (2.3 s), and from one block to the next
WIDTHS = (1, 64, 128, 256, 512)
LAYERS = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2"}  # of a block, ours and theirs


class Embedding(nn.Module):
    """Blocks of a spectrogram (b, 100, 96) -> embeddings (b, 512)."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(map(_block, WIDTHS, WIDTHS[1:]))

    def forward(self, spectrogram: Tensor) -> Tensor:
        x = spectrogram[:, None]  # b 1 t f
        *pooled, last = self.blocks
        for block in pooled:
            x = F.max_pool2d(block(x), 2)
        return last(x).mean(3).amax(2)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    def conv(channels: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]

    return nn.Sequential(*conv(inputs), *conv(outputs))


class Aisfx:
    """An embedder as in `scripts.evaluate.embedders`: mean of the blocks' embeddings, (512,).

    Clips are judged by their sound and not by their level: the loudest sample is made 1.

    Raises:
        ValueError: the package is not installed, or holds other weights.
    """

    rate = RATE

    def __init__(self, device: torch.device | str = "cpu"):
        path, self.device = weights_file(), device
        self.name = f"aisfx-{sha256(path)[:12]}"
        self.network = load_network(path).to(device)

    @torch.inference_mode()
    def embed(self, waveform: Tensor) -> np.ndarray:
        blocks = split_blocks(spectrogram(waveform))
        return self.network(blocks.to(self.device)).mean(0).cpu().numpy()


def weights_file() -> Path:
    spec = find_spec("aisfx")
    if spec is None or spec.origin is None:
        raise ValueError("aisfx is not installed: pip install --no-deps aisfx")
    return Path(spec.origin).parent / "models" / "checkpoint.pth"


def load_network(path: Path) -> Embedding:
    # beside tensors, the file has counts of classes as numpy's integers, which nothing here needs
    unread = (_nothing, "numpy.core.multiarray.scalar")
    with torch.serialization.safe_globals([unread, np.dtype, np.dtypes.Int64DType]):
        try:
            tensors, _ = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises whatever a damaged file leads it to
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path} cannot be read: {reason}; install aisfx again") from None
    network = Embedding()
    network.load_state_dict(_renamed(tensors))
    return network.eval()


def _nothing(*_: object) -> None:
    """Stands for numbers that are not read."""


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours = {}
    for number in range(len(WIDTHS) - 1):
        for layer, theirs in LAYERS.items():
            prefix = f"embedding_net.conv_block{number + 1}.{theirs}."
            for key, tensor in tensors.items():
                if key.startswith(prefix):
                    ours[f"blocks.{number}.{layer}.{key.removeprefix(prefix)}"] = tensor
    return ours


def spectrogram(waveform: Tensor) -> Tensor:
    """A waveform (samples,) -> compressed powers (frames, 96), about 0 to 1."""
    peak = waveform.abs().max()
    waveform = waveform / torch.where(peak > 0, peak, 1.0)
    padded = F.pad(waveform, (WINDOW // 2, WINDOW // 2))
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(padded, WINDOW, HOP, window=window, center=False, return_complex=True)
    power = mel_filters() @ spectrum.abs().square()
    return torch.log10(power * GAIN + 1).T / LOUDEST


def mel_filters() -> Tensor:
    """Triangles (96, WINDOW // 2 + 1), evenly spaced in HTK's mel, whose weights add up to 1."""
    top = 2595 * math.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, BANDS + 2, dtype=torch.float64) / 2595) - 1)
    low, centre, high = (edges[i : i + BANDS, None] for i in range(3))  # m 1
    bins = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    weights = torch.minimum(rising, falling).clamp(min=0)
    return F.normalize(weights, p=1, dim=1).float()


def split_blocks(frames: Tensor) -> Tensor:
    """(frames, 96) -> (b, 100, 96), each half over the one before.

    What is left over at the end is dropped; silence follows what is shorter than one.
    """
    frames = F.pad(frames, (0, 0, 0, max(0, FRAMES - len(frames))))
    return frames.unfold(0, FRAMES, STEP).transpose(1, 2)
