"""Runs of many clips: resuming, failures, independence of the batch size, and sharing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from audiolitefocus import AudioOutput, GenerationOptions
from audiolitefocus.batch import run as batch
from audiolitefocus.batch.prompts import read_prompts
from audiolitefocus.batch.requests import ClipRequest
from audiolitefocus.batch.run import BatchRun, group, own_device, own_share
from tests.support.command import QUICK as COMMAND
from tests.support.command import run

BATCH_TOLERANCE = 1e-4  # rounding of batched matrix products, and of 16 bit samples
QUICK = GenerationOptions(audio_length_in_s=0.64, num_inference_steps=2)


@pytest.fixture
def quick(monkeypatch):
    """Clips without networks: a level by the seed. The list of batches that were made."""
    batches = []

    def make_clips(pipe, clips, on_step, drafter=None):
        batches.append([clip.prompt for clip in clips])
        if any("broken" in clip.prompt for clip in clips):
            raise RuntimeError("it is\nbroken")
        for step in range(clips[0].options.num_inference_steps):
            on_step(step, 0, clips)
        waves = [np.full(160, clip.seed % 7 / 8, np.float32) for clip in clips]
        return [AudioOutput(wave[None], 16000) for wave in waves]

    monkeypatch.setattr(batch, "make_clips", make_clips)
    return batches


def test_batches_hold_clips_that_differ_in_prompt_and_seed_alone(tmp_path):
    options = [
        GenerationOptions(seed=seed, num_inference_steps=steps)
        for seed, steps in ((1, 5), (2, 9), (3, 5), (4, 5))
    ]
    options += [GenerationOptions(seed=seed, unconditional="empty_prompt") for seed in (1, 2)]
    clips = [ClipRequest(str(n), tmp_path / f"{n}.wav", each) for n, each in enumerate(options)]
    names = [[clip.prompt for clip in clips] for clips in group(clips, 2)]
    assert names == [["0", "2"], ["3"], ["1"], ["4"], ["5"]]


def test_a_second_run_makes_only_what_is_missing(pipe, quick, write_prompts, tmp_path):
    clips = read_prompts(write_prompts("a", "b", "c"), tmp_path / "out", QUICK)
    assert len(BatchRun(pipe, clips, batch_size=8).run().made) == 3
    assert BatchRun(pipe, clips).run().kept == [str(clip.path) for clip in clips]
    clips[0].path.unlink()  # the sound is gone
    clips[1].path.write_bytes(b"another sound")
    assert len(BatchRun(pipe, clips).run().made) == 2
    assert quick[0] == ["a", "b", "c"]


def test_clips_made_with_other_settings_are_replaced_by_force_alone(
    pipe, quick, write_prompts, tmp_path
):
    clips = read_prompts(write_prompts("a", "b", "c"), tmp_path / "out", QUICK)
    BatchRun(pipe, clips).run()
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    other = read_prompts(
        write_prompts("a", "b", '{"prompt": "c", "steps": 3}'), tmp_path / "out", QUICK
    )
    with pytest.raises(ValueError, match="c-.*wav exists, made with other settings: pass --force"):
        BatchRun(pipe, other)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert len(BatchRun(pipe, other, force=True).run().made) == 3
    assert BatchRun(pipe, other).report.kept == [str(clip.path) for clip in clips]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "theirs",
    [
        {"roof.wav": b"a recording"},
        {"roof.json": b'{"notes": "mine"}'},
        {"roof.wav": b"a recording", "roof.json": b'{"notes": "mine"}'},
        {"roof.json": b"[" * 100_000},
        {"roof.json": b'{"prompt": "x", "sha256": "y", "versions": {}}', "roof.flac": b"its sound"},
    ],
)
def test_files_that_are_not_of_this_program_are_never_replaced(
    theirs, force, pipe, quick, write_prompts, tmp_path
):
    (tmp_path / "out").mkdir()
    for name, content in theirs.items():
        (tmp_path / "out" / name).write_bytes(content)
    clips = read_prompts(write_prompts("sea", "rain on a roof|roof"), tmp_path / "out", QUICK)
    with pytest.raises(ValueError, match="roof.* exists, and was not made by this program"):
        BatchRun(pipe, clips, force=force)
    assert not quick
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert found == theirs


@pytest.mark.parametrize("force", [False, True])
def test_a_sound_that_was_changed_since_is_kept(force, pipe, quick, write_prompts, tmp_path):
    clips = read_prompts(write_prompts("a"), tmp_path / "out", QUICK)
    BatchRun(pipe, clips).run()
    clips[0].path.write_bytes(b"edited by hand")
    other = read_prompts(write_prompts('{"prompt": "a", "steps": 3}'), tmp_path / "out", QUICK)
    other = [replace(other[0], path=clips[0].path)]
    with pytest.raises(ValueError, match="has been changed since"):
        BatchRun(pipe, other, force=force)
    assert clips[0].path.read_bytes() == b"edited by hand"


def test_a_replacement_that_was_killed_between_its_renames_is_finished(
    pipe, quick, write_prompts, tmp_path
):
    clips = read_prompts(write_prompts("a"), tmp_path / "out", QUICK)
    BatchRun(pipe, clips).run()
    older = clips[0].path.read_bytes()
    line = json.dumps({"prompt": "a", "steps": 3, "seed": 5, "name": clips[0].path.stem})
    other = read_prompts(write_prompts(line), tmp_path / "out", QUICK)
    BatchRun(pipe, other, force=True).run()
    clips[0].path.write_bytes(older)  # the recipe is renamed first
    assert BatchRun(pipe, other).run().made == [str(clips[0].path)]


def test_a_failed_clip_does_not_stop_the_others(pipe, quick, write_prompts, tmp_path):
    lines = ["a", "b broken", "c", "d"]
    clips = read_prompts(write_prompts(*lines), tmp_path / "out", QUICK)
    planned, seen = BatchRun(pipe, clips, batch_size=4), []
    clips[3].path.mkdir()  # cannot be written to
    report = planned.run(seen.append)
    assert report.made == [str(clips[0].path), str(clips[2].path)]
    assert report.failed[str(clips[1].path)] == "RuntimeError: it is broken"
    assert "is a folder" in report.failed[str(clips[3].path)]
    assert sum(seen) == 8  # progress adds up, failures or not


def test_ctrl_c_keeps_what_is_finished(pipe, quick, write_prompts, tmp_path):
    clips = read_prompts(write_prompts("a", "b"), tmp_path / "out", QUICK)

    def stop(clip, output):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BatchRun(pipe, clips).run(on_clip=stop)
    assert BatchRun(pipe, clips).run().kept == [str(clips[0].path)]


def test_clips_do_not_depend_on_the_batch_size(pipe, write_prompts, tmp_path):
    lines = ["a bell", "rain on a long tin roof", '{"prompt": "x", "seed": 4, "steps": 3}', "wind"]
    options = GenerationOptions.make(QUICK, {"candidates": 2, "negative_prompt": "noise"})
    sounds = {}
    for size in (1, 3):
        folder = tmp_path / str(size)
        clips = read_prompts(write_prompts(*lines), folder, options)
        assert not BatchRun(pipe, clips, batch_size=size).run().failed
        sounds[size] = [soundfile.read(clip.path)[0] for clip in clips]
    for alone, together in zip(*sounds.values(), strict=True):
        np.testing.assert_allclose(alone, together, rtol=0, atol=BATCH_TOLERANCE)
        assert np.abs(alone).max() > 100 * BATCH_TOLERANCE


def test_a_clip_of_a_run_is_the_clip_of_a_call(pipe, write_prompts, tmp_path):
    line = '{"prompt": "a bell", "seed": 4, "candidates": 2}'
    (clip,) = read_prompts(write_prompts(line), tmp_path, QUICK)
    BatchRun(pipe, [clip]).run()
    generator = torch.Generator().manual_seed(4)
    options = {"audio_length_in_s": 0.64, "num_inference_steps": 2, "num_waveforms_per_prompt": 2}
    expected = pipe("a bell", generator=generator, **options)
    sound, rate = soundfile.read(clip.path)
    np.testing.assert_allclose(sound, expected.audios[0], rtol=0, atol=BATCH_TOLERANCE)
    found = json.loads(clip.path.with_suffix(".json").read_text())
    assert found["scores"] == pytest.approx(expected.scores.tolist(), abs=1e-5)


def test_the_command_reports_failures_at_the_end_and_makes_the_rest(write_prompts, tmp_path):
    command = ("generate", "--prompts", "prompts.txt", "--out", "out", "--batch-size", "2")
    write_prompts('{"prompt": "rain", "name": "a", "steps": 950}', "sea|c")
    result = run(*command, *COMMAND, cwd=tmp_path)
    assert result.returncode == 1
    assert "failed: out/a.wav: num_inference_steps 950: must be" in result.stderr
    assert result.stderr.rstrip().endswith("error: 1 of 2 clips failed")
    assert "1 made, 0 there already" in result.stdout and "Traceback" not in result.stderr
    write_prompts("rain|a", "sea|c")
    result = run(*command, *COMMAND, cwd=tmp_path)
    assert result.returncode == 0 and "1 made, 1 there already" in result.stdout
    assert "2/2" in result.stderr  # one bar, for what is left to make


def test_two_processes_share_a_file_without_overlap_and_complete_it(
    write_prompts, tmp_path, monkeypatch
):
    write_prompts(*[f"bell {n}|{n}" for n in range(5)])
    monkeypatch.setenv("WORLD_SIZE", "2")
    command = ("generate", "--prompts", "prompts.txt", "--out", "out", *COMMAND)
    made = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        result = run(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        made.append([line.split(".wav")[0] for line in result.stdout.splitlines() if "(" in line])
        assert ("step" in result.stderr) == (rank == 0)  # one of them shows its progress
    assert made == [["out/0", "out/2", "out/4"], ["out/1", "out/3"]]
    assert "0 made, 2 there already" in run(*command, cwd=tmp_path).stdout
    assert len(list(tmp_path.glob("out/*.wav"))) == 5


def test_alone_there_is_one_share(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert own_share(["a", "b"]) == ["a", "b"] and own_device("auto") == "auto"


def test_each_of_several_processes_takes_its_own_cuda_device(monkeypatch):
    for name, value in (("RANK", "7"), ("LOCAL_RANK", "3"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert own_device("auto") == own_device("cuda") == "cuda:3"
    assert own_device("cpu") == "cpu" and own_device("cuda:1") == "cuda:1"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert own_device("auto") == "auto"
