"""Sound files: what is written, and what is read of any format, rate and number of channels."""

import io
import re
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolitefocus.audio.files import read_sound, sound_length, write_sound
from audiolitefocus.audio.formats import (
    COMMENT_BYTES,
    SOUND_SUFFIXES,
    encode_sound,
    read_comment,
)

PCM_STEP = 2**-15
LOSSY = 0.1  # of a tone, at the encoders' default qualities
RESAMPLED = 2e-3  # of a sine, away from the ends


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    return 0.4 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize(
    "suffix, bits, subtype, step",
    [
        (".wav", None, "PCM_16", PCM_STEP),
        (".wav", 24, "PCM_24", PCM_STEP / 256),
        (".wav", 32, "FLOAT", 0),
        (".flac", None, "PCM_16", PCM_STEP),
        (".flac", 24, "PCM_24", PCM_STEP / 256),
    ],
)
def test_sound_files_hold_what_was_written(tmp_path, suffix, bits, subtype, step):
    waveform = 0.5 * np.sin(np.arange(48000) * 0.05).astype(np.float32)
    path = write_sound(tmp_path / f"tone{suffix}", waveform, 16000, bits=bits)
    read, rate = soundfile.read(path, dtype="float32")
    assert rate == 16000 and soundfile.info(path).subtype == subtype
    np.testing.assert_allclose(read, waveform, rtol=0, atol=step / 2)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("length", [16000, 16050, 16160, 16300])
@pytest.mark.parametrize("suffix", [".ogg", ".opus", ".mp3"])
def test_compressed_files_hold_the_sound_to_its_end(tmp_path, suffix, length):
    """Opus gets a few milliseconds of silence where it would end in a click."""
    waveform = tone(16000, length / 16000).astype(np.float32)
    path = write_sound(tmp_path / f"tone{suffix}", iter(np.split(waveform, [5000])), 16000)
    read, rate = soundfile.read(path, dtype="float32")
    assert rate == 16000 and 0 <= len(read) - length <= (320 if suffix == ".opus" else 0)
    error = read[:length] - waveform
    assert np.sqrt(np.mean(error**2) / np.mean(waveform**2)) < LOSSY
    assert np.abs(error[-100:]).max() < 0.1  # a click would have the level of the tone, 0.4


@pytest.mark.parametrize("suffix, rate", [(".opus", 22050), (".opus", 44100), (".mp3", 96000)])
def test_rates_that_a_format_lacks_are_named(tmp_path, suffix, rate):
    with pytest.raises(ValueError, match=f"has no {rate} Hz, only 8000, .*48000; choose .wav"):
        write_sound(tmp_path / f"x{suffix}", np.zeros(100, np.float32), rate)
    assert not list(tmp_path.iterdir())


COMMENTS = ["short", "x" * 2100, "y" * COMMENT_BYTES]


@pytest.mark.parametrize("comment", COMMENTS, ids=len)
@pytest.mark.parametrize("suffix", SOUND_SUFFIXES)
def test_a_comment_of_any_length_comes_back_and_the_sound_with_it(tmp_path, suffix, comment):
    path, waveform = tmp_path / f"x{suffix}", tone(16000).astype(np.float32)
    encode_sound(path, path, waveform, 16000, comment=comment)
    assert read_comment(path) == comment
    plain = write_sound(tmp_path / f"plain{suffix}", waveform, 16000)
    assert read_comment(plain) == ""
    assert torch.equal(read_sound(path, 16000), read_sound(plain, 16000))


@pytest.mark.parametrize("suffix", SOUND_SUFFIXES)
def test_a_comment_is_where_other_programs_look_for_it(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    text = "by the way, " * 4
    encode_sound(path, path, tone(16000).astype(np.float32), 16000, comment=text)
    field = {".wav": b"icmt", ".mp3": b"comm"}.get(suffix, b"comment=")
    assert text.encode() in path.read_bytes().lower().partition(field)[2][:100]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 16000 * 2), st.binary(max_size=40))
def test_a_damaged_wav_has_a_comment_or_none(place, bytes_):
    """Wherever its bytes are overwritten: never an error of Python's own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.wav"
        encode_sound(path, path, np.zeros(8000, np.float32), 16000, comment="a" * 500)
        content = bytearray(path.read_bytes())
        content[place % 700 : place % 700 + len(bytes_)] = bytes_
        path.write_bytes(content)
        try:
            assert len(read_comment(path)) <= 1 << 20
        except ValueError as error:
            assert "cannot be read as a sound file" in str(error)


def test_loud_samples_are_clipped_not_wrapped(tmp_path):
    path = write_sound(tmp_path / "loud.wav", np.array([2.0, -2.0], np.float32), 16000)
    read, _ = soundfile.read(path)
    np.testing.assert_allclose(read, [1, -1], atol=PCM_STEP)


@pytest.mark.parametrize("waveform", [np.array([0, np.nan]), np.array([np.inf]), np.zeros((2, 2))])
def test_an_invalid_waveform_is_not_written(tmp_path, waveform):
    (tmp_path / "kept.wav").write_bytes(b"before")
    with pytest.raises(ValueError, match="finite samples"):
        write_sound(tmp_path / "kept.wav", waveform, 16000)
    assert (tmp_path / "kept.wav").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "name, message", [("x.aiff", "must end in"), ("no/x.wav", "not a folder"), ("x", "end in")]
)
def test_paths_that_cannot_be_written_are_named(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        write_sound(tmp_path / name, np.zeros(10, np.float32), 16000)


@pytest.mark.parametrize("name, subtype", [("x.wav", "FLOAT"), ("x.flac", None), ("x.aiff", None)])
@pytest.mark.parametrize("rate", [8000, 11127, 16000, 22254, 44100, 48000])
def test_any_format_and_rate(tmp_path, name, subtype, rate):
    soundfile.write(tmp_path / name, tone(rate), rate, subtype)
    found = read_sound(tmp_path / name, 16000)
    assert found.dtype == torch.float32 and found.shape == (8000,)
    np.testing.assert_allclose(found[400:-400], tone(16000)[400:-400], atol=RESAMPLED)


def test_channels_are_mixed_down(tmp_path):
    left, right = tone(16000), np.linspace(-0.5, 0.5, 8000)
    soundfile.write(tmp_path / "x.wav", np.stack([left, right], 1), 16000, "FLOAT")
    found = read_sound(tmp_path / "x.wav", 16000)
    np.testing.assert_allclose(found, (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_sixteen_bits_come_back_bit_for_bit(tmp_path, suffix):
    samples = np.random.default_rng(0).integers(-32768, 32768, 40000).astype(np.int16)
    soundfile.write(tmp_path / f"x{suffix}", samples, 16000)
    write_sound(tmp_path / f"y{suffix}", read_sound(tmp_path / f"x{suffix}", 16000), 16000)
    again, _ = soundfile.read(tmp_path / f"y{suffix}", dtype="int16")
    np.testing.assert_array_equal(again, samples)


def test_a_waveform_in_blocks_is_the_same_file(tmp_path):
    waveform = torch.from_numpy(tone(16000, 2.0)).float()
    whole = write_sound(tmp_path / "whole.wav", waveform, 16000)
    parts = write_sound(tmp_path / "parts.wav", iter(waveform.split(4321)), 16000)
    assert whole.read_bytes() == parts.read_bytes()


def test_blocks_that_fail_leave_nothing(tmp_path):
    def blocks():
        yield torch.zeros(1000)
        raise RuntimeError("the source ran dry")

    with pytest.raises(RuntimeError, match="ran dry"):
        write_sound(tmp_path / "x.wav", blocks(), 16000)
    assert not list(tmp_path.iterdir())


def cut(path, share: float) -> None:
    contents = path.read_bytes()
    path.write_bytes(contents[: int(len(contents) * share)])


def make(folder, case: str):
    path = folder / ("x.flac" if case == "cut flac" else "x.wav")
    if case == "absent":
        return path
    samples = {"empty": tone(16000, 0), "NaN": np.full(100, np.nan), "slow": tone(1000)}
    rate = 1000 if case == "slow" else 16000
    soundfile.write(path, samples.get(case, tone(16000)), rate, "FLOAT" if case == "NaN" else None)
    if case.startswith("cut"):
        cut(path, 0.5)
    elif case == "text":
        path.write_text("not a sound at all")
    elif case == "long":
        soundfile.write(path, np.zeros(3601 * 4000, np.int16), 4000, "PCM_U8")
    return path


FAULTS = {
    "absent": "no such file",
    "empty": "empty",
    "NaN": "NaN or infinite",
    "slow": "1000 Hz",
    "cut wav": "cut short",
    "cut flac": "cannot be read|cut short",
    "text": "cannot be read",
    "long": "3601 s",
}


@pytest.mark.parametrize("case", FAULTS)
def test_bad_files_are_refused_in_one_line(tmp_path, case):
    path = make(tmp_path, case)
    with pytest.raises(ValueError, match=FAULTS[case]) as caught:
        read_sound(path, 16000)
    assert len(str(caught.value).splitlines()) == 1 and path.name in str(caught.value)


# Headers that promise something else than there is


COMPRESSED = {
    "x.mp3": {"format": "MP3"},
    "x.ogg": {"format": "OGG", "subtype": "VORBIS"},
    "x.opus": {"format": "OGG", "subtype": "OPUS"},
    "x.flac": {"format": "FLAC"},
}
SAMPLES = 64000  # four seconds


@pytest.fixture(scope="module")
def compressed() -> dict[str, bytes]:
    """The same sound in every compressed format."""
    noise = np.random.default_rng(0).standard_normal(SAMPLES)
    sound = (tone(16000, SAMPLES / 16000) + 0.05 * noise).astype(np.float32)
    made = {}
    for name, kind in COMPRESSED.items():
        file = io.BytesIO()
        soundfile.write(file, sound, 16000, **kind)
        made[name] = file.getvalue()
    return made


@pytest.mark.parametrize("name", COMPRESSED)
def test_whole_compressed_files_are_read_whole(compressed, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(compressed[name])
    assert len(read_sound(path, 16000)) == sound_length(path)[0] == SAMPLES
    assert len(read_sound(io.BytesIO(compressed[name]), 16000)) == SAMPLES


@settings(max_examples=120, deadline=None, derandomize=True)
@given(st.sampled_from(list(COMPRESSED)), st.floats(0, 1), st.integers(0, 40))
def test_a_compressed_file_cut_anywhere_is_refused(compressed, name, share, before_the_end):
    """Anywhere, or a few bytes before its end."""
    whole = compressed[name]
    stop = int(share * len(whole)) if before_the_end % 2 else len(whole) - before_the_end // 2
    content = io.BytesIO(whole[:stop])
    try:
        found = len(read_sound(content, 16000))
    except ValueError as error:
        assert re.search("cut short|cannot be read|does not say|is empty", str(error))
        assert len(str(error).splitlines()) == 1
    else:  # two frames more or less, where the length is an estimate
        assert found == SAMPLES if name != "x.mp3" else SAMPLES - found <= 2 * 1152
        assert stop == len(whole) or name == "x.mp3"


@pytest.mark.parametrize("name", COMPRESSED)
def test_damaged_compressed_files_are_refused(compressed, tmp_path, name):
    content = bytearray(compressed[name])
    middle = len(content) // 2
    content[middle : middle + 900] = np.random.default_rng(1).bytes(900)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="damaged|cut short|cannot be read"):
        read_sound(tmp_path / name, 16000)


def test_how_much_of_a_damaged_file_can_be_read_is_said(compressed, tmp_path):
    path = tmp_path / "x.mp3"
    path.write_bytes(compressed["x.mp3"][: len(compressed["x.mp3"]) // 2])
    with pytest.raises(
        ValueError, match=r"cut short: (\d+) of 64000 samples can be read"
    ) as caught:
        read_sound(path, 16000)
    assert 25_000 < int(re.search(r"(\d+) of", str(caught.value))[1]) < 33_000


def test_a_stream_of_unknown_length_is_read_to_its_end(compressed, tmp_path):
    content = bytearray(compressed["x.flac"])
    content[21] &= 0xF0  # the last 36 bits of these are the number of samples, and 0 is unknown
    content[22:26] = bytes(4)
    (tmp_path / "x.flac").write_bytes(content)
    (tmp_path / "y.flac").write_bytes(compressed["x.flac"])
    found, known = (read_sound(tmp_path / name, 16000) for name in ("x.flac", "y.flac"))
    assert torch.equal(found, known)


def test_an_mp3_without_its_length_is_read_whole_or_refused(tmp_path):
    """Frames of many sizes, and the first, which says how many there are, gone."""
    time = np.arange(30 * 16000) / 16000
    noise = np.random.default_rng(0).standard_normal(len(time))
    sound = 0.3 * np.sin(2 * np.pi * 440 * time) * (time < 5) + 0.2 * noise * (time > 20)
    file = io.BytesIO()
    soundfile.write(file, sound, 16000, format="MP3", bitrate_mode="VARIABLE")
    content = file.getvalue()
    assert len(read_sound(io.BytesIO(content), 16000)) == len(time)
    second = content.index(content[:2], 4)
    bare = content[second:]
    assert b"Xing" not in bare and b"Info" not in bare
    try:
        found = len(read_sound(io.BytesIO(bare), 16000))
        assert abs(found - len(time)) < 4 * 1152
    except ValueError as error:
        assert "does not say its length" in str(error)


def wav(body: bytes, *, riff: int, data: int, width: int = 2, channels: int = 1) -> bytes:
    """A WAV file whose header says what it is told."""
    align = width * channels
    kind = struct.pack("<HHIIHH", 1, channels, 16000, 16000 * align, align, 8 * width)
    sizes = struct.pack("<I", riff % 2**32), struct.pack("<I", data % 2**32)
    return b"RIFF" + sizes[0] + b"WAVEfmt \x10\0\0\0" + kind + b"data" + sizes[1] + body


layouts = st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(1, 300))
STREAMED = [0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layouts, st.integers(-64, 64) | st.sampled_from(STREAMED), st.integers(0, 3), st.booleans())
def test_a_wrong_header_over_whole_samples_does_no_harm(layout, riff, more, streamed):
    """RIFF sizes of any kind; data sizes of streams, or beyond the end by less than a block; no
    pad byte after an odd number of bytes.
    """
    width, channels, count = layout
    body = np.random.default_rng(0).bytes(width * channels * count)
    data = STREAMED[more] if streamed else len(body) + min(more, width * channels - 1)
    riff = riff if riff > 1000 else 36 + len(body) + riff
    content = wav(body, riff=riff, data=data, width=width, channels=channels)
    assert len(read_sound(io.BytesIO(content), 16000)) == count


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(500, 3000), st.integers(100, 499), st.integers(-8, 8))
def test_missing_samples_are_an_error(count, there, riff):
    body = bytes(range(200)) * 30
    content = wav(body[: 2 * there], riff=36 + 2 * count + riff, data=2 * count)
    with pytest.raises(ValueError, match=f"cut short: {2 * there} of {2 * count} bytes"):
        read_sound(io.BytesIO(content), 16000)
