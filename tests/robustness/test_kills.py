"""Clips killed at every moment: a sound is whole and beside the JSON that describes it, or what was
there before; and the next run recovers.
"""

import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.batch.clips import ClipRequest, is_saved, read_recipe, save_clip
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.options import GenerationOptions
from audiolitefocus.pipeline import AudioOutput
from tests.support.children import FILE_EVENTS, FORK, at_once, forked, hidden, moments
from tests.support.command import QUICK, run


@pytest.fixture(scope="module")
def pipe(tiny_bundle):
    return AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu")


def loud(level: float, samples: int = 1600) -> AudioOutput:
    return AudioOutput(np.full((1, samples), level, np.float32), 16000)


def described(sound: Path) -> bool:
    """Whether the JSON beside a sound is of this very sound."""
    return read_recipe(sound.with_suffix(".json")).get("sha256") == sha256(sound)


def test_a_new_clip_killed_at_any_moment(pipe, tmp_path):
    clip, seen = ClipRequest("a", tmp_path / "a.wav", GenerationOptions(seed=0)), set()
    for _ in moments(lambda: save_clip(pipe, clip, loud(0.5))):
        there = {path.suffix for path in tmp_path.iterdir() if path.name[0] != "."}
        seen.add(frozenset(there))
        assert is_saved(pipe, clip) == (".wav" in there)
        remove(tmp_path)
    assert seen == {frozenset(), frozenset({".json"}), frozenset({".json", ".wav"})}
    assert is_saved(pipe, clip) and not hidden(tmp_path)


def test_a_clip_made_anew_is_killed_at_any_moment(pipe, tmp_path):
    """There is always a sound, and one without its own JSON is not taken for finished."""
    clip, seen = ClipRequest("a", tmp_path / "a.wav", GenerationOptions(seed=0)), set()
    save_clip(pipe, clip, loud(0.25))
    for _ in moments(lambda: save_clip(pipe, clip, loud(0.5))):
        samples, _ = soundfile.read(clip.path)
        assert len(samples) == 1600 and samples.min() == samples.max()
        seen.add((samples[0], is_saved(pipe, clip)))
        save_clip(pipe, clip, loud(0.25))
        assert is_saved(pipe, clip) and not hidden(tmp_path)
    assert seen == {(0.25, True), (0.25, False), (0.5, True)}


def test_two_processes_write_the_same_clip(pipe, tmp_path):
    clip = ClipRequest("a", tmp_path / "a.wav", GenerationOptions(seed=0))
    works = [lambda s=s: save_clip(pipe, clip, loud(s, 160_000)) for s in (0.25, 0.5, 0.75)]
    for _ in range(10):
        assert at_once(*works) == [0, 0, 0]
        assert is_saved(pipe, clip) and not hidden(tmp_path)


def test_a_json_is_kept_unless_a_killed_process_left_it(tmp_path):
    command, found = ("generate", "rain", *QUICK, "-o", "x.wav"), tmp_path / "x.json"
    assert run(*command, cwd=tmp_path).returncode == 0
    left, other = found.read_text(), (tmp_path / "x.wav").rename(tmp_path / "x.flac")
    for contents in (left, '{"mine": 1}'):  # of another sound, and of another program
        found.write_text(contents)
        result = run(*command, cwd=tmp_path)
        assert result.returncode == 1 and "x.json exists; pass --force" in result.stderr
        assert found.read_text() == contents
        other.unlink(missing_ok=True)
    found.write_text(left)
    assert run(*command, cwd=tmp_path).returncode == 0 and described(tmp_path / "x.wav")


def remove(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def dealings(work: Callable[[], object]) -> int:
    """How often `work` deals with files: the moments at which `forked` can kill it."""
    here, there = FORK.Pipe(duplex=False)

    def child() -> None:
        counts = [0]
        sys.addaudithook(lambda event, _: counts.append(1) if event.startswith(FILE_EVENTS) else 0)
        work()
        there.send(sum(counts))

    assert forked(child) == 0
    return here.recv()


def chosen(total: int, count: int) -> list[int]:
    """Moments to kill at: some of all, and all of the last."""
    return sorted({*random.Random(0).sample(range(1, total), count), *range(total - 30, total)})


@pytest.mark.slow
def test_generate_killed_at_many_moments(tmp_path):
    command = ("generate", "x", *QUICK, "-o", "x.wav")

    def work() -> None:
        assert run(*command, cwd=tmp_path).returncode == 0

    work()  # once here: children have everything imported then
    wanted = sha256(tmp_path / "x.wav")
    remove(tmp_path)
    total, killed = dealings(work), 0
    for moment in chosen(total, 12):  # each is the next run of the one before, and not in its way
        status = forked(work, kill_at=moment)
        assert status in (0, -signal.SIGKILL)
        killed += status != 0
        if (tmp_path / "x.wav").exists():
            assert described(tmp_path / "x.wav") and sha256(tmp_path / "x.wav") == wanted
            remove(tmp_path)
    assert forked(work) == 0 and sha256(tmp_path / "x.wav") == wanted
    assert described(tmp_path / "x.wav") and not hidden(tmp_path)
    print(f"{killed} runs of generate killed at one of {total} moments")
    assert killed > 30


@pytest.mark.slow
def test_a_batch_killed_at_many_moments(tmp_path):
    names = ("a", "b", "c")
    (tmp_path / "prompts").write_text("\n".join(f"bell {name}|{name}" for name in names))
    command = ("generate", "--prompts", "prompts", "--out", "clips", "--batch-size", "2", *QUICK)
    clips = [tmp_path / "clips" / f"{name}.wav" for name in names]

    def work() -> None:
        assert run(*command, cwd=tmp_path).returncode == 0

    work()
    wanted = [sha256(clip) for clip in clips]
    shutil.rmtree(tmp_path / "clips")
    total, killed, kept = dealings(work), 0, 0
    for moment in chosen(total, 12):
        before = {clip: clip.stat().st_mtime_ns for clip in clips if clip.exists()}
        if len(before) == len(clips):
            shutil.rmtree(tmp_path / "clips")
            before = {}
        status = forked(work, kill_at=moment)
        assert status in (0, -signal.SIGKILL)
        killed += status != 0
        assert all(described(clip) for clip in clips if clip.exists())
        assert before == {clip: clip.stat().st_mtime_ns for clip in before}  # not made again
        kept += len(before)
    assert forked(work) == 0 and not hidden(tmp_path / "clips")
    assert [sha256(clip) for clip in clips] == wanted
    print(
        f"{killed} batches killed at one of {total} moments; {kept} finished clips found and kept"
    )
    assert killed > 20 and kept
