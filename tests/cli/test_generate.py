"""`audiolitefocus generate` as a person meets it, on the bundled model."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolitefocus import GenerationOptions
from audiolitefocus.options import NAMES, OPTIONS
from tests.support.command import QUICK, run


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A clip made with default naming, for the tests that only look."""
    folder = tmp_path_factory.mktemp("made")
    result = run("generate", "A Bell, over rain!", *QUICK, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_a_clip_and_its_recipe(made):
    path = made / "a-bell-over-rain-7.wav"
    samples, rate = soundfile.read(path)
    assert (rate, len(samples)) == (16000, 10240)
    assert np.abs(samples).max() > 0.01
    recipe = json.loads(path.with_suffix(".json").read_text())
    assert recipe["prompt"] == "A Bell, over rain!"
    assert (recipe["seed"], recipe["num_inference_steps"], recipe["audio_length_in_s"]) == (
        7,
        2,
        0.64,
    )
    assert recipe["model"] == "demo" and recipe["attention_ran"] == "dense"
    assert set(recipe["versions"]) == {"audiolitefocus", "torch", "transformers"}
    assert sorted(p.name for p in made.iterdir()) == ["a-bell-over-rain-7.json", path.name]


def test_the_same_seed_makes_the_same_clip(made, tmp_path):
    result = run("generate", "A Bell, over rain!", *QUICK, "-o", "again.flac", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first, _ = soundfile.read(made / "a-bell-over-rain-7.wav", dtype="int16")
    again, _ = soundfile.read(tmp_path / "again.flac", dtype="int16")
    np.testing.assert_array_equal(first, again)


def test_progress_has_a_rate(made, tmp_path):
    result = run("generate", "rain", *QUICK, "-o", "x.ogg", cwd=tmp_path)
    assert "2/2" in result.stderr and "step" in result.stderr
    assert "x.ogg (seed 7)" in result.stdout


def test_a_file_that_exists_is_kept_unless_forced(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"precious")
    result = run("generate", "rain", *QUICK, "-o", "x.wav", cwd=tmp_path)
    assert result.returncode == 1 and "--force" in result.stderr
    assert (tmp_path / "x.wav").read_bytes() == b"precious"
    assert run("generate", "rain", *QUICK, "-o", "x.wav", "--force", cwd=tmp_path).returncode == 0
    assert soundfile.read(tmp_path / "x.wav")[1] == 16000


def test_a_file_of_prompts_and_candidates(tmp_path):
    (tmp_path / "prompts.txt").write_text("rain|Wet roof\n\n# a comment\nwind in trees\n")
    options = (*QUICK, "--candidates", "2", "--sampler", "dpm++", "--negative-prompt", "noise")
    result = run("generate", "--prompts", "prompts.txt", "-o", "clips", *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    names = sorted(path.name for path in (tmp_path / "clips").iterdir())
    stems = ["Wet roof", "wind-in-trees-7"]
    assert names == sorted(f"{stem}.{end}" for stem in stems for end in ("json", "wav"))
    recipe = json.loads((tmp_path / "clips" / "Wet roof.json").read_text())
    assert len(recipe["scores"]) == 2 and recipe["scores"][0] >= recipe["scores"][1]
    assert "best of 2" in result.stdout


def test_a_recipe_holds_every_option_by_its_field_name(made):
    recipe = json.loads((made / "a-bell-over-rain-7.json").read_text())
    options = GenerationOptions.make(None, {n: v for n, v in recipe.items() if n in NAMES})
    assert set(OPTIONS) <= set(recipe) and options.to_json().items() <= recipe.items()
    assert options == GenerationOptions(audio_length_in_s=0.64, num_inference_steps=2, seed=7)


def test_without_a_seed_every_run_has_its_own(tmp_path):
    options = [option for option in QUICK if option not in ("--seed", "7")]
    for _ in range(2):
        assert run("generate", "rain", *options, cwd=tmp_path).returncode == 0
    recipes = [json.loads(path.read_text()) for path in tmp_path.glob("rain-*.json")]
    assert len({recipe["seed"] for recipe in recipes}) == 2


@pytest.mark.parametrize("decode", ["whole", "tiled"])
def test_decoding_is_chosen_and_written_down(decode, tmp_path):
    result = run("generate", "x", *QUICK, "--decode", decode, "-o", "x.wav", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "x.json").read_text())["decode"] == decode


def test_a_long_strange_prompt_gets_a_safe_name_and_a_warning(tmp_path):
    prompt = "../../etc/passwd\n🎸 " + "a dog barks at the moon " * 200
    result = run("generate", prompt, *QUICK, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    said = [line for line in result.stderr.splitlines() if line.startswith("warning: ")]
    assert any("T5 reads the first 128 tokens" in line for line in said)
    (sound,) = tmp_path.glob("*.wav")
    assert sound.name.startswith("etc-passwd-a-dog-barks") and len(sound.name) < 80
    assert json.loads(sound.with_suffix(".json").read_text())["prompt"] == prompt
