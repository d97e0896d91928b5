"""Trained networks between the stages."""

import dataclasses
import json
from pathlib import Path

import torch

from audiolitefocus.atomic import atomic_file
from audiolitefocus.checkpoints.tensors import open_safetensors, save_tensors
from audiolitefocus.config import VAEConfig
from audiolitefocus.models.vae import VAE
from audiolitefocus.training.updates import Updates
from audiolitefocus.validation import from_dict
from scripts.demo.loop import CHECKPOINT, Trained


def save_vae(folder: Path, vae: VAE) -> None:
    """vae.safetensors, in float32, and vae.json, its config."""
    tensors = {key: tensor.cpu() for key, tensor in vae.state_dict().items()}
    with atomic_file(folder / "vae.json") as part:
        part.write_text(json.dumps(dataclasses.asdict(vae.config), indent=2) + "\n")
    with atomic_file(folder / "vae.safetensors") as part:
        save_tensors(part, tensors)


def load_vae(folder: Path) -> VAE:
    """What `save_vae` wrote, in eval mode; every key must fit. Raises ValueError if its stage has
    not written it yet.
    """
    try:
        values = json.loads((folder / "vae.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no trained vae: run the stage {folder.name!r}") from None
    vae = VAE(from_dict(VAEConfig, values, "vae.json"))
    with open_safetensors(folder / "vae.safetensors") as file:
        vae.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
    return vae.eval().requires_grad_(False)


def last_checkpoint(folder: Path, network: Trained) -> Trained:
    """The averaged weights of a stage that has ended or is still training, in eval mode. Raises
    ValueError if there are none yet.
    """
    updates = Updates(network, 0.0)
    updates.resume(checkpoint(folder))
    updates.take_average()
    return network.eval().requires_grad_(False)


def progress(folder: Path) -> tuple[int, float]:
    """Steps that a stage has done by its last checkpoint, and the seconds that they took. Raises
    ValueError if there is none.
    """
    state = torch.load(checkpoint(folder), map_location="cpu", weights_only=True)
    return state["done"], state["seconds"]


def checkpoint(folder: Path) -> Path:
    path = folder / CHECKPOINT
    if not path.is_file():
        raise ValueError(f"{path}: no such file; run the stage {folder.name!r}")
    return path
