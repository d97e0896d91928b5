"""audiolitefocus check: a report of a machine and a model on it, for people and for bug reports."""

import json
from pathlib import Path
from typing import Annotated

import typer

from audiolitefocus.cli.command import DeviceFlag, DtypeFlag, OffloadFlag, printable


def check(
    model: Annotated[
        str, typer.Argument(help="As for generate: a name, a folder, or OWNER/NAME on the hub.")
    ] = "audioldm2",
    device: DeviceFlag = "auto",
    dtype: DtypeFlag = "auto",
    offload: OffloadFlag = False,
    report: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON too.")
    ] = None,
) -> None:
    """Check that a model works here: every stage, a clip, parity with diffusers, speed.

    The report can be pasted into a bug report: it names no folders. Exit status 1 if a check fails.
    """
    from audiolitefocus.atomic import atomic_file, check_writable
    from audiolitefocus.check import run_checks
    from audiolitefocus.check.report import failures, to_json

    if report is not None:
        check_writable(report.parent)
    name = Path(model).name if Path(model).exists() else model
    typer.echo(printable(f"audiolitefocus check {name}"))
    sections = []
    for section in run_checks(model, device=device, dtype=dtype, offload=offload):
        sections.append(section)
        typer.echo("")
        for line in section.lines():
            typer.echo(printable(line))
    if report is not None:
        with atomic_file(report) as part:
            text = json.dumps(to_json(name, sections), indent=2)
            part.write_text(text + "\n", encoding="utf-8")
    if failed := failures(sections):
        count = "1 check" if len(failed) == 1 else f"{len(failed)} checks"
        typer.echo(f"\n{count} failed: {', '.join(failed)}")
        raise typer.Exit(1)
    typer.echo("\nall checks passed")
