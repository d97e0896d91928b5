"""audiolitefocus generate: one clip, one like another, or those of a file of prompts."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from audiolitefocus.cli.cluster import make_on_ray
from audiolitefocus.cli.command import (
    CLUSTER,
    FILES,
    NO_DRAFTER,
    DeviceFlag,
    DrafterFlag,
    DtypeFlag,
    LoraFlag,
    ModelFlag,
    OffloadFlag,
    given_by,
    printable,
    read_adapters,
    takes_options,
)
from audiolitefocus.options import SHORT, GenerationOptions


@takes_options
def generate(
    ctx: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="The sound to make.")] = None,
    output: Annotated[
        str | None,
        FILES(
            "-o",
            "--output",
            "--out",
            metavar="PATH",
            help="Sound file (.wav, .flac, .ogg, .opus, .mp3); with --prompts a folder, with --ray "
            "also a URL. Default: a name made from the prompt and the seed, in the current folder.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        FILES(
            metavar="FILE",
            help="Prompts, one a line: TEXT, TEXT|NAME, or a JSON object with prompt, name and any "
            "option below. Clips that are finished already are kept.",
        ),
    ] = None,
    like: Annotated[
        Path | None,
        FILES(
            metavar="CLIP",
            help="A clip of this program to make again, by the recipe in it or beside it: with "
            "whatever else is given here changed. Then a prompt is optional.",
        ),
    ] = None,
    batch_size: Annotated[
        int, FILES(help="Clips per batch with --prompts; does not change the results.")
    ] = 1,
    bits: Annotated[
        int | None,
        FILES(
            metavar="16|24|32",
            help="Bits a sample: 16, the default, or 24 in .wav and .flac, or 32, floating point, "
            "in .wav.",
        ),
    ] = None,
    force: Annotated[bool, FILES("--force", help="Replace files that exist.")] = False,
    ray: Annotated[
        str | None,
        CLUSTER(
            metavar="local|auto|HOST:PORT",
            help="With --prompts: make the clips by workers of Ray, started on this machine, of "
            "the cluster that runs here, or of one by its head node.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        CLUSTER(help="Default: one for each GPU, or for every four CPUs.", min=1),
    ] = None,
    model: ModelFlag = "audioldm2",
    drafter: DrafterFlag = NO_DRAFTER,
    lora: LoraFlag = None,
    device: DeviceFlag = "auto",
    dtype: DtypeFlag = "auto",
    offload: OffloadFlag = False,
    **options: Any,
) -> None:
    """Make sound files from prompts, each with a JSON file that says how to make it again."""
    # 1. Check what was written
    given = given_by(ctx)
    changes = {name: value for name, value in options.items() if name in given}
    _check_written(prompt, prompts, like)
    if ray is None and (workers is not None or (output is not None and "://" in output)):
        raise ValueError("--workers, and URLs as --out, need --ray local, auto or HOST:PORT")
    if ray is not None and (prompts is None or drafter != NO_DRAFTER or lora):
        raise ValueError("--ray needs --prompts FILE, and no --drafter or --lora")
    place = None if output is None else Path(output)
    loading: dict[str, Any] = dict(model=model, dtype=dtype, device=device, offload=offload)
    load = partial(_load, adapters=read_adapters(lora), drafter=drafter, **loading)

    # 2. Make it
    if like is not None:
        models = {"model": model, "drafter": drafter, "dtype": dtype}
        own = {name: value for name, value in models.items() if name in given}
        _make_like(like, prompt, place, changes, load, own, bits=bits, force=force)
        return
    how: dict[str, Any] = dict(batch_size=batch_size, bits=bits, force=force)
    chosen = _options(changes)
    if prompts is not None and ray is not None:
        target = output or "."
        make_on_ray(prompts, target, chosen, loading, address=ray, workers=workers, **how)
    elif prompts is not None:
        _make_many(prompts, place or Path("."), chosen, load, device, **how)
    elif prompt is not None:
        from audiolitefocus.batch.clips import plan

        _make_one(plan(prompt, place, chosen, force=force, bits=bits), *load())


def _check_written(prompt: str | None, prompts: Path | None, like: Path | None) -> None:
    if prompts is not None and (prompt is not None or like is not None):
        raise ValueError(
            "give either a prompt or --prompts FILE, and --like CLIP without the latter"
        )
    if prompt is None and prompts is None and like is None:
        raise ValueError("give a prompt, --prompts FILE or --like CLIP")


def _load(model: str, drafter: str, adapters: list[tuple[str, float]], **placement: Any) -> tuple:
    """The model, and its drafter or None."""
    from audiolitefocus.pipeline import AudioLDM2Pipeline

    names = (model,) if drafter == NO_DRAFTER else (model, drafter)
    loaded = [AudioLDM2Pipeline.from_pretrained(name, **placement) for name in names]
    for folder, scale in adapters:
        loaded[0].load_lora(folder, scale)
    return loaded[0], loaded[1] if len(loaded) > 1 else None


def _options(changes: dict[str, object]) -> GenerationOptions:
    """Options by field; errors call them as the command line does."""
    named = {SHORT[name]: value for name, value in changes.items()}
    return GenerationOptions.make(None, named, called=SHORT)


def _make_like(
    like: Path,
    prompt: str | None,
    output: Path | None,
    changes: dict[str, object],
    load: Callable,
    own: dict[str, str],
    *,
    bits: int | None,
    force: bool,
) -> None:
    """A clip by the recipe of another, with changes; `own` are models and dtype as given."""
    from audiolitefocus.batch import recipes
    from audiolitefocus.batch.clips import plan

    recipe = recipes.find_recipe(like)
    model = own.get("model") or recipes.model_in(recipe, like)
    drafter = own.get("drafter") or recipes.drafter_in(recipe, like) or NO_DRAFTER
    if drafter == NO_DRAFTER:
        recipe = {**recipe, "drafter_interval": None}
    chosen = _options(recipes.options_of(recipe, changes))
    dtype = own.get("dtype") or recipes.dtype_in(recipe)
    text = recipe["prompt"] if prompt is None else prompt
    clip = plan(text, output, chosen, force=force, bits=bits or recipes.bits_in(recipe, output))
    pipe, second = load(model=model, drafter=drafter, dtype=dtype)
    recipes.check_adapters(recipe, pipe, like)
    same_recording = not changes.keys() & {"init_audio", "continue_audio"}
    digest = clip.recording_sha256 if same_recording else None
    recipes.warn_of_changes(recipe, pipe, second, digest)
    _make_one(clip, pipe, second)


def _make_one(clip, pipe, drafter) -> None:
    from tqdm import tqdm

    from audiolitefocus.batch import clips
    from audiolitefocus.diffusion.distilled import options_for

    options = options_for(pipe.config, clip.options)
    total = options.steps_taken * options.num_waveforms_per_prompt
    with tqdm(total=total, desc=printable(clip.path.name), unit="step") as bar:
        (made,) = clips.make_clips(
            pipe,
            [clip],
            lambda step, timestep, latents: bar.update(len(latents)),
            lambda done, total: bar.set_postfix_str(f"decoding {done / total:.0%}"),
            drafter,
        )
        clips.save_clip(pipe, clip, made, drafter)
    typer.echo(_line(clip, made))


def _make_many(
    prompts: Path,
    folder: Path,
    options: GenerationOptions,
    load: Callable,
    device: str,
    *,
    batch_size: int,
    bits: int | None,
    force: bool,
) -> None:
    from tqdm import tqdm

    from audiolitefocus.batch.prompts import read_prompts
    from audiolitefocus.batch.run import BatchRun, own_device, own_share, rank_and_world

    clips = own_share(read_prompts(prompts, folder, options, bits=bits))
    pipe, drafter = load(device=own_device(device))
    run = BatchRun(pipe, clips, batch_size=batch_size, force=force, drafter=drafter)
    silent = rank_and_world()[0] > 0 or not run.batches
    with tqdm(total=run.steps, desc=printable(prompts.name), unit="step", disable=silent) as bar:
        report = run.run(bar.update, lambda *clip: tqdm.write(_line(*clip)))
    for path, reason in report.failed.items():
        typer.echo(printable(f"failed: {path}: {reason}"), err=True)
    typer.echo(f"{len(report.made)} made, {len(report.kept)} there already")
    if report.failed:
        raise ValueError(f"{len(report.failed)} of {len(clips)} clips failed")


def _line(clip, made) -> str:
    """What is printed of a clip that has been made."""
    from audiolitefocus.batch.run import describe_made

    return printable(f"{clip.path} {describe_made(clip, made)}")
