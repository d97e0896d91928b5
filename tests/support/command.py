"""The command line in this process, and what holds whenever it refuses something."""

import contextlib
import io
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from audiolitefocus import cli

# Options of the quickest clip of the demo model: 0.64 s in two steps.
QUICK = ("--model", "demo", "--device", "cpu", "--steps", "2", "--duration", "0.64", "--seed", "7")


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str | Path, cwd: Path) -> Result:
    """audiolitefocus ARGUMENTS in `cwd`, in this process: importing torch again takes seconds."""
    out, err, shown = io.StringIO(), io.StringIO(), warnings.showwarning
    before, sys.argv = sys.argv, ["audiolitefocus", *map(str, arguments)]
    try:
        with contextlib.chdir(cwd), redirect_stdout(out), redirect_stderr(err):
            warnings.simplefilter("always")
            cli.main()
    except SystemExit as stop:
        return Result(int(stop.code or 0), out.getvalue(), err.getvalue())
    finally:
        sys.argv, warnings.showwarning = before, shown
    raise AssertionError("main() returned without an exit status")


def assert_refused(result: Result, message: str, folder: Path) -> None:
    """One line that names the fault, a non-zero exit, no traceback, and nothing written."""
    assert result.returncode != 0, result.stdout
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert message in errors[0]
    assert not [path for path in folder.rglob("*") if path.suffix in (".wav", ".part", ".json")]
