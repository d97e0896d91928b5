"""The command line: audiolitefocus generate | convert | info. Parsing and printing only."""

import secrets
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Text to audio with AudioLDM2, long clips made cheap by LiteFocus attention.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What should be heard.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            "--out",
            help="Sound file (.wav, .flac, .ogg); with --prompts a folder. "
            "Default: a name made of the prompt and the seed, here.",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A file of prompts instead, a line each: TEXT, TEXT|NAME or a JSON object with "
            "prompt, name and settings. Clips that are there already are not made again."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="With --prompts: clips to make together; they stay the same.")
    ] = 1,
    model: Annotated[
        str,
        typer.Option(
            help="demo, audioldm2, audioldm2-large, audioldm2-music, a converted folder, or a "
            "hub repository OWNER/NAME."
        ),
    ] = "audioldm2",
    duration: Annotated[float | None, typer.Option(help="Seconds. Default: as trained.")] = None,
    init_audio: Annotated[
        str | None, typer.Option(metavar="FILE", help="A recording to make a variation of.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(help="Of the variation, up to 1, where the recording is forgotten [0.5]."),
    ] = None,
    inpaint: Annotated[
        str | None,
        typer.Option(
            metavar="START:END",
            help="Seconds of --init-audio to make anew; the rest stays as it is.",
        ),
    ] = None,
    continue_audio: Annotated[
        str | None,
        typer.Option(
            "--continue", metavar="FILE", help="A recording that goes on up to --duration."
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps; dpm++ needs 20 to 25.")] = 200,
    sampler: Annotated[str, typer.Option(help="ddim or dpm++.")] = "ddim",
    eta: Annotated[float, typer.Option(help="Fresh noise in ddim, 0 to 1.")] = 1.0,
    guidance_scale: Annotated[
        float, typer.Option(help="How closely to follow the prompt; 1 is without guidance.")
    ] = 3.5,
    negative_prompt: Annotated[str | None, typer.Option(help="What to steer away from.")] = None,
    unconditional: Annotated[
        str, typer.Option(help="trained, or empty_prompt as diffusers does.")
    ] = "trained",
    candidates: Annotated[int, typer.Option(help="Clips to make; CLAP keeps the best.")] = 1,
    seed: Annotated[
        int | None,
        typer.Option(help="Same seed, same clip. Default: random; with --prompts, by the text."),
    ] = None,
    attention: Annotated[
        str,
        typer.Option(
            help="auto, dense, tome, litefocus[:RATIO[:DEEPEST]] or cross-frequency:RATIO."
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cuda, mps or cpu.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="Of the denoiser: float32, bfloat16, float16, or auto.")
    ] = "auto",
    offload: Annotated[
        bool,
        typer.Option("--offload", help="Networks are on the device only while they work."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Make sound files from prompts, each with a JSON file that says how to make it again."""
    from audiolitefocus.options import Settings
    from audiolitefocus.pipeline import AudioLDM2Pipeline

    settings = Settings(
        duration=duration,
        init_audio=init_audio,
        strength=strength,
        inpaint=inpaint,
        continue_audio=continue_audio,
        steps=steps,
        sampler=sampler,
        eta=eta,
        guidance_scale=guidance_scale,
        negative_prompt=negative_prompt,
        unconditional=unconditional,
        candidates=candidates,
        seed=secrets.randbits(32) if seed is None else seed,
        attention=attention,
    )

    def load(device: str) -> AudioLDM2Pipeline:
        return AudioLDM2Pipeline.from_pretrained(model, dtype=dtype, device=device, offload=offload)

    if (prompt is None) == (prompts is None):
        raise ValueError("give either a prompt or --prompts FILE")
    if prompt is not None:
        _make_one(prompt, output, settings, lambda: load(device), force)
    if prompts is not None:
        _make_many(
            prompts,
            output,
            settings,
            seed,
            lambda ranks: load(ranks.device(device)),
            batch_size,
            force,
        )


def _make_one(prompt: str, output: Path | None, settings, load, force: bool) -> None:
    from tqdm import tqdm

    from audiolitefocus.batch import clips as jobs

    clip = jobs.plan(prompt, output, settings, force=force)
    pipe = load()
    with tqdm(
        total=settings.steps_taken * settings.candidates,
        desc=_printable(clip.path.name),
        unit="step",
    ) as bar:
        (made,) = jobs.make_clips(
            pipe,
            [clip],
            lambda step, timestep, latents: bar.update(len(latents)),
            lambda done, total: bar.set_postfix_str(f"decoding {done / total:.0%}"),
        )
        jobs.save_clip(pipe, clip, made)
    typer.echo(_line(clip, made))


def _make_many(
    prompts: Path, folder: Path | None, settings, seed: int | None, load, batch_size: int, force
) -> None:
    from tqdm import tqdm

    from audiolitefocus.batch.ranks import Ranks
    from audiolitefocus.batch.run import Job, read_prompts

    clips = read_prompts(prompts, folder or Path("."), settings, seed=seed)
    ranks = Ranks.join()
    job = Job(load(ranks), clips, ranks, batch_size=batch_size, force=force)
    with tqdm(
        total=job.steps,
        desc=_printable(prompts.name),
        unit="step",
        disable=not (ranks.first and job.batches),
    ) as bar:

        def on_progress(steps: int) -> None:
            bar.update(steps - bar.n)

        report = job.run(on_progress, lambda *clip: tqdm.write(_line(*clip)))
    if not ranks.first:
        return
    for path, reason in report.failed.items():
        typer.echo(_printable(f"failed: {path}: {reason}"), err=True)
    typer.echo(f"{len(report.made)} made, {len(report.kept)} there already")
    if report.failed:
        raise ValueError(f"{len(report.failed)} of {len(clips)} clips failed")


def _line(clip, made) -> str:
    """What is said of a clip that has been made."""
    settings = clip.settings
    best = "" if made.scores is None else f", CLAP {made.scores[0]:.3f}"
    best = best and f"{best}, best of {settings.candidates}"
    return _printable(f"{clip.path} (seed {settings.seed}{best})")


@app.command()
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
            revision=revision,
            force=force,
            progress=bar,
        )
    typer.echo(_printable(f"{destination}: {config.name}"))
    for line in (config.provenance["heads"], *config.provenance["notes"]):
        typer.echo(_printable(f"  {line}"))


@app.command()
def info(folder: Annotated[str, typer.Argument(help="A bundle's folder, or demo.")]) -> None:
    """Print what a bundle is: networks, sizes, where it came from."""
    from audiolitefocus.checkpoints.bundle import describe

    for line in describe(folder):
        typer.echo(_printable(line))


def main() -> None:
    """Entry point: errors that a user can mend are one line on stderr and a non-zero exit."""
    warnings.showwarning = _show_warning
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except (ValueError, OSError, MemoryError) as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        _fail("cancelled", status=130)
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer raises for bad options
            raise
        _fail(error.format_message(), status=getattr(error, "exit_code", 2))


def _fail(message: str, status: int = 1) -> None:
    print(f"error: {_printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(status)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {_printable(' '.join(str(message).split()))}", file=sys.stderr)


def _printable(text: str) -> str:
    """Without control characters, which a terminal would obey, whoever wrote them."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
