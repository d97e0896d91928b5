"""Damaged and malicious prompts, names, links and sound files."""

import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from audiolitefocus.audio.files import read_sound
from tests.support.command import QUICK, assert_failed, run
from tests.support.hostile import TINY, assert_ended_well, fuzz

pytestmark = pytest.mark.usefixtures("little_memory")
MEGABYTES = 10


def test_names_of_clips_stay_in_their_folder(tmp_path):
    names = ["../up", "/etc/passwd", "a/b/c", "..", "nul\0byte", "CON", "lpt1.wav", "x" * 5000]
    names += ["~/root", "C:\\windows\\x", "\u202egpj.exe", "\x1b[31mred", "../CON/aux"]
    work = tmp_path / "work"
    work.mkdir()
    options = ("--prompts", "prompts", "-o", "clips", *QUICK[:4], "--steps", "1")
    for name in names:
        (work / "prompts").write_text(json.dumps({"prompt": "x", "name": name}))
        result = run("generate", *options, "--duration", "0.32", cwd=work)
        assert_failed(result, "line 1: name")
        assert "\x1b" not in result.stderr and "\u202e" not in result.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [work / "prompts"]
    (work / "prompts").write_text(json.dumps({"prompt": "x", "name": "--force"}))
    assert run("generate", *options, "--duration", "0.32", cwd=work).returncode == 0
    assert sorted(os.listdir(work / "clips")) == ["--force.json", "--force.wav"]


BAD_LINES = {
    "steps": '{"prompt": "x", "steps": "many"}',
    "huge": '{"prompt": "x", "duration": 1e999}',
    "digits": '{"prompt": "x", "seed": ' + "9" * 5000 + "}",
    "types": '{"prompt": ["x"]}',
    "attention": '{"prompt": "x", "attention": {"a": 1}}',
    "negative": '{"prompt": "x", "negative_prompt": [["y"]]}',
    "nested": '{"prompt": ' + '{"a":' * 10**5,
    "surrogate": '{"prompt": "\\ud800"}',
    "binary": "\x80\x81",
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_lines_of_prompts(case, tmp_path):
    (tmp_path / "prompts").write_bytes(BAD_LINES[case].encode("latin-1"))
    result = run("generate", "--prompts", "prompts", "-o", "clips", *QUICK, cwd=tmp_path)
    assert_failed(result)
    assert not list(tmp_path.rglob("*.wav"))


@pytest.mark.parametrize("text", ["a dog barks ", "x", "🎸\n\0"])
def test_ten_megabytes_of_prompt(text, tmp_path):
    prompt = "thunder " + text * (MEGABYTES * 10**6 // len(text.encode()))
    began = time.monotonic()
    result = run("generate", prompt, *TINY, cwd=tmp_path)
    assert_ended_well(result)
    assert result.returncode == 0, result.stderr
    assert "does not see" in result.stderr
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("prompt", ["\ud800", "caf\udce9", "ok\udfff"])
def test_prompts_that_are_no_unicode(prompt, tmp_path):
    result = run("generate", prompt, *TINY, cwd=tmp_path)
    assert_failed(result, "not valid Unicode")


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    for arguments in (["-o", "x\x1b[2J.wav"], ["-o", "caf\udce9.wav"], ["--model", "\x1b[2J"]):
        result = run("generate", "x\x1b[2J\0\r", *QUICK, *arguments, cwd=tmp_path)
        assert_ended_well(result)
        assert "\x1b" not in result.stdout


def test_a_link_in_the_place_of_a_clip(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name, target in (("x.wav", precious), ("y.wav", tmp_path / "nowhere")):
        (tmp_path / name).symlink_to(target)
        result = run("generate", "x", *QUICK, "-o", name, cwd=tmp_path)
        assert_failed(result, "--force")
        assert run("generate", "x", *QUICK, "-o", name, "--force", cwd=tmp_path).returncode == 0
        assert not (tmp_path / name).is_symlink()
    assert precious.read_text() == "mine" and not (tmp_path / "nowhere").exists()


def test_a_link_in_the_place_of_a_bundle(diffusers_folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "link").symlink_to(other)
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    for name in ("link", "lost"):
        for force in ([], ["--force"]):
            assert_failed(run("convert", diffusers_folder, name, *force, cwd=tmp_path))
    assert not os.listdir(other) and sorted(os.listdir(tmp_path)) == ["link", "lost", "other"]


@pytest.mark.parametrize("config", ['{"name": "my package"}', "[]", ""])
def test_a_folder_that_is_no_bundle_is_not_replaced(config, diffusers_folder, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "config.json").write_text(config)
    result = run("convert", diffusers_folder, "thesis", "--force", cwd=tmp_path)
    assert_failed(result, "not a bundle")
    assert (tmp_path / "thesis" / "config.json").read_text() == config


def sound(kind: str) -> bytes:
    file = io.BytesIO()
    tone = 0.3 * np.sin(np.arange(4000, dtype=np.float32) / 9)
    soundfile.write(file, tone, 16000, format=kind)
    return file.getvalue()


@fuzz
@given(
    st.sampled_from(["WAV", "FLAC", "OGG", "AIFF"]),
    st.integers(0, 99),
    st.binary(min_size=1, max_size=8),
    st.integers(0, 5000),
)
def test_sound_files_that_lie(tmp_path, kind, place, noise, cut):
    content = sound(kind)
    path: Path = tmp_path / "x.wav"
    path.write_bytes((content[:place] + noise + content[place + len(noise) :])[: 2 * cut + 40])
    try:
        waveform = read_sound(path, 16000)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert waveform.ndim == 1 and waveform.isfinite().all()
