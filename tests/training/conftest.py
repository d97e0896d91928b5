"""Sounds with captions to train on."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture(scope="session")
def sounds(tmp_path_factory) -> Path:
    """A folder of four short sounds in the layout that `read_examples` reads. Read only."""
    folder = tmp_path_factory.mktemp("sounds")
    time = np.arange(16000) / 16000
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        for number in range(4):
            tone = 0.3 * np.sin(2 * np.pi * (200 + 100 * number) * time)
            soundfile.write(folder / f"{number}.wav", tone, 16000)
            writer.writerow([f"{number}.wav", f"tone number {number}"])
    return folder
