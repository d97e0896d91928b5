"""audiolitefocus convert and info: models, and what is known of a clip."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from audiolitefocus.cli.command import printable


def convert(
    source: Annotated[
        str,
        typer.Argument(help="A diffusers folder, a hub repository OWNER/NAME, or a .pth / .ckpt."),
    ],
    destination: Annotated[Path, typer.Argument(help="The folder to make.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: the source's.")
    ] = None,
    heads: Annotated[
        str, typer.Option(help="trained: heads of 32 channels; config: as the repository says.")
    ] = "trained",
    tokenizers: Annotated[
        Path | None,
        typer.Option(help="A folder with clap/ and t5/, for sources without tokenizers."),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="Weights files to prefer, as fp16 for model.fp16.safetensors."),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace DESTINATION.")] = False,
) -> None:
    """Convert AudioLDM2 weights into a bundle, once; every key is accounted for."""
    from tqdm import tqdm

    from audiolitefocus.checkpoints.convert import convert_checkpoint

    with tqdm(unit="B", unit_scale=True, desc="convert") as bar:
        config = convert_checkpoint(
            source,
            destination,
            dtype=dtype,
            heads=heads,
            tokenizers=tokenizers,
            variant=variant,
            revision=revision,
            force=force,
            progress=bar,
        )
    typer.echo(printable(f"{destination}: {config.name}"))
    for line in (config.provenance["heads"], *config.provenance["notes"]):
        typer.echo(printable(f"  {line}"))


def info(
    source: Annotated[
        str, typer.Argument(help="A bundle's folder, demo, or a clip (a sound file or its JSON).")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, all of it.")] = False,
) -> None:
    """Print what a bundle is (networks, sizes, where it came from), or how a clip was made."""
    for line in (
        _recipe_lines(Path(source), as_json)
        if Path(source).is_file()
        else _bundle_lines(source, as_json)
    ):
        typer.echo(printable(line))


def _recipe_lines(path: Path, as_json: bool) -> Iterable[str]:
    from audiolitefocus.batch.recipes import describe_recipe, find_recipe

    recipe = find_recipe(path)
    return json.dumps(recipe, indent=2).splitlines() if as_json else describe_recipe(recipe)


def _bundle_lines(folder: str, as_json: bool) -> Iterable[str]:
    from audiolitefocus.checkpoints.bundle import describe, load_config
    from audiolitefocus.config import demo_folder

    if not as_json:
        return describe(folder)
    return load_config(demo_folder() if folder == "demo" else folder).to_json().splitlines()
