"""--help, starting without torch, and how the process ends."""

import os
import subprocess
import sys

import pytest

import audiolitefocus
from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.options import OPTIONS, flag_of
from tests.support.command import run

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def test_help_lists_every_option_under_its_caption(tmp_path):
    shown = run("generate", "--help", cwd=tmp_path)
    assert shown.returncode == 0
    sections = {part.split(":\n")[0].split("\n")[-1]: part for part in shown.stdout.split("\n\n")}
    for name, option in OPTIONS.items():
        section = sections[option.group]
        assert flag_of(name) in section.split()
        assert " ".join(option.help.split()) in " ".join(section.split())
    for caption, flag in (("Files", "--prompts"), ("Model", "--dtype"), ("Sampling", "200")):
        assert flag in sections[caption]


@pytest.mark.parametrize("columns", ["40", "200"])
def test_help_is_plain_text_of_any_width(columns, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    for command in ("generate", "convert", "info", "check", "serve", "web"):
        shown = run(command, "--help", cwd=tmp_path).stdout
        assert shown.isascii() and max(map(len, shown.splitlines())) <= 80


def test_the_version_is_told(tmp_path):
    shown = run("--version", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, f"audiolitefocus {audiolitefocus.__version__}\n")


def test_without_a_command_the_help_is_shown(tmp_path):
    shown, asked = run(cwd=tmp_path), run("--help", cwd=tmp_path)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, asked.stdout, "")


def loaded(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after running the code."""
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")[-2].split())


HELP = """
import sys
from audiolitefocus.cli import main
sys.argv = ["audiolitefocus", "generate", "--help"]
try:
    main()
except SystemExit:
    pass
"""


@pytest.mark.parametrize(
    "code",
    [
        "import audiolitefocus",
        "import audiolitefocus.config, audiolitefocus.options, audiolitefocus.validation",
        "from audiolitefocus import GenerationOptions, LiteFocus, TokenMerging, UNetConfig",
        HELP,
    ],
    ids=["import", "options", "settings", "help"],
)
def test_no_torch_is_loaded(code):
    assert not loaded(code) & {"torch", "transformers", "numpy", "fastapi", "uvicorn", "gradio"}


def test_public_names_are_importable_and_listed():
    names = [name for name in audiolitefocus.__all__ if name != "__version__"]
    assert len(names) == 14 and all(getattr(audiolitefocus, name) for name in names)
    assert set(names) <= set(dir(audiolitefocus))
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        _ = audiolitefocus.nonesuch


def test_ctrl_c_ends_with_status_130_and_one_word(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(AudioLDM2Pipeline, "from_pretrained", interrupted)
    result = run("generate", "x", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (130, "cancelled\n")


def test_a_process_of_its_own_ends_the_same_way(tmp_path):
    command = [sys.executable, "-m", "audiolitefocus", "generate", "x", "--steps", "0"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == "error: steps 0: must be a whole number from 1 to 1000"


def test_info_tells_what_the_bundle_is(tmp_path):
    result = run("info", "demo", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for word in ("demo", "16000 Hz", "unet", "parameters", "trained on synthetic sounds"):
        assert word in result.stdout
