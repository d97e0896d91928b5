"""Sound files: what is written, and what is read of any format, rate and number of channels."""

import numpy as np
import pytest
import soundfile
import torch

from audiolitefocus.audio.files import read_sound, write_sound

PCM_STEP = 2**-15
RESAMPLED = 2e-3  # of a sine, away from the ends


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    return 0.4 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize(
    "suffix, tolerance", [(".wav", PCM_STEP), (".flac", PCM_STEP), (".ogg", 0.05)]
)
def test_sound_files_hold_what_was_written(tmp_path, suffix, tolerance):
    waveform = 0.5 * np.sin(np.arange(48000) * 0.05).astype(np.float32)
    path = write_sound(tmp_path / f"tone{suffix}", waveform, 16000)
    read, rate = soundfile.read(path, dtype="float32")
    assert rate == 16000 and len(read) == 48000
    np.testing.assert_allclose(read, waveform, atol=tolerance)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


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
    "name, message", [("x.mp3", "must end in"), ("no/x.wav", "not a folder"), ("x", "end in")]
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
