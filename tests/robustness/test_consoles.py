"""What is shown never decides what is made: encodings, closed streams, pipes that nobody reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import QUICK

COMMAND = f"{sys.executable} -m audiolitefocus generate {' '.join(QUICK)}"
FOLDER = "雨の音"


def shell(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, env=env, capture_output=True, timeout=120, check=False
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".wav")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_that_cannot_print_a_name(encoding, tmp_path):
    (tmp_path / "prompts.txt").write_text("rain|雨\nwind|風\n", encoding="utf-8")
    result = shell(
        f"{COMMAND} --prompts prompts.txt --out {FOLDER}", tmp_path, PYTHONIOENCODING=encoding
    )
    assert result.returncode == 0, result.stderr
    assert names(tmp_path / FOLDER) == ["雨.wav", "風.wav"]
    assert b"\\u96e8" in result.stdout + result.stderr
    single = shell(f"{COMMAND} rain -o {FOLDER}/x.wav", tmp_path, PYTHONIOENCODING=encoding)
    assert single.returncode == 0, single.stderr
    assert names(tmp_path / FOLDER) == ["x.wav", "雨.wav", "風.wav"]


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "| true", "2>&1 | true"])
def test_closed_streams_and_unread_pipes(closed, tmp_path):
    (tmp_path / "prompts.txt").write_text("rain|a\nwind|b\n")
    command = f"set -o pipefail; {COMMAND} --prompts prompts.txt --out out {closed}"
    result = shell(command, tmp_path)
    assert result.returncode == 0, result.stderr
    assert names(tmp_path / "out") == ["a.wav", "b.wav"]


def test_an_error_is_said_once_and_the_exit_status_tells_it(tmp_path):
    result = shell(f"{COMMAND} rain -o {FOLDER}/x.wav", tmp_path, PYTHONIOENCODING="cp1252")
    assert result.returncode == 1
    lines = result.stderr.decode().splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1
