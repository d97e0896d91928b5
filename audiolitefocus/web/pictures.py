"""Pictures for the page: spectrograms, previews and attention maps, without matplotlib."""

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from audiolitefocus.attention.watch import Share

WINDOW, HOP = 1024, 512  # samples
RANGE_DB = 80  # below the loudest point
FAINTEST = 1e-3  # share of the brightest pixel of an attention map that is drawn black
WIDTH, HEIGHT = 600, 200  # pixels of a spectrogram, without its axes
LEFT, BOTTOM, MARGIN = 46, 28, 8  # pixels for the axes
CELL, GAP, TITLE = 168, 12, 40  # pixels of an attention map, between them, and above each
PAPER, INK = (17, 17, 24), (200, 200, 208)  # dark in both modes of the page, as the colours are
FONT_SIZE = 14
# from black over violet and orange to cream: equal steps look equal
COLOURS = np.array(
    [(10, 8, 24), (56, 22, 98), (132, 36, 122), (208, 62, 96), (248, 138, 70), (254, 236, 184)]
)


def spectrogram(waveform: np.ndarray, rate: int) -> Image.Image:
    """The power of a waveform (n,) in dB below its loudest point, with axes."""
    picture = _decibels(waveform) / RANGE_DB + 1  # bins frames
    width = LEFT + WIDTH + MARGIN
    image = Image.new("RGB", (width, MARGIN + HEIGHT + BOTTOM), PAPER)
    image.paste(_scaled(picture, WIDTH, HEIGHT), (LEFT, MARGIN))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT_SIZE)
    seconds, highest = len(waveform) / rate, rate / 2000
    for second in ticks(seconds):
        x = LEFT + second / seconds * (WIDTH - 1)
        draw.line((x, MARGIN + HEIGHT, x, MARGIN + HEIGHT + 4), INK)
        anchor = "rt" if x > width - 30 else "mt"
        draw.text((x, MARGIN + HEIGHT + 7), f"{second:g} s", INK, font, anchor=anchor)
    for kilohertz in ticks(highest, 5):
        y = MARGIN + (1 - kilohertz / highest) * (HEIGHT - 1)
        draw.line((LEFT - 5, y, LEFT - 1, y), INK)
        middle = min(max(y, MARGIN + 5), MARGIN + HEIGHT - 5)
        draw.text((LEFT - 7, middle), f"{kilohertz:g} k", INK, font, anchor="rm")
    return image


def preview(mel: np.ndarray) -> Image.Image:
    """Log-mel frames (t, m), the loudest percent the brightest."""
    low, high = np.percentile(mel, (5, 99))
    return _scaled(((mel - low) / max(high - low, 1e-6)).T, LEFT + WIDTH + MARGIN, HEIGHT)


def attention_maps(maps: Mapping[tuple[str, int], Tensor], shares: list[Share]) -> Image.Image:
    """A row for each block, a column for each step, as `Watch` has them."""
    blocks, steps = (list(dict.fromkeys(key[i] for key in maps)) for i in (0, 1))
    across, down = CELL + GAP, CELL + TITLE + GAP
    size = (GAP + across * len(steps), GAP + down * len(blocks))
    image = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT_SIZE)
    known = {(share.block, share.step): share for share in shares}
    for (block, step), seen in maps.items():
        share, brightest = known[block, step], float(seen.max())
        log = np.log(np.clip(seen.numpy() / brightest, FAINTEST, 1)) / -math.log(FAINTEST) + 1
        x, y = GAP + across * steps.index(step), GAP + down * blocks.index(block)
        draw.text((x, y), f"{share.rows} rows, step {step + 1}", INK, font)
        draw.text((x, y + 17), f"{share.share:.0%} in its row", INK, font)
        image.paste(_scaled(log, CELL, CELL), (x, y + TITLE))
    return image


def ticks(end: float, most: int = 8) -> list[float]:
    """Round numbers from 0 up to `end`, at most `most` of them."""
    rough = end / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    count = int(end / step * (1 + 1e-9))
    return [round(step * number, 10) for number in range(count + 1)][:most]


def _decibels(waveform: np.ndarray) -> np.ndarray:
    """(n,) -> power (bins, frames) in dB below the loudest point, cut off at -RANGE_DB."""
    padded = np.pad(waveform, (WINDOW // 2, WINDOW))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    window = np.hanning(WINDOW).astype(np.float32)
    # a block at a time: spectra of an hour would not fit
    blocks = [
        (abs(np.fft.rfft(frames[start : start + 1024] * window)) ** 2).astype(np.float32)
        for start in range(0, len(frames), 1024)
    ]
    power = np.concatenate(blocks).T
    loudest = max(float(power.max()), 1e-10)  # silence stays dark
    return 10 * np.log10(np.maximum(power / loudest, 10 ** (-RANGE_DB / 10)))


def _scaled(picture: np.ndarray, width: int, height: int) -> Image.Image:
    """Values in [0, 1], the first row at the bottom, in colour."""
    columns = picture.shape[1]
    if columns > width:  # the largest of neighbours: clicks must not fall between pixels
        edges = np.arange(width) * columns // width
        picture = np.maximum.reduceat(picture, edges, axis=1)
    places = np.clip(picture[::-1], 0, 1) * (len(COLOURS) - 1)
    channels = [np.interp(places, range(len(COLOURS)), channel) for channel in COLOURS.T]
    image = Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))
    return image.resize((width, height), Image.Resampling.BILINEAR)
