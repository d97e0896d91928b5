"""audiolitefocus generate --ray: the clips of a file of prompts, on a Ray cluster."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from audiolitefocus.cli.command import printable
from audiolitefocus.options import GenerationOptions


def need_ray() -> None:
    """Raise ValueError with the remedy if the extra is not installed."""
    absent = [name for name in ("ray", "pyarrow") if importlib.util.find_spec(name) is None]
    if absent:
        raise ValueError(
            f"--ray needs {' and '.join(absent)}: pip install 'audiolitefocus[ray]', on every "
            f"machine of the cluster"
        )


def make_on_ray(
    prompts: Path,
    out: str,
    options: GenerationOptions,
    loading: Mapping[str, Any],
    *,
    address: str,
    workers: int | None,
    batch_size: int,
    bits: int | None,
    force: bool,
) -> None:
    need_ray()
    from tqdm import tqdm

    from audiolitefocus.batch.cluster import check_address
    from audiolitefocus.batch.ray import RayRun, Result

    check_address(address)
    with (
        RayRun(
            prompts, out, options, **loading, batch_size=batch_size, bits=bits, force=force
        ) as run,
        tqdm(
            total=run.missing, desc=printable(prompts.name), unit="clip", disable=not run.missing
        ) as bar,
    ):

        def show(result: Result) -> None:
            bar.update()
            if not result.failed:
                tqdm.write(printable(result.said))

        totals = run.run(address, workers=workers, on_clip=show)
        bar.close()
        for reason in run.failures():
            typer.echo(printable(f"failed: {reason}"), err=True)
        typer.echo(f"{totals.made} made, {totals.kept} there already")
        if totals.failed:
            raise ValueError(f"{totals.failed} of {run.total} clips failed")
