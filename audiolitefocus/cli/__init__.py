"""The command line: audiolitefocus generate | convert | info | check | finetune | serve | web.

Parsing and printing only.
"""

import contextlib
import sys
import warnings
from typing import Annotated, Any

import typer

from audiolitefocus import __version__
from audiolitefocus.cli.check import check
from audiolitefocus.cli.command import GroupedCommand, app, printable
from audiolitefocus.cli.finetune import finetune
from audiolitefocus.cli.generate import generate
from audiolitefocus.cli.models import convert, info
from audiolitefocus.cli.serving import serve, web

INTERRUPTED = 130  # exit status after Ctrl-C, as of shells


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"audiolitefocus {__version__}")
        raise typer.Exit


@app.callback()
def _without_command(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="The version."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for command in (generate, convert, info, check, finetune, serve, web):  # in the order of --help
    app.command(cls=GroupedCommand)(command)


class Unfailing:
    """A stream that never fails: what is shown must not decide what is made.

    Characters that its encoding lacks are written as escapes, and nothing where it is closed.
    """

    def __init__(self, stream: Any):
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self.stream.flush()

    def isatty(self) -> bool:
        return self.stream is not None and not self.stream.closed and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def main() -> None:
    """Entry point: errors that a user can mend are one line on stderr, with a non-zero exit."""
    warnings.showwarning = _show_warning
    sys.stdout, sys.stderr = Unfailing(sys.stdout), Unfailing(sys.stderr)
    try:
        status = app(standalone_mode=False) or 0
        if status == INTERRUPTED:  # how typer reports Ctrl-C; older versions raise Abort
            raise KeyboardInterrupt
        sys.exit(status)
    except (ValueError, OSError, MemoryError) as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        print("cancelled", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer raises for bad options
            raise
        _fail(error.format_message(), status=getattr(error, "exit_code", 2))


def _fail(message: str, status: int = 1) -> None:
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(status)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {printable(' '.join(str(message).split()))}", file=sys.stderr)
