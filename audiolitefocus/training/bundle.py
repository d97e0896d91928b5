"""A bundle with another UNet, beside the other networks as they were."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from audiolitefocus.atomic import atomic_folder
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.checkpoints.tensors import save_tensors
from audiolitefocus.config import BundleConfig
from audiolitefocus.training.loop import Finetune

UNET = "unet.safetensors"


def write_bundle(training: Finetune, destination: Path) -> Path:
    """The model with the average of the trained weights; replaces an earlier one there."""
    pipe = training.pipe
    config = dataclasses.replace(
        pipe.config,
        name=f"{pipe.config.name}-finetuned",
        provenance={
            **pipe.config.provenance,
            "finetuned": f"{training.done} updates from {pipe.config.name}",
        },
    )
    with training.updates.averaged():
        return with_unet(pipe.folder, destination, config, pipe.unet.state_dict(), force=True)


def with_unet(
    source: Path,
    destination: Path,
    config: BundleConfig,
    weights: Mapping[str, Tensor],
    *,
    force: bool = False,
) -> Path:
    """The bundle `source` with another UNet. Returns `destination`.

    Args:
        config: of the new bundle; the digest of the UNet is added.
        weights: of the UNet, in the dtype that they are saved in.
        force: replace a folder that is there.

    Raises:
        OSError: the folder exists, or cannot be written.
    """
    with atomic_folder(destination, force=force) as folder:
        others = shutil.ignore_patterns(UNET)
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=others)
        save_tensors(folder / UNET, {name: tensor.cpu() for name, tensor in weights.items()})
        files = {**config.files, UNET: sha256(folder / UNET)}
        config = dataclasses.replace(config, files=files)
        (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
    return destination
