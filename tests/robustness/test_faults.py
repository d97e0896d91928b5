"""Processes killed at every moment, and several at once: a target is whole or not there, and the
next run recovers.
"""

import json
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolitefocus.atomic import atomic_file, atomic_folder
from audiolitefocus.audio.files import write_sound
from audiolitefocus.checkpoints.bundle import load_config
from audiolitefocus.checkpoints.convert import convert_checkpoint
from tests.support.checkpoints import digests
from tests.support.children import at_once, forked, hidden, moments

RATE = 16000


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_a_sound_file_killed_at_any_moment(suffix, tmp_path):
    target, loud = tmp_path / f"x{suffix}", np.full(RATE, 0.5, np.float32)
    write_sound(target, 0 * loud, RATE)
    for _ in moments(lambda: write_sound(target, loud, RATE)):
        samples, _ = soundfile.read(target)
        assert len(samples) == RATE and min(abs(np.abs(samples).mean() - x) for x in (0, 0.5)) < 0.1
        assert len(hidden(tmp_path)) <= 1  # the next run has cleared the last one's
    assert not hidden(tmp_path)


def write_bundle(destination: Path, number: int) -> None:
    """A stand-in for a bundle, of two files."""
    with atomic_folder(destination, force=True) as folder:
        for name in ("config.json", "more.json"):
            (folder / name).write_text(json.dumps({"format": 1, "unet": number}))


def bundle_number(folder: Path) -> int | None:
    """Which stand-in a folder is, if it is there; and if it is, it is whole."""
    if not folder.exists():
        return None
    first, second = (json.loads((folder / n).read_text()) for n in ("config.json", "more.json"))
    assert first == second
    return first["unet"]


def test_a_folder_killed_at_any_moment(tmp_path):
    target, seen = tmp_path / "bundle", set()
    for moment in moments(lambda: write_bundle(target, 2)):
        seen.add(bundle_number(target))
        write_bundle(target, 1)  # the next run, which puts things right
        assert bundle_number(target) == 1 and not hidden(tmp_path), moment
    assert seen == {None, 1, 2}  # the moments before, between and after the two renames
    assert bundle_number(target) == 2 and not hidden(tmp_path)


def test_a_folder_moved_aside_comes_back(tmp_path):
    target = tmp_path / "bundle"
    write_bundle(target, 1)
    for _ in moments(lambda: write_bundle(target, 2)):
        was_there = target.exists()
        with pytest.raises(ValueError, match="exists; pass --force"), atomic_folder(target):
            pass
        if not was_there:
            assert bundle_number(target) == 1
        assert not hidden(tmp_path)


def kill_conversions(source: Path, folder: Path, wanted: dict, chosen: Iterator[int]) -> int:
    """Conversions killed at these moments; how many were."""
    target, killed = folder / "bundle", 0
    for moment in chosen:
        status = forked(lambda: convert_checkpoint(source, target), kill_at=moment)
        assert status in (0, -signal.SIGKILL)
        killed += status != 0
        if target.exists():
            assert digests(target) == wanted and load_config(target)
            shutil.rmtree(target)
    convert_checkpoint(source, target)
    assert digests(target) == wanted and not hidden(folder)
    return killed


def test_a_conversion_killed_at_some_moments(diffusers_folder, tmp_path):
    convert_checkpoint(diffusers_folder, tmp_path / "wanted")
    wanted = digests(tmp_path / "wanted")
    chosen = random.Random(0).sample(range(1, 90), 5)
    assert kill_conversions(diffusers_folder, tmp_path, wanted, iter(chosen)) >= 3


@pytest.mark.slow
def test_a_conversion_killed_at_many_moments(diffusers_folder, tmp_path):
    convert_checkpoint(diffusers_folder, tmp_path / "wanted")
    wanted = digests(tmp_path / "wanted")
    killed = kill_conversions(diffusers_folder, tmp_path, wanted, iter(range(3, 100, 3)))
    print(f"{killed} conversions killed")
    assert killed > 20


def test_leftovers_of_the_living_and_of_others_stay(tmp_path):
    target = tmp_path / "x.txt"
    stranger = tmp_path / ".x.txt.part"
    stranger.write_text("not ours")
    with atomic_file(target) as first:
        first.write_text("first")
        assert forked(lambda: overwrite(target, "second")) == 0
        assert first.exists() and target.read_text() == "second"
    assert target.read_text() == "first" and hidden(tmp_path) == [stranger.name]


def overwrite(target: Path, text: str) -> None:
    with atomic_file(target) as path:
        path.write_text(text)


# Several at once


def test_two_processes_write_the_same_sound(tmp_path):
    target, ramp = tmp_path / "x.wav", np.linspace(0, 0.5, 40 * RATE, dtype=np.float32)
    for _ in range(5):
        assert at_once(*[lambda s=s: write_sound(target, s * ramp, RATE) for s in (1, -1)]) == [
            0,
            0,
        ]
        samples, _ = soundfile.read(target)
        assert len(samples) == len(ramp) and abs(abs(samples.sum()) - ramp.sum()) < 1
        assert not hidden(tmp_path)


def test_two_processes_replace_the_same_folder(tmp_path):
    target = tmp_path / "bundle"
    for _ in range(10):
        codes = at_once(*[lambda n=n: write_bundle(target, n) for n in (1, 2, 3)])
        assert 0 in codes and set(codes) <= {0, 1}
        assert bundle_number(target) in (1, 2, 3) and not hidden(tmp_path)


def test_two_conversions_into_one_folder(diffusers_folder, tmp_path):
    target = tmp_path / "bundle"
    convert_checkpoint(diffusers_folder, tmp_path / "wanted")
    codes = at_once(*[lambda: convert_checkpoint(diffusers_folder, target)] * 2)
    assert sorted(codes) == [0, 1]  # the second one is told that the folder exists
    assert digests(target) == digests(tmp_path / "wanted") and not hidden(tmp_path)
