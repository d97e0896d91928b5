"""What all commands share: the app, options under captions, and text that is safe to print."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
import typer.core

from audiolitefocus.options import DEFAULTS, OPTIONS, flag_of
from audiolitefocus.validation import Choice, Custom, Number

app = typer.Typer(
    help="Text to audio with AudioLDM2, long clips made cheap by LiteFocus attention.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

FILES = partial(typer.Option, rich_help_panel="Files")
CLUSTER = partial(typer.Option, rich_help_panel="Cluster")
MODEL = partial(typer.Option, rich_help_panel="Model")

ModelFlag = Annotated[
    str,
    MODEL(
        help="demo, audioldm2, audioldm2-large, audioldm2-music, a converted folder, or a "
        "hub repository OWNER/NAME."
    ),
]
NO_DRAFTER = "none"
DrafterFlag = Annotated[
    str,
    MODEL(
        help="A second model with the same latents, which takes some of the steps "
        "(--drafter-interval); named as --model, or none."
    ),
]
LoraFlag = Annotated[
    list[str] | None,
    MODEL(
        "--lora",
        metavar="FOLDER[:SCALE]",
        help="An adapter to add to the model's weights, as finetune makes them; may be given "
        "several times.",
    ),
]
DeviceFlag = Annotated[
    str, MODEL(help="auto, cuda, mps or cpu; several for --parallel, as cuda:0,cuda:1.")
]
DtypeFlag = Annotated[str, MODEL(help="float32, bfloat16, float16, or auto.")]
OffloadFlag = Annotated[
    bool,
    MODEL("--offload", help="Keep networks on the CPU, and on the device only while they run."),
]


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


def given_by(ctx: typer.Context) -> set[str]:
    """The parameters of a command that its caller has written."""
    sources = ((name, ctx.get_parameter_source(name)) for name in ctx.params)
    return {name for name, source in sources if source is not None and source.name != "DEFAULT"}


def read_adapters(given: list[str] | None) -> list[tuple[str, float]]:
    """Folders and scales of adapters that can be read. Raises ValueError for others."""
    if not given:
        return []
    from audiolitefocus.checkpoints.adapters import Adapter, parse_adapter

    parsed = [parse_adapter(text) for text in given]
    for folder, _ in parsed:
        Adapter.read(folder)
    return parsed


def printable(text: str) -> str:
    """The text without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
