"""The command line run inside the test's process, and what a refusal must look like."""

import contextlib
import io
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from audiolitefocus import cli

QUICK = ("--model", "demo", "--device", "cpu", "--steps", "2", "--duration", "0.64", "--seed", "7")


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """The lines of stderr that report an error."""
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]


def run(*arguments: str | Path, cwd: Path) -> Result:
    """Run `audiolitefocus ARGUMENTS` in `cwd`, in this process: importing torch takes seconds."""
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


def assert_failed(result: Result, *words: str, status: int | None = None) -> None:
    """A non-zero exit and one line that has all the words; no traceback."""
    assert result.returncode != 0, result.stdout
    assert status is None or result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr and len(result.errors) == 1, result.stderr
    assert all(word in result.errors[0] for word in words), result.errors


def assert_refused(result: Result, message: str, folder: Path) -> None:
    """The same with a message, and nothing written into the folder."""
    assert_failed(result, message)
    assert not [path for path in folder.rglob("*") if path.suffix in (".wav", ".part", ".json")]
