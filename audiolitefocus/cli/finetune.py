"""audiolitefocus finetune: train a model's UNet on one's own sounds."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from audiolitefocus.cli.command import DeviceFlag, ModelFlag, printable

TRAINING = partial(typer.Option, rich_help_panel="Training")


def finetune(
    data: Annotated[
        Path,
        typer.Argument(
            help="A folder of sounds with metadata.csv or metadata.jsonl, or such a table: columns "
            "file_name and caption."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the adapter and all else.")],
    model: ModelFlag = "audioldm2",
    device: DeviceFlag = "auto",
    mixed_precision: Annotated[
        str, TRAINING(metavar="no|bf16|fp16", help="Precision of activations.")
    ] = "no",
    steps: Annotated[int, TRAINING(help="Updates of the weights.")] = 1000,
    batch_size: Annotated[int, TRAINING(help="Clips an evaluation.")] = 4,
    accumulate: Annotated[int, TRAINING(help="Evaluations an update.")] = 1,
    rank: Annotated[int, TRAINING(help="Of the adapters.")] = 16,
    full: Annotated[
        bool, TRAINING("--full", help="Train all of the UNet, and write a model of its own.")
    ] = False,
    learning_rate: Annotated[
        float | None, TRAINING(help="Default: 1e-4, with --full 1e-5.")
    ] = None,
    seconds: Annotated[
        list[float] | None,
        TRAINING(
            "--duration",
            help="Length of clips; several times for several lengths. Default: as trained.",
        ),
    ] = None,
    attention: Annotated[str, TRAINING(help="As for generate.")] = "auto",
    distill: Annotated[
        str | None,
        TRAINING(
            metavar="lcm",
            help="Distil the model, so that 2 to 8 steps of the sampler lcm are enough, instead of "
            "teaching it sounds.",
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None, TRAINING(help="Baked in by --distill. Default: 3.5.")
    ] = None,
    dropped: Annotated[
        float | None,
        TRAINING(
            help="Share of clips that are shown without their text. Default: 0.1; with --distill "
            "none, and no other."
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        TRAINING(
            help="File of prompts, one a line, that the model must not forget: clips of them are "
            "made first, and are half of every batch."
        ),
    ] = None,
    checkpointing: Annotated[
        bool, TRAINING("--checkpointing", help="Less memory, a third slower.")
    ] = False,
    seed: Annotated[int, TRAINING(help="Of batches and noise.")] = 0,
    save_every: Annotated[
        int, TRAINING(help="Updates between two states, from which a killed run goes on.")
    ] = 200,
    sample: Annotated[
        list[str] | None,
        TRAINING(help="A prompt to make a clip of with every state; may be given several times."),
    ] = None,
) -> None:
    """Fine-tune a model on your own sounds. The same command goes on where it was cut off."""
    from audiolitefocus.training.settings import Finetuning

    settings = Finetuning(
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        rank=rank,
        full=full,
        learning_rate=learning_rate,
        seconds=tuple(seconds or ()),
        attention=attention,
        distill=distill,
        guidance_scale=guidance_scale,
        dropped=dropped,
        checkpointing=checkpointing,
        seed=seed,
        save_every=save_every,
    )
    kept = _lines(keep) if keep else []
    from tqdm import tqdm

    from audiolitefocus.batch.run import rank_and_world
    from audiolitefocus.training.finetune import finetune as run
    from audiolitefocus.training.updates import show_update

    silent = rank_and_world()[0] > 0
    with tqdm(total=steps, unit="update", desc=printable(out.name), disable=silent) as bar:
        made = run(
            data,
            model,
            out,
            settings,
            device=device,
            mixed_precision=mixed_precision,
            prompts=sample or [],
            keep=kept,
            say=lambda line: tqdm.write(printable(line)),
            on_update=partial(show_update, bar),
        )
    if not silent:
        typer.echo(printable(str(made)))


def _lines(file: Path) -> list[str]:
    """The lines of a file that are not blank. Raises ValueError for one without any."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    if not any(lines):
        raise ValueError(f"{file} holds no prompts: give one a line")
    return [line for line in lines if line]
