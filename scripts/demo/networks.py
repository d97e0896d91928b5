"""Trained networks between the stages."""

import dataclasses
import json
from pathlib import Path

import torch
from torch import nn

from audiolitefocus.atomic import atomic_file
from audiolitefocus.checkpoints.tensors import open_safetensors, save_tensors
from audiolitefocus.training.updates import Updates
from audiolitefocus.validation import from_dict
from scripts.demo.loop import CHECKPOINT


def save_network(folder: Path, name: str, network: nn.Module) -> None:
    """NAME.safetensors, in float32, and NAME.json, its config."""
    tensors = {key: tensor.cpu() for key, tensor in network.state_dict().items()}
    with atomic_file(folder / f"{name}.json") as part:
        part.write_text(json.dumps(dataclasses.asdict(network.config), indent=2) + "\n")
    with atomic_file(folder / f"{name}.safetensors") as part:
        save_tensors(part, tensors)


def load_network(folder: Path, name: str, kind: type[nn.Module], config: type) -> nn.Module:
    """What `save_network` wrote, in eval mode; every key must fit. Raises ValueError if a stage has
    not written it yet.
    """
    try:
        values = json.loads((folder / f"{name}.json").read_text())
    except FileNotFoundError:
        raise ValueError(
            f"{folder} holds no trained {name}: run the stage {folder.name!r}"
        ) from None
    network = kind(from_dict(config, values, f"{name}.json"))
    with open_safetensors(folder / f"{name}.safetensors") as file:
        network.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
    return network.eval().requires_grad_(False)


def last_checkpoint(folder: Path, network: nn.Module) -> nn.Module:
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
