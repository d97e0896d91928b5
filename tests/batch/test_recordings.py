"""Recordings on the command line and in files of prompts: what is made, resumed and refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolitefocus import AudioLDM2Pipeline, GenerationOptions
from audiolitefocus.batch.clips import plan
from audiolitefocus.batch.prompts import read_prompts
from audiolitefocus.batch.run import BatchRun
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.options import OPTIONS
from tests.support.command import assert_refused, run

RATE = 16000
QUICK = ("--model", "demo", "--device", "cpu", "--steps", "4", "--seed", "7")


def record(path: Path, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """A file of 16 bit noise, and its samples."""
    samples = np.random.default_rng(0).integers(-9000, 9000, int(rate * seconds)).astype(np.int16)
    soundfile.write(path, samples, rate)
    return samples


def made(folder: Path, *options: str) -> tuple[np.ndarray, dict, str]:
    """The 16 bit samples that a command has made, its recipe and what was shown."""
    result = run("generate", "rain", *QUICK, *options, "-o", "out.wav", cwd=folder)
    assert result.returncode == 0, result.stderr
    samples, rate = soundfile.read(folder / "out.wav", dtype="int16")
    assert rate == RATE
    return samples, json.loads((folder / "out.json").read_text()), result.stderr


def test_inpainting_keeps_sixteen_bits_outside_of_the_span(tmp_path):
    recorded = record(tmp_path / "in.flac")
    samples, recipe, _ = made(tmp_path, "--init-audio", "in.flac", "--inpaint", "0.3:0.5")
    assert samples.shape == recorded.shape
    changed = (samples != recorded).nonzero()[0]
    assert 4800 <= changed.min() and changed.max() < 8000 and len(changed) > 3000
    assert (recipe["init_audio"], recipe["inpaint"]) == ("in.flac", [0.3, 0.5])
    assert recipe["recording_sha256"] == sha256(tmp_path / "in.flac")
    assert recipe["audio_length_in_s"] is None and recipe["samples"] == RATE


def test_a_recording_is_continued(tmp_path):
    recorded = record(tmp_path / "in.wav")
    samples, recipe, _ = made(tmp_path, "--continue", "in.wav", "--duration", "1.6")
    assert len(samples) == 25600 and samples[RATE:].std() > 0
    np.testing.assert_array_equal(samples[:RATE], recorded)
    assert (recipe["continue_audio"], recipe["audio_length_in_s"]) == ("in.wav", 1.6)


def test_a_variation_of_another_rate_shows_the_steps_it_takes(tmp_path):
    record(tmp_path / "in.wav", rate=44100)
    samples, recipe, shown = made(tmp_path, "--init-audio", "in.wav", "--strength", "0.75")
    assert len(samples) == RATE and recipe["strength"] == 0.75
    assert "3/3" in shown


@pytest.fixture
def read_at(write_prompts, tmp_path, monkeypatch):
    """Reads lines of prompts in the temporary folder."""

    def read(*lines: str):
        monkeypatch.chdir(tmp_path)
        options = GenerationOptions(num_inference_steps=2)
        return read_prompts(write_prompts(*lines), tmp_path / "out", options)

    return read


def test_a_recipe_is_a_line_of_prompts(read_at, tmp_path):
    """The options that were written are options that can be read."""
    record(tmp_path / "in.wav")
    _, recipe, _ = made(tmp_path, "--init-audio", "in.wav", "--inpaint", "0:0.5")
    (clip,) = read_at(json.dumps({name: recipe[name] for name in ("prompt", *OPTIONS)}))
    assert clip.options.inpaint == (0.0, 0.5) and clip.recording_seconds == 1.0


def test_a_changed_recording_is_a_changed_clip(pipe, read_at, tmp_path):
    record(tmp_path / "in.wav")
    path = str(tmp_path / "in.wav")
    line = json.dumps({"prompt": "rain", "init_audio": path, "strength": 0.5, "candidates": 2})
    other = json.dumps({"prompt": "a bell", "init_audio": path, "inpaint": "0.2:0.4"})
    same = json.dumps({"prompt": "wind", "init_audio": path, "strength": 0.5, "candidates": 2})
    clips = read_at(line, other, same)
    seen = []
    planned = BatchRun(pipe, clips, batch_size=4)
    assert [len(batch) for batch in planned.batches] == [2, 1] and planned.steps == 2 + 2 + 2
    report = planned.run(seen.append)
    assert len(report.made) == 3 and not report.failed and sum(seen) == planned.steps
    assert len(BatchRun(pipe, read_at(line, other, same)).report.kept) == 3
    soundfile.write(tmp_path / "in.wav", np.zeros(RATE, np.int16), RATE)
    with pytest.raises(ValueError, match="made with other settings"):
        BatchRun(pipe, read_at(line, other, same))
    assert len(BatchRun(pipe, read_at(line, other, same), force=True).batches) == 3


def test_a_recording_is_never_the_target_of_a_clip(tmp_path, write_prompts):
    (tmp_path / "out").mkdir()
    record(tmp_path / "out" / "src.wav")
    source = str(tmp_path / "out" / "src.wav")
    lines = [json.dumps({"prompt": "rain", "name": "other", "init_audio": source}), "wind|src"]
    for chosen in (lines, [json.dumps({"prompt": "rain", "name": "src", "init_audio": source})]):
        with pytest.raises(ValueError, match="src.wav is a recording that clips are made from"):
            read_prompts(write_prompts(*chosen), tmp_path / "out", GenerationOptions())
    with pytest.raises(ValueError, match="is a recording"):
        plan("rain", Path(source), GenerationOptions(init_audio=source), force=True)


def test_a_recording_that_vanishes_fails_its_clips_alone(pipe, read_at, tmp_path):
    record(tmp_path / "in.wav")
    line = json.dumps({"prompt": "rain", "init_audio": str(tmp_path / "in.wav")})
    short = json.dumps({"prompt": "wind", "duration": 0.64})
    clips = read_at(line, short)
    (tmp_path / "in.wav").unlink()
    report = BatchRun(pipe, clips).run()
    assert report.made == [str(clips[1].path)]
    assert "no such file" in report.failed[str(clips[0].path)]


REFUSALS = {
    "strength 0": (["--init-audio", "in.wav", "--strength", "0"], "strength 0"),
    "strength 1.5": (["--init-audio", "in.wav", "--strength", "1.5"], "strength 1.5"),
    "strength of a step": (["--init-audio", "in.wav", "--strength", "0.1"], "less than one step"),
    "strength alone": (["--strength", "0.5"], "init_audio"),
    "inpaint alone": (["--inpaint", "0:1"], "init_audio"),
    "no span": (["--init-audio", "in.wav", "--inpaint", "1"], "START:END"),
    "no numbers": (["--init-audio", "in.wav", "--inpaint", "a:b"], "START:END"),
    "reversed": (["--init-audio", "in.wav", "--inpaint", "0.6:0.3"], "must end after"),
    "outside": (["--init-audio", "in.wav", "--inpaint", "0.6:3"], "in.wav: inpaint up to 3 s"),
    "both": (["--init-audio", "in.wav", "--continue", "in.wav"], "either"),
    "duration": (
        ["--init-audio", "in.wav", "--duration", "3"],
        "duration cannot be set with init_audio; use continue",
    ),
    "no duration": (["--continue", "in.wav"], "duration"),
    "duration too short": (
        ["--continue", "in.wav", "--duration", "0.5"],
        "duration 0.5: must be longer than the recording",
    ),
    "absent": (["--init-audio", "no.wav"], "no.wav: no such file"),
    "nameless": (["--init-audio", ""], "init_audio ''"),
    "a folder": (["--init-audio", "."], "no such file"),
    "text": (["--init-audio", "in.txt"], "cannot be read"),
    "empty": (["--continue", "empty.wav", "--duration", "3"], "empty"),
    "a moment": (["--init-audio", "moment.wav"], "0.04 s at least"),
    "an hour and more": (["--init-audio", "long.wav"], "3601 s long"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    record(folder / "in.wav")
    (folder / "in.txt").write_text("no sound at all")
    record(folder / "moment.wav", 0.03)
    soundfile.write(folder / "empty.wav", np.zeros(0), RATE)
    soundfile.write(folder / "long.wav", np.zeros(3601 * 4000, np.int16), 4000, "PCM_U8")
    return folder


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_options_are_refused_before_a_model_is_loaded(case, files, tmp_path, monkeypatch):
    options, message = REFUSALS[case]
    options = [str(files / x) if x.endswith((".wav", ".txt")) else x for x in options]
    monkeypatch.setattr(
        AudioLDM2Pipeline, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded")
    )
    assert_refused(run("generate", "x", *QUICK, *options, cwd=tmp_path), message, tmp_path)


@pytest.mark.parametrize("field", [{"init_audio": 3}, {"continue_audio": ["x"]}, {"inpaint": 5}])
def test_a_bad_line_is_refused_by_its_number(field, read_at):
    line = json.dumps({"prompt": "x", "init_audio": "x.wav", **field})
    with pytest.raises(ValueError, match=f"line 1: {next(iter(field))} .*must be"):
        read_at(line)
