"""How notebooks show clips: a player with the sound in the page, and its log-mel spectrogram."""

import base64
import io
import math
import struct
import zlib

import numpy as np
import soundfile
import torch

from audiolitefocus.codec.mel import WINDOW, log_mel
from audiolitefocus.config import VocoderConfig

# A page holds all that is shown, and saving it writes it again: at most 8 MB of sound.
MOST_CLIPS = 8
MOST_SECONDS = 180.0  # of all clips that are shown together
COLUMNS = 768  # of a spectrogram, at most
RANGE = 9.0  # nats of log magnitude below the loudest point, about 80 dB
HEIGHT = 128  # pixels on the page
# Colours from silent to loud, (red, green, blue), evenly spaced.
COLOURS = (
    (0, 0, 8),
    (60, 15, 110),
    (150, 40, 125),
    (235, 85, 95),
    (255, 165, 105),
    (255, 250, 200),
)


def clips_html(audios: np.ndarray, rate: int, captions: list[str]) -> str:
    """HTML of clips (n, samples), with a caption each.

    Of many clips the first are shown, of long ones the beginning, which the text then says.
    """
    count = min(len(audios), MOST_CLIPS)
    most = int(MOST_SECONDS / max(1, count) * rate)
    figures = []
    for audio, caption in zip(audios[:count], captions[:count], strict=True):
        shown = np.asarray(audio[:most], dtype=np.float32)
        if len(shown) < len(audio):
            caption = f"{caption}, the first {most / rate:g} s here"
        figures.append(_figure(shown, rate, caption))
    if len(audios) > count:
        figures.append(f"<p>and {len(audios) - count} more</p>")
    return "\n".join(figures)


def _figure(audio: np.ndarray, rate: int, caption: str) -> str:
    sound = io.BytesIO()
    soundfile.write(sound, audio, rate, format="FLAC", subtype="PCM_16")
    source = _data("audio/flac", sound.getvalue())
    player = f'<audio controls style="width: 100%" src="{source}"></audio>'
    picture = ""
    if len(audio) > WINDOW // 2:
        picture = (
            f'<img alt="log-mel spectrogram, {len(audio) / rate:g} s" '
            f'style="width: 100%; height: {HEIGHT}px; display: block" '
            f'src="{_data("image/png", spectrogram_png(audio, rate))}">'
        )
    style = f"max-width: {COLUMNS}px; margin: 0.5em 0"
    text = f"<figcaption>{caption}</figcaption>"
    return f'<figure style="{style}">{picture}{player}{text}</figure>'


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def spectrogram_png(audio: np.ndarray, rate: int) -> bytes:
    """A PNG of the log-mel spectrogram of a clip of more than 512 samples: low frequencies below.

    A clip that has more frames than the picture has columns is looked at once a column.
    """
    usual = VocoderConfig().hop_length
    hop = max(usual, math.ceil(len(audio) / (COLUMNS - 1)))
    config = VocoderConfig(sampling_rate=rate, upsample_rates=(hop,))
    mel = log_mel(torch.from_numpy(np.nan_to_num(audio))[None], config)[0].T.flip(0)  # m t
    level = (1 + (mel - mel.max()) / RANGE).clamp(0, 1)
    return _png((level * 255).round().to(torch.uint8).numpy())


def _png(levels: np.ndarray) -> bytes:
    """A PNG of `COLOURS` (ISO/IEC 15948), from levels (rows, columns) of 0 to 255."""
    place = np.linspace(0, 255, len(COLOURS))
    palette = [np.interp(np.arange(256), place, channel) for channel in zip(*COLOURS, strict=True)]
    rows, columns = levels.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)  # 8 bits, of a palette
    scanlines = b"".join(b"\0" + row.tobytes() for row in levels)  # each unfiltered
    chunks = (
        (b"IHDR", header),
        (b"PLTE", np.stack(palette, 1).round().astype(np.uint8).tobytes()),
        (b"IDAT", zlib.compress(scanlines, 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
