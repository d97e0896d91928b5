"""Processes that are killed, interrupted, or write the same thing at once: what is there is whole,
and the next run makes what is missing.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolitefocus.atomic import atomic_folder
from audiolitefocus.audio.files import write_sound
from audiolitefocus.checkpoints.bundle import sha256
from tests.support.checkpoints import digests
from tests.support.children import PATIENCE, forked, hidden, kill_after, start, wait_until
from tests.support.command import QUICK, assert_failed, run

RATE = 16000
STEP_SECONDS = 10  # an interrupt waits for a step of some 20 ms; the rest is Python's own exit


def described(sound: Path) -> bool:
    """True if a sound and the JSON beside it belong together."""
    return json.loads(sound.with_suffix(".json").read_text())["sha256"] == sha256(sound)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".")


# Killed before, between and after the renames


@pytest.mark.parametrize("renames", [0, 1])
def test_a_sound_file_is_the_old_one_or_the_new_one(renames, tmp_path):
    target = tmp_path / "x.wav"
    write_sound(target, np.zeros(RATE, np.float32), RATE)
    kill_after(renames, lambda: write_sound(target, np.full(RATE, 0.5, np.float32), RATE))
    samples, _ = soundfile.read(target)
    assert len(samples) == RATE and (samples == renames * 0.5).all()
    assert len(hidden(tmp_path)) == 1 - renames


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_clip_appears_after_its_json(renames, tmp_path):
    command = ("generate", "x", *QUICK, "-o", "x.wav")
    kill_after(renames, lambda: run(*command, cwd=tmp_path))
    assert names(tmp_path) == ["x.json", "x.wav"][:renames]
    again = run(*command, cwd=tmp_path)
    if renames == 2:
        assert_failed(again, "x.wav exists", "--force")
    else:
        assert again.returncode == 0, again.stderr
    assert described(tmp_path / "x.wav")


def test_a_sound_whose_json_is_of_another_one_is_made_again(tmp_path):
    (tmp_path / "prompts").write_text("bell|x")
    command = ("generate", "--prompts", "prompts", "-o", ".", *QUICK)
    assert run(*command, cwd=tmp_path).returncode == 0
    first = sha256(tmp_path / "x.wav")
    kill_after(1, lambda: run(*command, "--seed", "8", "--force", cwd=tmp_path))
    assert sha256(tmp_path / "x.wav") == first and not described(tmp_path / "x.wav")
    again = run(*command, "--seed", "8", cwd=tmp_path)
    assert "1 made, 0 there already" in again.stdout and described(tmp_path / "x.wav")


@pytest.mark.parametrize("renames", [1, 2, 3])
def test_a_batch_keeps_the_clips_that_are_finished(renames, tmp_path):
    (tmp_path / "prompts").write_text("bell|a\nwind|b")
    command = ("generate", "--prompts", "prompts", "-o", "clips", *QUICK)
    kill_after(renames, lambda: run(*command, cwd=tmp_path))
    assert names(tmp_path / "clips") == ["a.json", "a.wav", "b.json", "b.wav"][:renames]
    finished = renames // 2
    again = run(*command, cwd=tmp_path)
    assert f"{2 - finished} made, {finished} there already" in again.stdout, again.stderr
    assert all(described(tmp_path / "clips" / name) for name in ("a.wav", "b.wav"))


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


@pytest.mark.parametrize("renames, there", enumerate([1, None, 2, 2]))
def test_a_bundle_is_the_old_one_or_the_new_one(renames, there, tmp_path):
    target = tmp_path / "bundle"
    write_bundle(target, 1)
    kill_after(renames, lambda: write_bundle(target, 2))
    assert bundle_number(target) == there
    with pytest.raises(ValueError, match="exists; pass --force"), atomic_folder(target):
        pass
    assert bundle_number(target) == (there or 1)  # where it was moved aside, it has come back
    write_bundle(target, 3)
    assert bundle_number(target) == 3


# Killed outright, or interrupted: processes of their own, as a person starts them


def kill(process) -> None:
    process.kill()
    assert process.wait(PATIENCE) == -signal.SIGKILL


def test_generate_killed_while_it_denoises(tmp_path):
    process = start("generate", "x", *QUICK, "--steps", "1000", "-o", "x.wav", cwd=tmp_path)
    wait_until(lambda: "/1000" in (tmp_path / "said").read_text(), process, tmp_path)
    kill(process)
    assert os.listdir(tmp_path) == ["said"]
    assert run("generate", "x", *QUICK, "-o", "x.wav", cwd=tmp_path).returncode == 0


def prompts_with_a_long_one(folder: Path) -> tuple[str, ...]:
    """A command whose first clip is made at once and whose second one takes half a minute."""
    lines = [json.dumps({"prompt": p, "name": p, "steps": n}) for p, n in (("a", 2), ("b", 900))]
    (folder / "prompts").write_text("\n".join(lines))
    return ("generate", "--prompts", "prompts", "--out", "clips", *QUICK)


def test_generate_prompts_killed_at_the_second_clip(tmp_path):
    command = prompts_with_a_long_one(tmp_path)
    process = start(*command, cwd=tmp_path)
    wait_until((tmp_path / "clips" / "a.wav").exists, process, tmp_path)
    kill(process)
    assert names(tmp_path / "clips") == ["a.json", "a.wav"] and not hidden(tmp_path / "clips")
    prompts = tmp_path / "prompts"
    prompts.write_text(prompts.read_text().replace("900", "2"))
    again = run(*command, cwd=tmp_path)
    assert "1 made, 1 there already" in again.stdout, again.stderr


def test_convert_killed_while_it_writes(diffusers_folder, tmp_path):
    process = start("convert", diffusers_folder, "bundle", cwd=tmp_path)
    wait_until(lambda: list(tmp_path.glob(".bundle.*.part/*")), process, tmp_path)
    kill(process)
    (left,) = hidden(tmp_path)  # one part; nothing reads it
    assert not (tmp_path / "bundle").exists()
    assert run("convert", diffusers_folder, "bundle", cwd=tmp_path).returncode == 0
    assert run("info", "bundle", cwd=tmp_path).returncode == 0 and hidden(tmp_path) == [left]


def test_an_interrupt_stops_within_a_step_and_keeps_what_is_finished(tmp_path):
    process = start(*prompts_with_a_long_one(tmp_path), cwd=tmp_path)
    wait_until(lambda: "a.wav (seed" in (tmp_path / "said").read_text(), process, tmp_path)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(PATIENCE)
    said = (tmp_path / "said").read_text()
    assert process.returncode == 130 and "Traceback" not in said
    assert time.monotonic() - began < STEP_SECONDS
    assert sorted(os.listdir(tmp_path / "clips")) == ["a.json", "a.wav"]


def test_a_json_is_kept_unless_a_killed_process_left_it(tmp_path):
    command, found = ("generate", "rain", *QUICK, "-o", "x.wav"), tmp_path / "x.json"
    assert run(*command, cwd=tmp_path).returncode == 0
    left, other = found.read_text(), (tmp_path / "x.wav").rename(tmp_path / "x.flac")
    for contents in (left, '{"mine": 1}'):  # of another sound, and of another program
        found.write_text(contents)
        assert_failed(run(*command, cwd=tmp_path), "x.json exists; pass --force")
        assert found.read_text() == contents
        other.unlink(missing_ok=True)
    found.write_text(left)
    assert run(*command, cwd=tmp_path).returncode == 0 and described(tmp_path / "x.wav")


# Several at once


def test_two_processes_write_the_same_sound(tmp_path):
    target, ramp = tmp_path / "x.wav", np.linspace(0, 0.5, 40 * RATE, dtype=np.float32)
    for _ in range(3):
        assert forked(*[lambda s=s: write_sound(target, s * ramp, RATE) for s in (1, -1)]) == [0, 0]
        samples, _ = soundfile.read(target)
        assert len(samples) == len(ramp) and abs(abs(samples.sum()) - ramp.sum()) < 1
        assert not hidden(tmp_path)


def test_three_processes_replace_the_same_folder(tmp_path):
    target = tmp_path / "bundle"
    for _ in range(10):
        codes = forked(*[lambda n=n: write_bundle(target, n) for n in (1, 2, 3)])
        assert 0 in codes and set(codes) <= {0, 1}
        assert bundle_number(target) in (1, 2, 3) and not hidden(tmp_path)


def test_two_conversions_into_one_folder(diffusers_folder, tmp_path):
    def convert() -> None:
        assert run("convert", diffusers_folder, "bundle", cwd=tmp_path).returncode == 0

    convert()
    wanted = digests(tmp_path / "bundle")
    shutil.rmtree(tmp_path / "bundle")
    assert sorted(forked(convert, convert)) == [0, 1]  # the second one finds that it exists
    assert digests(tmp_path / "bundle") == wanted and not hidden(tmp_path)
