"""Draw the spectrogram of a sound file. Needs matplotlib: pip install 'audiolitefocus[plot]'."""

import argparse
from pathlib import Path

import soundfile
import torch
from matplotlib.figure import Figure

WINDOW, HOP = 1024, 160  # samples: those of AudioLDM2's mel spectrograms
RANGE_DB = 80  # below the loudest point


def decibels(waveform: torch.Tensor) -> torch.Tensor:
    """(samples,) -> power (bins, frames) in dB below the loudest point, cut off at RANGE_DB."""
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(waveform, WINDOW, HOP, window=window, return_complex=True)
    power = spectrum.abs().square()
    loudest = power.max().clamp_min(1e-10)  # silence stays dark
    return 10 * torch.log10(power / loudest).clamp_min(-RANGE_DB / 10)


def draw(sound: Path, picture: Path) -> None:
    """Write `picture`, in the format of its name's ending. Raises ValueError for a mere click."""
    samples, rate = soundfile.read(sound, dtype="float32", always_2d=True)
    waveform = torch.from_numpy(samples.mean(axis=1))
    if len(waveform) <= WINDOW // 2:
        raise ValueError(f"{sound}: {len(waveform)} samples are too few to draw")
    seconds = len(waveform) / rate
    figure = Figure(figsize=(min(max(seconds, 6), 24), 4), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(
        decibels(waveform),
        origin="lower",
        aspect="auto",
        extent=(0, seconds, 0, rate / 2000),
        vmin=-RANGE_DB,
        vmax=0,
        cmap="magma",
    )
    axes.set(xlabel="time (s)", ylabel="frequency (kHz)", title=sound.name)
    figure.colorbar(image, label="power (dB)")
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the spectrogram of a sound file.")
    parser.add_argument("sound", type=Path)
    parser.add_argument("picture", type=Path, help="png, pdf or svg by the name's ending")
    arguments = parser.parse_args()
    try:
        draw(arguments.sound, arguments.picture)
    except (ValueError, OSError, soundfile.LibsndfileError) as error:
        parser.exit(1, f"error: {error}\n")
