"""Jobs of many clips: what a file of prompts may say, resuming, failures, and independence of the
batch size.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed as dist

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.batch import run as batch
from audiolitefocus.batch.clips import Clip, Settings, save_clip
from audiolitefocus.batch.ranks import Ranks
from audiolitefocus.batch.run import Job, group, read_prompts
from audiolitefocus.pipeline import AudioOutput
from tests.test_cli import run

BATCH_TOLERANCE = 1e-4  # rounding of batched matrix products, and of 16 bit samples
QUICK = Settings(duration=0.64, steps=2)


@pytest.fixture(scope="module")
def pipe(tiny_bundle):
    return AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu")


@pytest.fixture
def quick(monkeypatch):
    """Clips without networks: a tone by the seed. The list of batches that were made."""
    batches = []

    def make_clips(pipe, clips, on_step):
        batches.append([clip.prompt for clip in clips])
        if any("broken" in clip.prompt for clip in clips):
            raise RuntimeError("it is\nbroken")
        for step in range(clips[0].settings.steps):
            on_step(step, 0, clips)
        waves = [np.full(160, clip.settings.seed % 7 / 8, np.float32) for clip in clips]
        return [AudioOutput(wave[None], 16000) for wave in waves]

    monkeypatch.setattr(batch, "make_clips", make_clips)
    return batches


def prompts(folder: Path, *lines: str) -> Path:
    path = folder / "prompts.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def job(pipe, clips, **options) -> Job:
    return Job(pipe, clips, Ranks(dist.HashStore()), **options)


def test_lines_are_text_or_text_and_name_or_json(tmp_path):
    line = {"prompt": "c", "name": "../x.FLAC", "duration": 5, "seed": 3, "candidates": 2}
    file = prompts(tmp_path, "\ufeffa bell|Big Bell", "", "# no", "b|c|d", json.dumps(line))
    clips = read_prompts(file, tmp_path / "out", QUICK, seed=9)
    assert [clip.prompt for clip in clips] == ["a bell", "b|c", "c"]
    assert [clip.path.name for clip in clips] == ["big-bell.wav", "d.wav", "x.flac"]
    assert {clip.path.parent for clip in clips} == {tmp_path / "out"}
    assert [clip.settings.seed for clip in clips] == [9, 9, 3]
    assert clips[2].settings == Settings(duration=5, steps=2, seed=3, candidates=2)


def test_seeds_follow_from_the_text_unless_given(tmp_path):
    first = read_prompts(prompts(tmp_path, "rain", "rain", "wind"), tmp_path, QUICK)
    again = read_prompts(prompts(tmp_path, "wind", "rain", "rain"), tmp_path, QUICK)
    assert {clip.path: clip for clip in first} == {clip.path: clip for clip in again}
    assert len({clip.settings.seed for clip in first}) == 3


BAD_LINES = {
    "unknown field": ('{"prompt": "x", "stepz": 3}', "unknown fields 'stepz'"),
    "broken JSON": ('{"prompt": "x"', "not a JSON object"),
    "deep JSON": ('{"prompt": ' + "[" * 100_000, "not a JSON object"),
    "no prompt": ('{"seed": 3}', "expected TEXT"),
    "prompt of a kind": ('{"prompt": ["x"]}', "expected TEXT"),
    "name of a kind": ('{"prompt": "x", "name": 3}', "expected TEXT"),
    "empty name": ("rain| ", "expected TEXT"),
    "steps": ('{"prompt": "x", "steps": "many"}', "steps 'many'"),
    "duration": ('{"prompt": "x", "duration": NaN}', "duration nan"),
    "attention": ('{"prompt": "x", "attention": 5}', "attention '?5"),
    "sampler": ('{"prompt": "x", "sampler": ["ddim"]}', "sampler"),
    "negative prompt": ('{"prompt": "x", "negative_prompt": ["y"]}', "negative_prompt"),
    "name taken": ("rain|A", "a is taken already"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_refused_by_its_number(case, tmp_path):
    line, message = BAD_LINES[case]
    with pytest.raises(ValueError, match=f"prompts.txt, line 3: .*{message}"):
        read_prompts(prompts(tmp_path, "wind|a", "", line), tmp_path / "out", QUICK, seed=1)
    assert not (tmp_path / "out").exists()


def test_a_file_without_prompts_and_one_that_is_no_text(tmp_path):
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(prompts(tmp_path, "# none"), tmp_path, QUICK)
    (tmp_path / "noise").write_bytes(os.urandom(100) + b"\xff")
    with pytest.raises(ValueError, match="UTF-8"):
        read_prompts(tmp_path / "noise", tmp_path, QUICK)


def test_batches_hold_clips_that_differ_in_prompt_and_seed_alone(tmp_path):
    settings = [
        Settings(seed=seed, steps=steps) for seed, steps in ((1, 5), (2, 9), (3, 5), (4, 5))
    ]
    settings += [Settings(seed=seed, unconditional="empty_prompt") for seed in (1, 2)]
    clips = [Clip(str(n), tmp_path / f"{n}.wav", each) for n, each in enumerate(settings)]
    names = [[clip.prompt for clip in clips] for clips in group(clips, 2)]
    assert names == [["0", "2"], ["3"], ["1"], ["4"], ["5"]]


def test_a_second_run_makes_only_what_is_missing(pipe, quick, tmp_path):
    clips = read_prompts(prompts(tmp_path, "a", "b", "c"), tmp_path / "out", QUICK)
    assert len(job(pipe, clips, batch_size=8).run().made) == 3
    assert job(pipe, clips).run().kept == [str(clip.path) for clip in clips]
    clips[0].path.unlink()  # the sound is gone
    clips[1].path.write_bytes(b"another sound")
    assert len(job(pipe, clips).run().made) == 2
    clips[2].path.with_suffix(".json").write_text("[" * 100_000)
    assert job(pipe, clips).run().made == [str(clips[2].path)]
    other = read_prompts(
        prompts(tmp_path, "a", "b", '{"prompt": "c", "steps": 3}'), tmp_path / "out", QUICK
    )
    report = job(pipe, other).run()
    assert report.made == [str(clips[2].path)] and len(report.kept) == 2
    assert len(job(pipe, other, force=True).run().made) == 3
    assert quick[0] == ["a", "b", "c"]


def test_a_failed_clip_does_not_stop_the_others(pipe, quick, tmp_path):
    lines = ["a", "b broken", "c", "d"]
    clips = read_prompts(prompts(tmp_path, *lines), tmp_path / "out", QUICK)
    clips[3].path.mkdir()  # cannot be written to
    seen = []
    report = job(pipe, clips, batch_size=4).run(seen.append)
    assert report.made == [str(clips[0].path), str(clips[2].path)]
    assert report.failed[str(clips[1].path)] == "RuntimeError: it is broken"
    assert "is a folder" in report.failed[str(clips[3].path)]
    assert seen == sorted(seen) and seen[-1] == 8  # progress adds up, failures or not


def test_ctrl_c_keeps_what_is_finished(pipe, quick, tmp_path):
    clips = read_prompts(prompts(tmp_path, "a", "b"), tmp_path / "out", QUICK)

    def stop(clip, output):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job(pipe, clips).run(on_clip=stop)
    assert job(pipe, clips).run().kept == [str(clips[0].path)]


def test_clips_do_not_depend_on_the_batch_size(pipe, tmp_path):
    lines = ["a bell", "rain on a long tin roof", '{"prompt": "x", "seed": 4, "steps": 3}', "wind"]
    settings = Settings(duration=0.64, steps=2, candidates=2, negative_prompt="noise")
    sounds = {}
    for size in (1, 3):
        folder = tmp_path / str(size)
        clips = read_prompts(prompts(tmp_path, *lines), folder, settings)
        assert not job(pipe, clips, batch_size=size).run().failed
        sounds[size] = [soundfile.read(clip.path)[0] for clip in clips]
    for alone, together in zip(*sounds.values(), strict=True):
        np.testing.assert_allclose(alone, together, rtol=0, atol=BATCH_TOLERANCE)
        assert np.abs(alone).max() > 100 * BATCH_TOLERANCE


def test_a_clip_of_a_job_is_the_clip_of_a_call(pipe, tmp_path):
    line = '{"prompt": "a bell", "seed": 4, "candidates": 2}'
    (clip,) = read_prompts(prompts(tmp_path, line), tmp_path, QUICK)
    job(pipe, [clip]).run()
    generator = torch.Generator().manual_seed(4)
    options = {"audio_length_in_s": 0.64, "num_inference_steps": 2, "num_waveforms_per_prompt": 2}
    expected = pipe("a bell", generator=generator, **options)
    sound, rate = soundfile.read(clip.path)
    np.testing.assert_allclose(sound, expected.audios[0], rtol=0, atol=BATCH_TOLERANCE)
    found = json.loads(clip.path.with_suffix(".json").read_text())
    assert found["scores"] == pytest.approx(expected.scores.tolist(), abs=1e-5)


def test_a_sound_and_its_json_appear_together(pipe, tmp_path, monkeypatch):
    clip, sounds = Clip("a", tmp_path / "a.wav", QUICK), np.eye(2, 160, dtype=np.float32)
    save_clip(pipe, clip, AudioOutput(sounds[:1], 16000))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(
        "audiolitefocus.batch.clips.recipe", lambda *_: (_ for _ in ()).throw(SystemExit)
    )
    with pytest.raises(SystemExit):
        save_clip(pipe, clip, AudioOutput(sounds[1:], 16000))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_command_reports_failures_at_the_end_and_makes_the_rest(tmp_path):
    command = ("generate", "--prompts", "prompts.txt", "--out", "out", "--batch-size", "2")
    options = ("--model", "demo", "--device", "cpu", "--steps", "2", "--duration", "0.64")
    (tmp_path / "out" / "a.wav").mkdir(parents=True)
    prompts(tmp_path, "rain|a", "sea|c")
    result = run(*command, *options, cwd=tmp_path)
    assert result.returncode == 1
    assert "failed: out/a.wav: out/a.wav is a folder" in result.stderr
    assert result.stderr.rstrip().endswith("error: 1 of 2 clips failed")
    assert "1 made, 0 there already" in result.stdout and "Traceback" not in result.stderr
    (tmp_path / "out" / "a.wav").rmdir()
    result = run(*command, *options, cwd=tmp_path)
    assert result.returncode == 0 and "1 made, 1 there already" in result.stdout
    assert "2/2" in result.stderr  # one bar, for what is left of the job
