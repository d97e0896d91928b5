"""Train a pruned UNet to predict what the whole one does: distillation after pruning.

python -m scripts.prune.recover SOUNDS --model pruned/bundle --teacher audioldm2 --out recovered

All of the pruned UNet is trained, on the teacher's noise and on that of the clips
(`scripts.prune.objective`). OUT/bundle is the model with an average of the trained weights. The
same command goes on where it was cut off.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from audiolitefocus.attention.settings import Attention
from audiolitefocus.checkpoints.bundle import load_component, load_config
from audiolitefocus.checkpoints.resolve import resolve_bundle
from audiolitefocus.config import BundleConfig
from audiolitefocus.models.unet import UNet
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.runtime import choose_device
from audiolitefocus.training.bundle import with_unet
from audiolitefocus.training.encoded import Encoded
from audiolitefocus.training.loop import Finetune, check_folder
from audiolitefocus.training.settings import Finetuning
from audiolitefocus.training.updates import show_update
from scripts.prune.data import load_examples, parser
from scripts.prune.objective import DistillationLoss


class Recovery(Finetune):
    """A fine-tuning of the whole UNet against a teacher's noise.

    Args:
        teacher: evaluated, on the device of the accelerator.
        others: as in `Finetune`, with settings that are `full`.
    """

    def __init__(
        self,
        teacher: UNet,
        pipe: AudioLDM2Pipeline,
        examples: Sequence[Encoded],
        settings: Finetuning,
        folder: Path,
        accelerator: Any,
    ):
        self.teacher = teacher
        super().__init__(pipe, examples, settings, folder, accelerator)

    def _objective(self, attention: Attention, *_: object) -> nn.Module:
        schedule, gamma = self.pipe.config.schedule, self.settings.snr_gamma
        return DistillationLoss(self.pipe.unet, self.teacher, schedule, attention, gamma)


def check_pair(pruned: BundleConfig, teacher: BundleConfig) -> None:
    """Raise ValueError unless one is the other without some transformers."""
    if replace(pruned.unet, absent=()) != replace(teacher.unet, absent=()):
        raise ValueError(f"{pruned.name} was not made of {teacher.name}: their UNets differ")
    if not set(pruned.unet.absent) > set(teacher.unet.absent):
        raise ValueError(f"{pruned.name} has all that {teacher.name} has: prune it first")
    for file in ("vae.safetensors", "projection.safetensors"):
        if pruned.files.get(file) != teacher.files.get(file):
            raise ValueError(f"{pruned.name} was not made of {teacher.name}: their {file} differ")


def run(chosen: argparse.Namespace) -> Path:
    """Train, and write the bundle. Returns its folder."""
    from accelerate import Accelerator

    # 1. Models, settings, sounds
    folder, source = resolve_bundle(chosen.model), resolve_bundle(chosen.teacher)
    teacher = load_config(source)
    check_pair(load_config(folder), teacher)
    accelerator = Accelerator(cpu=choose_device(chosen.device).type == "cpu")
    pipe = AudioLDM2Pipeline.from_pretrained(folder, device=accelerator.device)
    seconds = chosen.seconds or pipe.config.trained_seconds
    settings = Finetuning(
        steps=chosen.steps,
        batch_size=chosen.batch_size,
        full=True,
        learning_rate=chosen.learning_rate,
        seconds=(seconds,),
        attention=chosen.attention,
        seed=chosen.seed,
        save_every=chosen.save_every,
    )
    about = {
        "model": pipe.config.name,
        "unet": pipe.config.files.get("unet.safetensors"),
        "teacher": teacher.files.get("unet.safetensors"),
        **settings.to_json(),
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    check_folder(chosen.out, about)
    examples = load_examples(pipe, chosen, seconds)

    # 2. Train
    whole = load_component(source, "unet", device=accelerator.device)
    training = Recovery(whole, pipe, examples, settings, chosen.out, accelerator)
    with tqdm(total=settings.steps, initial=training.done, unit="update", mininterval=5) as bar:
        training.run(partial(show_update, bar))

    # 3. The bundle
    how = f"{training.done} updates of distillation from {teacher.name}"
    config = replace(pipe.config, provenance={**pipe.config.provenance, "recovered": how})
    with training.updates.averaged():
        weights = pipe.unet.state_dict()
        return with_unet(pipe.folder, chosen.out / "bundle", config, weights, force=True)


def main() -> None:
    options = parser(__doc__, steps=10_000, batch_size=16)
    options.add_argument("--model", required=True, help="the pruned bundle")
    options.add_argument("--teacher", default="audioldm2", help="the model that it was made of")
    options.add_argument("--learning-rate", type=float, default=2e-4)
    chosen = options.parse_args()
    try:
        print(run(chosen))
    except (ValueError, OSError, MemoryError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
