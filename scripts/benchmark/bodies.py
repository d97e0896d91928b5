"""Bodies of requests that a server must refuse, with the status that each must be answered with."""

import base64
import io
import json
from collections.abc import AsyncIterator

import numpy as np
import soundfile

JSON = {"Content-Type": "application/json"}
BIG = 33 << 20  # bytes, more than the server takes
PART = 1 << 20  # bytes of a body that does not say its size


def silence(seconds: int) -> str:
    """A sound file that is far smaller than its samples, in base64."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(seconds * 16000, np.int16), 16000, format="FLAC")
    return base64.b64encode(file.getvalue()).decode()


def asking(**fields: object) -> bytes:
    """A request for a sound."""
    return json.dumps({"input": "x", **fields}).encode()


async def unannounced() -> AsyncIterator[bytes]:
    """A body that is too large, and does not say so before."""
    for _ in range(BIG // PART):
        yield b" " * PART


# name -> content, headers, status
HOSTILE: dict[str, tuple] = {
    "no JSON": (b"\x00\xff" * 100, JSON, 400),
    "deep": (b'{"a":' * 2000 + b"1" + b"}" * 2000, JSON, 400),
    "many entries": (b"[" + b"0," * 100_000 + b"0]", JSON, 400),
    "a file of the server": (asking(init_audio="/etc/passwd"), JSON, 400),
    "a recording of an hour": (asking(continue_audio=silence(3600)), JSON, 400),
    "a recording that is none": (asking(init_audio="AAAA" * 1000), JSON, 400),
    "far too long": (asking(audio_length=3600), JSON, 400),
    "no length at all": (b'{"input":"x","audio_length":NaN}', JSON, 400),
    "a long prompt": (asking(input="x" * 1_000_000), JSON, 400),
    "a form": (b"input=x", {"Content-Type": "application/x-www-form-urlencoded"}, 415),
    "too large": (b" " * BIG, JSON, 413),
    "too large, unannounced": (unannounced, JSON, 413),
}
