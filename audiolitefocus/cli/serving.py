"""audiolitefocus serve and web, whose options are not those of a clip."""

import importlib.util
import os
import socket
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audiolitefocus.cli.command import (
    DeviceFlag,
    DtypeFlag,
    LoraFlag,
    ModelFlag,
    read_adapters,
)
from audiolitefocus.validation import MAX_SECONDS, check_number

if TYPE_CHECKING:
    from audiolitefocus.pipeline import AudioLDM2Pipeline

SERVING = partial(typer.Option, rich_help_panel="Serving")

HostFlag = Annotated[
    str, SERVING(help="Address to listen on; 0.0.0.0 is every one of this machine.")
]
SecondsFlag = Annotated[
    float, SERVING(help="Seconds of sound that one request may ask for, candidates together.")
]
QueueFlag = Annotated[int, SERVING(help="Requests that may wait; others are told to come again.")]

KEY_VARIABLE = "AUDIOLITEFOCUS_API_KEY"
SHORTEST_KEY = 16  # characters
GRACE_SECONDS = 30  # for what is being made when the server is asked to stop
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def serve(
    model: ModelFlag = "audioldm2",
    lora: LoraFlag = None,
    device: DeviceFlag = "auto",
    dtype: DtypeFlag = "auto",
    host: HostFlag = "127.0.0.1",
    port: Annotated[int, SERVING(help="0: any that is free.")] = 8000,
    api_key_file: Annotated[
        Path | None,
        SERVING(help=f"File with the key that requests must bring. Default: ${KEY_VARIABLE}."),
    ] = None,
    queue: QueueFlag = 16,
    batch_size: Annotated[int, SERVING(help="Waiting requests that are made together.")] = 4,
    max_seconds: SecondsFlag = 300.0,
) -> None:
    """Answer requests for sounds over HTTP: POST /v1/audio/generate."""
    # 1. Check everything before the model is loaded
    need("fastapi", "uvicorn")
    check_number("batch-size", batch_size, 1, 1000)
    check_serving(port, queue, max_seconds)
    adapters = read_adapters(lora)
    key = read_key(api_key_file)
    if key is None:
        warn_of_strangers(host, f"give --api-key-file or set {KEY_VARIABLE}")

    # 2. Listen, load, serve
    with listen(host, port) as listening:
        import uvicorn

        from audiolitefocus.web.limits import Limits
        from audiolitefocus.web.server import make_app

        limits = Limits(seconds=max_seconds, waiting=queue, batch=batch_size)
        app = make_app(load(model, device, dtype, adapters), model=model, limits=limits, key=key)
        config = uvicorn.Config(
            app, timeout_graceful_shutdown=GRACE_SECONDS, server_header=False, lifespan="on"
        )
        typer.echo(f"listening on {address(listening)}")
        uvicorn.Server(config).run([listening])


def web(
    model: ModelFlag = "audioldm2",
    lora: LoraFlag = None,
    device: DeviceFlag = "auto",
    dtype: DtypeFlag = "auto",
    host: HostFlag = "127.0.0.1",
    port: Annotated[int, SERVING(help="0: any that is free.")] = 7860,
    queue: QueueFlag = 16,
    max_seconds: SecondsFlag = 300.0,
) -> None:
    """Show a page in the browser that makes sounds."""
    need("gradio")
    check_serving(port, queue, max_seconds)
    adapters = read_adapters(lora)
    warn_of_strangers(host, "put a proxy that asks for a password before it")
    with listen(host, port) as listening:  # it is free; the page itself listens after loading
        port = listening.getsockname()[1]
    pipe = load(model, device, dtype, adapters)

    from audiolitefocus.web.limits import Limits
    from audiolitefocus.web.page import launch

    launch(pipe, host=host, port=port, limits=Limits(seconds=max_seconds, waiting=queue))


def need(*packages: str) -> None:
    """Raise ValueError if packages of the extra are missing."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ValueError(f"{', '.join(missing)} missing: pip install 'audiolitefocus[web]'")


def check_serving(port: int, queue: int, max_seconds: float) -> None:
    """Raise ValueError for a value out of bounds."""
    check_number("port", port, 0, 65535)
    check_number("queue", queue, 1, 10000)
    check_number("max-seconds", max_seconds, 1.0, MAX_SECONDS)


def read_key(file: Path | None) -> str | None:
    """The key in the file or else in the environment; None without either.

    Raises:
        ValueError: a key that is too short, or could not stand in a header.
        OSError: a file that cannot be read.
    """
    if file is None and KEY_VARIABLE not in os.environ:
        return None
    where = KEY_VARIABLE if file is None else str(file)
    key = (os.environ[KEY_VARIABLE] if file is None else file.read_text(encoding="utf-8")).strip()
    if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{where}: a key must have {SHORTEST_KEY} letters and digits or more")
    return key


def warn_of_strangers(host: str, advice: str) -> None:
    """Warn where others than this machine's users can connect."""
    if host not in LOOPBACK:
        warnings.warn(f"anyone who reaches {host} can make sounds here; {advice}", stacklevel=3)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OSError that names the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error}") from None


def address(listening: socket.socket) -> str:
    """The address of a server on this socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def load(
    model: str, device: str, dtype: str, adapters: Sequence[tuple[str, float]] = ()
) -> "AudioLDM2Pipeline":
    """The pipeline with its text towers, so that the first request is not the slow one.

    `adapters` are folders, each with its scale.
    """
    from audiolitefocus.pipeline import AudioLDM2Pipeline

    pipe = AudioLDM2Pipeline.from_pretrained(model, device=device, dtype=dtype)
    for folder, scale in adapters:
        pipe.load_lora(folder, scale)
    pipe.text  # noqa: B018
    return pipe
