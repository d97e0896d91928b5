"""`generate --like` and `info` of a clip: what was made can be made again, and changed."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from audiolitefocus.audio.formats import SOUND_SUFFIXES
from audiolitefocus.config import demo_folder
from tests.support.command import QUICK, assert_failed, run

SAME_BYTES = (".wav", ".flac", ".mp3")  # Ogg numbers its streams at random


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A clip in every format, without its JSON."""
    folder = tmp_path_factory.mktemp("made")
    for suffix in SOUND_SUFFIXES:
        result = run("generate", "Glocke, 雨", *QUICK, "-o", f"clip{suffix}", "--force", cwd=folder)
        assert result.returncode == 0, result.stderr
    (folder / "clip.json").unlink()
    return folder


@pytest.mark.parametrize("suffix", SOUND_SUFFIXES)
def test_a_clip_without_its_json_is_made_again_bit_for_bit(made, tmp_path, suffix):
    clip = made / f"clip{suffix}"
    result = run("generate", "--like", clip, "-o", f"new{suffix}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    if suffix in SAME_BYTES:
        assert (tmp_path / f"new{suffix}").read_bytes() == clip.read_bytes()
    first, again = (soundfile.read(path)[0] for path in (clip, tmp_path / f"new{suffix}"))
    np.testing.assert_array_equal(first, again)


def test_what_is_given_is_changed_and_the_rest_stays(made, tmp_path):
    command = ("generate", "--like", made / "clip.flac", "--steps", "3", "-o", "new.wav")
    assert run(*command, "--bits", "24", cwd=tmp_path).returncode == 0
    recipe = json.loads((tmp_path / "new.json").read_text())
    assert (recipe["prompt"], recipe["seed"], recipe["num_inference_steps"]) == ("Glocke, 雨", 7, 3)
    assert (recipe["audio_length_in_s"], recipe["model"], recipe["bits"]) == (0.64, "demo", 24)
    assert run("generate", "rain", "--like", "new.wav", "-o", "b.wav", cwd=tmp_path).returncode == 0
    changed = json.loads((tmp_path / "b.json").read_text())
    names = {name for name in recipe if recipe[name] != changed[name]}
    assert names == {"prompt", "sha256"}  # 24 bits are kept too
    assert run("generate", "--like", "b.json", "-o", "b.mp3", cwd=tmp_path).returncode == 1
    result = run("generate", "--like", "b.json", "-o", "c.mp3", cwd=tmp_path)  # which has no bits
    assert result.returncode == 0, result.stderr


def test_a_recording_is_read_again_and_a_changed_one_is_a_warning(tmp_path):
    tone = 0.3 * np.sin(np.arange(16000) / 9)
    soundfile.write(tmp_path / "tone.wav", tone, 16000)
    quick = [option for option in QUICK if option not in ("--duration", "0.64")]
    command = ("generate", "rain", *quick, "--init-audio", "tone.wav", "-o", "a.wav")
    assert run(*command, cwd=tmp_path).returncode == 0
    again = ("generate", "--like", "a.wav", "-o", "b.wav")
    result = run(*again, cwd=tmp_path)
    assert result.returncode == 0 and "warning" not in result.stderr, result.stderr
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    soundfile.write(tmp_path / "tone.wav", tone / 2, 16000)
    result = run(*again, "--force", cwd=tmp_path)
    assert result.returncode == 0 and "warning: the recording is another" in result.stderr
    longer = ("generate", "--like", "a.wav", "--continue", "tone.wav", "--duration", "1.28")
    result = run(*longer, "-o", "c.wav", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "c.json").read_text())["init_audio"] is None


def test_a_folder_as_model_is_to_be_named_again(made, tmp_path):
    bundle = shutil.copytree(demo_folder(), tmp_path / "own")
    config = json.loads((bundle / "config.json").read_text())
    for name in ("own", "demo"):
        (bundle / "config.json").write_text(json.dumps({**config, "name": name, "files": {}}))
        command = ("generate", "x", *QUICK, "--model", bundle, "-o", f"{name}.wav")
        assert run(*command, cwd=tmp_path).returncode == 0
    result = run("generate", "--like", "own.wav", "-o", "again.wav", cwd=tmp_path)
    assert_failed(result, "own.wav was made with the model 'own': give it as --model")
    again = ("generate", "--like", "own.wav", "-o", "again.wav", "--model", bundle)
    assert run(*again, cwd=tmp_path).returncode == 0
    result = run("generate", "--like", "demo.wav", "-o", "b.wav", cwd=tmp_path)
    assert "warning: the weights of demo are others than then" in result.stderr


def test_info_of_a_clip(made, tmp_path):
    result = run("info", made / "clip.opus", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "prompt: Glocke, 雨" in result.stdout and "  seed: 7" in result.stdout
    result = run("info", made / "clip.opus", "--json", cwd=tmp_path)
    recipe = json.loads(result.stdout)
    assert recipe["prompt"] == "Glocke, 雨" and recipe["model"] == "demo"
    soundfile.write(tmp_path / "x.wav", np.zeros(100), 16000)
    assert_failed(run("info", "x.wav", cwd=tmp_path), "x.wav has no recipe")


def test_info_of_a_bundle_as_json(tmp_path):
    result = run("info", "demo", "--json", cwd=tmp_path)
    expected = json.loads((demo_folder() / "config.json").read_text())
    expected["distilled"], expected["unet"]["absent"] = None, []  # which are younger than the file
    assert json.loads(result.stdout) == expected
