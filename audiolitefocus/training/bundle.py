"""A bundle with a UNet that was trained, beside the other networks as they were."""

import dataclasses
import shutil
from pathlib import Path

from audiolitefocus.atomic import atomic_folder
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.checkpoints.tensors import save_tensors
from audiolitefocus.training.loop import Finetune

UNET = "unet.safetensors"


def write_bundle(training: Finetune, destination: Path) -> Path:
    """The model with the average of the trained weights; replaces an earlier one there."""
    pipe = training.pipe
    with atomic_folder(destination, force=True) as folder:
        shutil.copytree(
            pipe.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(UNET)
        )
        with training.averaged():
            save_tensors(folder / UNET, {k: w.cpu() for k, w in pipe.unet.state_dict().items()})
        config = dataclasses.replace(
            pipe.config,
            name=f"{pipe.config.name}-finetuned",
            provenance={
                **pipe.config.provenance,
                "finetuned": f"{training.done} updates from {pipe.config.name}",
            },
            files={**pipe.config.files, UNET: sha256(folder / UNET)},
        )
        (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
    return destination
