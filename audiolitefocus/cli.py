"""The command line: audiolitefocus generate | convert | info | serve | web. Parsing and printing
only.
"""

import contextlib
import inspect
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from audiolitefocus.options import DEFAULTS, OPTIONS, SHORT, GenerationOptions, flag_of
from audiolitefocus.validation import Choice, Custom, Number
from audiolitefocus.web import commands
from audiolitefocus.web.commands import DeviceFlag, DtypeFlag, ModelFlag

INTERRUPTED = 130  # exit status after Ctrl-C, as of shells

app = typer.Typer(
    help="Text to audio with AudioLDM2, long clips made cheap by LiteFocus attention.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


FILES = partial(typer.Option, rich_help_panel="Files")


class GroupedCommand(typer.core.TyperCommand):
    """A command whose --help lists its options under captions, in plain text of any width."""

    def format_options(self, ctx, formatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                caption = getattr(parameter, "rich_help_panel", None) or _caption(parameter)
                groups.setdefault(caption, []).append(record)
        for caption, records in groups.items():
            with formatter.section(caption):
                formatter.write_dl(records)


def _caption(parameter) -> str:
    return "Arguments" if parameter.param_type_name == "argument" else "Other"


def takes_options(command: Callable) -> Callable:
    """The command with a flag for each field of `GenerationOptions` in place of its **options."""
    signature = inspect.signature(command)
    own = list(signature.parameters.values())[:-1]
    flags = [_flag(name) for name in OPTIONS]
    command.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    return command


def _flag(name: str) -> inspect.Parameter:
    option, default = OPTIONS[name], DEFAULTS[name]
    info = typer.Option(
        default,
        flag_of(name),
        help=option.help,
        metavar=_metavar(option.rule),
        rich_help_panel=option.group,
    )
    kind: Any = option.rule.kind
    annotation = kind | None if default is None else kind
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=annotation
    )


def _metavar(rule: Number | Choice | Custom) -> str:
    if isinstance(rule, Choice):
        return "|".join(rule.names)
    return f"{rule.low:g}..{rule.high:g}" if isinstance(rule, Number) else rule.metavar


@app.command(cls=GroupedCommand)
@takes_options
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The sound to make.")] = None,
    output: Annotated[
        Path | None,
        FILES(
            "-o",
            "--output",
            "--out",
            help="Sound file (.wav, .flac, .ogg); with --prompts a folder. Default: a name made "
            "from the prompt and the seed, in the current folder.",
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
    batch_size: Annotated[
        int, FILES(help="Clips per batch with --prompts; does not change the results.")
    ] = 1,
    force: Annotated[bool, FILES("--force", help="Replace files that exist.")] = False,
    model: ModelFlag = "audioldm2",
    device: DeviceFlag = "auto",
    dtype: DtypeFlag = "auto",
    offload: Annotated[
        bool,
        commands.MODEL(
            "--offload", help="Keep networks on the CPU, and on the device only while they run."
        ),
    ] = False,
    **options: Any,
) -> None:
    """Make sound files from prompts, each with a JSON file that says how to make it again."""
    chosen = GenerationOptions.make(None, {SHORT[name]: value for name, value in options.items()})
    if (prompt is None) == (prompts is None):
        raise ValueError("give either a prompt or --prompts FILE")

    def load(device: str):
        from audiolitefocus.pipeline import AudioLDM2Pipeline

        return AudioLDM2Pipeline.from_pretrained(model, dtype=dtype, device=device, offload=offload)

    if prompt is not None:
        _make_one(prompt, output, chosen, lambda: load(device), force)
    if prompts is not None:
        from audiolitefocus.batch.run import own_device

        folder = output or Path(".")
        _make_many(prompts, folder, chosen, lambda: load(own_device(device)), batch_size, force)


def _make_one(prompt: str, output: Path | None, options, load, force: bool) -> None:
    from tqdm import tqdm

    from audiolitefocus.batch import clips

    clip = clips.plan(prompt, output, options, force=force)
    pipe = load()
    total = clip.options.steps_taken * clip.options.num_waveforms_per_prompt
    with tqdm(total=total, desc=_printable(clip.path.name), unit="step") as bar:
        (made,) = clips.make_clips(
            pipe,
            [clip],
            lambda step, timestep, latents: bar.update(len(latents)),
            lambda done, total: bar.set_postfix_str(f"decoding {done / total:.0%}"),
        )
        clips.save_clip(pipe, clip, made)
    typer.echo(_line(clip, made))


def _make_many(prompts: Path, folder: Path, options, load, batch_size: int, force: bool) -> None:
    from tqdm import tqdm

    from audiolitefocus.batch.prompts import read_prompts
    from audiolitefocus.batch.run import BatchRun, own_share, rank_and_world

    clips = own_share(read_prompts(prompts, folder, options))
    run = BatchRun(load(), clips, batch_size=batch_size, force=force)
    silent = rank_and_world()[0] > 0 or not run.batches
    with tqdm(total=run.steps, desc=_printable(prompts.name), unit="step", disable=silent) as bar:
        report = run.run(bar.update, lambda *clip: tqdm.write(_line(*clip)))
    for path, reason in report.failed.items():
        typer.echo(_printable(f"failed: {path}: {reason}"), err=True)
    typer.echo(f"{len(report.made)} made, {len(report.kept)} there already")
    if report.failed:
        raise ValueError(f"{len(report.failed)} of {len(clips)} clips failed")


def _line(clip, made) -> str:
    """What is printed of a clip that has been made."""
    copies = clip.options.num_waveforms_per_prompt
    best = "" if made.scores is None else f", CLAP {made.scores[0]:.3f}, best of {copies}"
    return _printable(f"{clip.path} (seed {clip.seed}{best})")


@app.command(cls=GroupedCommand)
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


@app.command(cls=GroupedCommand)
def info(folder: Annotated[str, typer.Argument(help="A bundle's folder, or demo.")]) -> None:
    """Print what a bundle is: networks, sizes, where it came from."""
    from audiolitefocus.checkpoints.bundle import describe

    for line in describe(folder):
        typer.echo(_printable(line))


app.command(cls=GroupedCommand)(commands.serve)
app.command(cls=GroupedCommand)(commands.web)


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
    print(f"error: {_printable(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(status)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"warning: {_printable(' '.join(str(message).split()))}", file=sys.stderr)


def _printable(text: str) -> str:
    """The text without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
