"""Pictures: a tone lies at its pitch, a click at its time, and ticks are round."""

import numpy as np
import pytest
import torch

pytest.importorskip("gradio", reason="needs the extra web")

from audiolitefocus.attention.watch import Share  # noqa: E402
from audiolitefocus.web import pictures  # noqa: E402
from audiolitefocus.web.attention_tab import means  # noqa: E402
from audiolitefocus.web.pictures import HEIGHT, LEFT, MARGIN, WIDTH, spectrogram  # noqa: E402

RATE = 16000


def brightness(image) -> np.ndarray:
    """(HEIGHT, WIDTH) of the part inside the axes."""
    pixels = np.asarray(image).astype(float).sum(-1)
    return pixels[MARGIN : MARGIN + HEIGHT, LEFT : LEFT + WIDTH]


@pytest.mark.parametrize("hertz", [1000, 4000, 7000])
def test_a_tone_is_a_line_at_its_pitch(hertz):
    tone = np.sin(2 * np.pi * hertz * np.arange(2 * RATE) / RATE).astype(np.float32)
    rows = brightness(spectrogram(tone, RATE))[:, WIDTH // 2]
    assert rows.argmax() == pytest.approx((1 - hertz / 8000) * HEIGHT, abs=2)


@pytest.mark.parametrize("seconds", [2.0, 60.0])
def test_a_click_is_a_line_at_its_time_in_clips_of_any_length(seconds):
    sound = np.zeros(int(seconds * RATE), np.float32)
    sound[len(sound) // 4] = 1
    columns = brightness(spectrogram(sound, RATE)).mean(0)
    assert columns.argmax() == pytest.approx(WIDTH / 4, abs=WIDTH * 0.04 / seconds + 2)


@pytest.mark.parametrize("samples", [1, 100, RATE])
def test_silence_and_the_shortest_clips_are_drawn_dark(samples):
    assert np.ptp(brightness(spectrogram(np.zeros(samples, np.float32), RATE))) == 0


@pytest.mark.parametrize(
    ("end", "found"),
    [(2.56, [0, 0.5, 1, 1.5, 2, 2.5]), (8, [0, 1, 2, 3, 4, 5, 6, 7]), (300, [0, 50, 100])],
)
def test_ticks_are_round_numbers(end, found):
    assert pictures.ticks(end)[: len(found)] == found and len(pictures.ticks(end)) <= 8


def test_a_preview_has_low_bands_at_the_bottom():
    mel = np.full((50, 64), -5.0)
    mel[:, :8] = 1.0
    pixels = np.asarray(pictures.preview(mel)).astype(float).sum(-1)
    assert pixels[-1].mean() > 2 * pixels[0].mean()


def test_attention_maps_stand_in_rows_of_blocks_and_columns_of_steps():
    diagonal = torch.eye(8)
    maps = {(block, step): diagonal for block in ("a", "b") for step in (0, 4, 9)}
    shares = [Share(block, 4, step, 0.5, 0.25) for block, step in maps]
    image = pictures.attention_maps(maps, shares)
    across, down = pictures.CELL + pictures.GAP, pictures.CELL + pictures.TITLE + pictures.GAP
    assert image.size == (pictures.GAP + 3 * across, pictures.GAP + 2 * down)
    corner = (
        np.asarray(image).astype(float).sum(-1)[pictures.GAP + pictures.TITLE :, pictures.GAP :]
    )
    cell = corner[: pictures.CELL, : pictures.CELL]
    # from the bottom left to the top right
    assert cell[-3, 3] > 2 * cell[3, 3] and cell[3, -3] > 2 * cell[-3, -3]


def test_means_are_by_number_of_rows_and_step():
    shares = [
        Share("a", 8, 0, 0.5, 0.125),
        Share("b", 8, 0, 0.7, 0.125),
        Share("c", 4, 0, 0.3, 0.25),
    ]
    assert means(shares) == [["8", "1", "60.0%", "12.5%"], ["4", "1", "30.0%", "25.0%"]]
