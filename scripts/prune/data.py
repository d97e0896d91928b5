"""The sounds that pruning and recovery are trained on, and the options that both have."""

import argparse
from pathlib import Path

from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.training.data import read_examples
from audiolitefocus.training.encoded import Encoded, encode_examples
from scripts.demo.world.latents import encode_clips
from scripts.evaluate.references import DEMO_WORLD


def parser(description: str | None, *, steps: int, batch_size: int) -> argparse.ArgumentParser:
    """Options of a training."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add("sounds", help=f"as audiolitefocus finetune takes them, or {DEMO_WORLD}")
    add("--out", type=Path, required=True, help="folder for everything that is written")
    add("--steps", type=int, default=steps, help="updates of the weights")
    add("--batch-size", type=int, default=batch_size)
    add("--seconds", type=float, help="of clips; default: as the model was trained")
    add("--attention", default="auto", help="as for audiolitefocus generate")
    add("--seed", type=int, default=0)
    add("--save-every", type=int, default=100, help="updates between two states")
    add("--device", default="auto")
    add("--encoded", type=Path, help="folder for latents of sounds; default: encoded in --out")
    add("--thousands", type=int, default=4, help=f"of clips, of {DEMO_WORLD}")
    return made


def load_examples(
    pipe: AudioLDM2Pipeline, chosen: argparse.Namespace, seconds: float
) -> list[Encoded]:
    """The sounds as the UNet sees them, encoded once.

    Raises:
        ValueError: sounds or captions that cannot be used.
    """
    folder = chosen.encoded or chosen.out / "encoded"
    if chosen.sounds == DEMO_WORLD:
        return encode_clips(pipe, folder, chosen.thousands, seconds)
    return encode_examples(pipe, read_examples(Path(chosen.sounds)), seconds, folder)
