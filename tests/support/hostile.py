"""Files from strangers: how they are spoilt, and that they are read or refused in one line."""

import json
import struct
import sys
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.support.command import QUICK, Result

TINY = (*QUICK, "--steps", "1", "--duration", "0.32", "--force", "-o", "x.wav")
fuzz = settings(
    max_examples=300 if "--slow" in sys.argv else 10,
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

HOSTILE = st.sampled_from(
    [0, -1, 2**16, 2**31, 2**63, 10**400, 0.5, 1e308, -1e-308, float("nan"), float("inf"), True]
    + [None, "", "x" * 10**5, "\x1b[31m\0", "../../etc/passwd", [], {}, [1] * 10**5, [[[[]]]]]
    + [{"a": {"b": [1, 2]}}, "DEEP"]
)


def assert_ended_well(result: Result) -> None:
    """Done, or refused in one line."""
    assert "Traceback" not in result.stderr
    assert len(result.errors) == (result.returncode != 0), result.stderr
    assert "\x1b" not in result.stdout + "".join(result.errors)


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def with_value(data, path: list[int], value):
    """Parsed JSON with `value` at the end of a path, each of whose numbers chooses a child."""
    if not path or not isinstance(data, (dict, list)) or not data:
        return value
    keys = sorted(data) if isinstance(data, dict) else range(len(data))
    copy, key = type(data)(data), keys[path[0] % len(data)]
    copy[key] = with_value(data[key], path[1:], value)
    return copy


def spoilt_json(content: bytes, path: list[int], value) -> bytes:
    text = json.dumps(with_value(json.loads(content), path, value))
    return text.replace('"DEEP"', "[" * 5000 + "]" * 5000).encode()


PLACES = st.lists(st.integers(0, 63), min_size=1, max_size=4)


def header_of(content: bytes) -> dict:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length])


def reheaded(content: bytes, header: dict) -> bytes:
    (length,) = struct.unpack("<Q", content[:8])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


@st.composite
def spoilt_safetensors(draw, content: bytes) -> bytes:
    """Truncated, flipped, or with a header that lies."""
    kind = draw(st.sampled_from(["cut", "flip", "length", "dtype", "shape", "offsets", "name"]))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    if kind == "flip":
        at = draw(st.integers(0, len(content) - 1) | st.integers(0, 4000))
        return (
            content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
        )
    if kind == "length":
        return struct.pack("<Q", draw(st.integers(0, 2**64 - 1))) + content[8:]
    header = header_of(content)
    name = draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
    entry = dict(header[name])
    if kind == "dtype":
        entry["dtype"] = draw(st.sampled_from(["I16", "U16", "I32", "BOOL", "F8_E4M3", "F4", "x"]))
    if kind == "shape":
        entry["shape"] = draw(st.lists(st.integers(0, 2**62), max_size=5))
    if kind == "offsets":
        entry["data_offsets"] = draw(st.lists(st.integers(0, 2**62), min_size=2, max_size=2))
    del header[name]
    header["../" * 40 + "\x1b" if kind == "name" else name] = entry
    return reheaded(content, header)
