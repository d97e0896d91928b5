"""`generate --drafter`: the recipe names the second model, and makes the same clip again."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from audiolitefocus.config import demo_folder
from scripts.reuse.partner import make_partner
from tests.support.command import QUICK, assert_failed, run

NAME = "demo-without-self"
DRAFTED = (*QUICK, "--drafter-interval", "0:0.5")


@pytest.fixture(scope="module")
def partner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "partner"
    make_partner(demo_folder(), folder, {"self"})
    return folder


def generate(folder, *arguments):
    result = run("generate", *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result


def test_the_recipe_names_the_drafter_and_makes_the_clip_again(partner, tmp_path):
    generate(tmp_path, "rain", *DRAFTED, "--drafter", partner, "-o", "a.wav")
    recipe = json.loads((tmp_path / "a.json").read_text())
    files = json.loads((partner / "config.json").read_text())["files"]
    assert (recipe["drafter"], recipe["drafter_files"]) == (NAME, files)
    assert recipe["drafter_interval"] == [0.0, 0.5] and recipe["model"] == "demo"
    result = run("generate", "--like", "a.wav", "-o", "b.wav", cwd=tmp_path)
    assert_failed(result, f"a.wav was made with the drafter '{NAME}': give it as --drafter")
    generate(tmp_path, "--like", "a.wav", "--drafter", partner, "-o", "b.wav")
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "a.wav").read_bytes()
    assert f"  drafter: {NAME}" in run("info", "a.wav", cwd=tmp_path).stdout

    generate(tmp_path, "rain", *QUICK, "-o", "plain.wav")
    generate(tmp_path, "--like", "a.wav", "--drafter", "none", "-o", "c.wav")
    drafted, plain, without = (
        soundfile.read(tmp_path / name)[0] for name in ("a.wav", "plain.wav", "c.wav")
    )
    np.testing.assert_array_equal(without, plain)
    assert not np.array_equal(drafted, plain)


@pytest.mark.slow  # several runs of the command
def test_a_drafter_that_has_a_name_is_loaded_by_the_recipe(partner, tmp_path):
    generate(tmp_path, "rain", *QUICK, "--model", partner, "--drafter", "demo", "-o", "a.wav")
    generate(tmp_path, "--like", "a.wav", "--model", partner, "-o", "b.wav")
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "a.wav").read_bytes()
    recipe = json.loads((tmp_path / "a.json").read_text())
    recipe["drafter_files"] = {}
    (tmp_path / "a.json").write_text(json.dumps(recipe))
    result = generate(tmp_path, "--like", "a.json", "--model", partner, "-o", "c.wav")
    assert "warning: the weights of demo are others than then" in result.stderr


@pytest.mark.slow  # several runs of the command
def test_a_run_goes_on_with_its_drafter_alone(partner, tmp_path):
    (tmp_path / "prompts.txt").write_text(
        'rain|a\n{"prompt": "bell", "name": "b", "drafter_interval": "0.5:1"}\n'
    )
    command = ("--prompts", "prompts.txt", *DRAFTED, "-o", "clips")
    drafted = (*command, "--drafter", partner)
    assert "2 made, 0 there already" in generate(tmp_path, *drafted).stdout
    recipe = json.loads((tmp_path / "clips" / "b.json").read_text())
    assert recipe["drafter"] == NAME and recipe["drafter_interval"] == [0.5, 1.0]
    shutil.copytree(tmp_path / "clips", tmp_path / "before")
    (tmp_path / "clips" / "a.wav").unlink()
    assert "1 made, 1 there already" in generate(tmp_path, *drafted).stdout
    for name in ("a.wav", "b.wav"):
        clips = [tmp_path / folder / name for folder in ("clips", "before")]
        assert clips[0].read_bytes() == clips[1].read_bytes()
    for others in ((), ("--drafter", "demo")):
        result = run("generate", *command, *others, cwd=tmp_path)
        assert_failed(result, "a.wav exists, made with other settings")


def test_recipes_of_older_versions_had_no_drafter(partner, tmp_path):
    (tmp_path / "prompts.txt").write_text("rain|a\n")
    command = ("--prompts", "prompts.txt", *QUICK)
    generate(tmp_path, *command)
    recipe = json.loads((tmp_path / "a.json").read_text())
    older = {name: value for name, value in recipe.items() if not name.startswith("drafter")}
    assert len(older) == len(recipe) - 3
    (tmp_path / "a.json").write_text(json.dumps(older))
    assert "0 made, 1 there already" in generate(tmp_path, *command).stdout
    assert_failed(
        run("generate", *command, "--drafter", partner, cwd=tmp_path),
        "a.wav exists, made with other settings",
    )


def test_an_interval_without_a_drafter_is_refused(tmp_path):
    result = run("generate", "rain", *DRAFTED, "-o", "a.wav", cwd=tmp_path)
    assert_failed(result, "drafter_interval needs a second model: give it as drafter")
    assert not list(tmp_path.iterdir())
