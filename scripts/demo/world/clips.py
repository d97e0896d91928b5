"""Training clips of the synthetic world, rendered once and kept as files of a thousand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from audiolitefocus.atomic import atomic_file, atomic_files
from audiolitefocus.codec.mel import log_mel
from audiolitefocus.config import VocoderConfig
from scripts.demo.world.sounds import RATE, WORLD, Sound, draw

FRAMES = 256  # of a clip: 2.56 s
MARGIN = 4  # frames cut from both ends, where the spectrogram continues the sound by reflection
CHUNK = 1000  # clips in a file
VOCODER = VocoderConfig()
# How often some sounds are shown, alone, against others: tests measure exactly what they say.
OFTEN = {"tone": 9, "rising chirp": 4, "falling chirp": 4, "metronome": 6, "white noise": 2}
HIGH = WORLD["tone"].attributes["pitch"]["high"][0]  # Hz
HARDEST = 4  # times as often as other tones: high ones that are steady, which waver longest


def clip(seed: int, frames: int = FRAMES) -> tuple[np.ndarray, np.ndarray]:
    """The sound of a seed: samples (160 frames,) and log-mel (frames, 64) with frame i centred on
    sample 160 i, both float32.
    """
    hop = VOCODER.hop_length
    samples = draw(seed).render((frames + 2 * MARGIN) * hop / RATE)
    mel = log_mel(torch.from_numpy(samples)[None], VOCODER)[0, MARGIN : MARGIN + frames]
    return samples[MARGIN * hop : (MARGIN + frames) * hop], mel.numpy()


def chunk(folder: Path, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Clips of the seeds from 1000 index on: samples (1000, 40960) and log-mels (1000, 256, 64),
    float16, read from `folder` as they are needed. Rendered and written there the first time.
    """
    paths = [folder / f"{kind}-{index:03d}.npy" for kind in ("samples", "mel")]
    if not all(path.is_file() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        seeds = range(CHUNK * index, CHUNK * (index + 1))
        made = [clip(seed) for seed in tqdm(seeds, desc=f"clips {index:03d}", unit="clip")]
        with atomic_files(*paths) as parts:
            for part, arrays in zip(parts, zip(*made, strict=True), strict=True):
                with part.open("wb") as file:
                    np.save(file, np.stack(arrays).astype(np.float16))
    return np.load(paths[0], mmap_mode="r"), np.load(paths[1], mmap_mode="r")


def stored(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """An array, read from its file as it is needed. Computed and written there the first time."""
    if not path.is_file():
        with atomic_file(path) as part, part.open("wb") as file:
            np.save(file, compute())
    return np.load(path, mmap_mode="r")


def shown(chunks: int) -> list[int]:
    """The clips of so many chunks, some of them repeated as OFTEN says."""
    return [seed for seed in range(CHUNK * chunks) for _ in range(often(draw(seed)))]


def often(sound: Sound) -> int:
    """How many times a sound is shown where others are shown once."""
    if len(sound.families) > 1:
        return 1
    hardest = sound.families == ("tone",) and sound.attributes["pitch"] >= HIGH
    hardest = hardest and not sound.attributes["rhythm"]
    return OFTEN.get(sound.families[0], 1) * (HARDEST if hardest else 1)
