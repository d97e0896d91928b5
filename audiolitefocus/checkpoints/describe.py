"""What a bundle is, in lines for people."""

import os
from collections.abc import Iterator
from pathlib import Path

from audiolitefocus.checkpoints.bundle import COMPONENTS, build, load_config
from audiolitefocus.checkpoints.towers import TOWERS
from audiolitefocus.config import demo_folder


def describe(folder: str | os.PathLike) -> Iterator[str]:
    """Name, networks with their parameters, files with their sizes, provenance. Raises ValueError
    for no bundle.
    """
    folder = demo_folder() if os.fspath(folder) == "demo" else Path(folder)
    config = load_config(folder)
    rate = config.vocoder.sampling_rate
    yield f"{config.name}: {rate} Hz, trained on {config.trained_seconds:g} s"
    for name in COMPONENTS:
        count = sum(parameter.numel() for parameter in build(name, config).parameters())
        yield f"  {name:<11}{count:>13,} parameters{_size(folder / f'{name}.safetensors')}"
    for name in TOWERS:
        yield f"  {name:<11}{'':>13}           {_size(folder / name / 'model.safetensors')}"
    unet = config.unet
    yield f"  channels {unet.channels}, heads {unet.heads}"
    yield f"  contexts {unet.contexts}, transformer depth {unet.depth}"
    for name in ("clap", "t5"):
        if not (folder / name / "tokenizer_config.json").is_file():
            yield f"  no tokenizer for {name}: prompts cannot be read"
    for key, value in config.provenance.items():
        yield from (
            f"  {key}: {entry}" for entry in (value if isinstance(value, list) else [value])
        )


def _size(path: Path) -> str:
    return f"  {path.stat().st_size / 1e6:10,.1f} MB" if path.is_file() else "     missing"
