"""Bundles on disk, loaded strictly.

A bundle is a folder: config.json, {unet, vae, vocoder, projection}.safetensors, and clap/, t5/,
gpt2/ in transformers' own layout with their tokenizers.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from audiolitefocus.checkpoints.tensors import check_tensors, open_safetensors
from audiolitefocus.config import BundleConfig
from audiolitefocus.models.layers import to_channels_last
from audiolitefocus.models.text_encoder import Projection
from audiolitefocus.models.unet import UNet
from audiolitefocus.models.vae import VAE
from audiolitefocus.models.vocoder import HiFiGAN

COMPONENTS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "vae": VAE,
    "vocoder": HiFiGAN,
    "projection": Projection,
}
MAX_CONFIG_BYTES = 1 << 20


def load_config(folder: str | os.PathLike) -> BundleConfig:
    """The config of a bundle. Raises ValueError that says what is wrong with it and what to do."""
    folder = Path(folder)
    path = folder / "config.json"
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if (folder / "model_index.json").is_file():
        raise ValueError(
            f"{folder} is in diffusers layout; convert it: audiolitefocus convert {folder} DEST"
        )
    if not path.is_file():
        raise ValueError(f"{folder} has no config.json: not a bundle")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes is too large for a config")
    try:
        return BundleConfig.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def build(name: str, config: BundleConfig) -> nn.Module:
    """A component without weights, on the meta device."""
    if name not in COMPONENTS:
        raise ValueError(f"component {name!r}: must be one of {', '.join(COMPONENTS)}")
    with torch.device("meta"):
        return COMPONENTS[name](getattr(config, name))


def load_component(
    folder: str | os.PathLike,
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Any:
    """Load one network of a bundle, in eval mode.

    Args:
        folder: of the bundle.
        name: "unet", "vae", "vocoder" or "projection": a UNet, VAE, HiFiGAN or Projection.
        dtype: of the weights; None keeps the file's.
        device: None is the CPU.

    Raises:
        ValueError: a file that is missing, damaged (its sha256 is in config.json), or whose keys or
            shapes are not exactly those of the config. Checked before anything is allocated.
    """
    config = load_config(folder)
    module = build(name, config)
    path = Path(folder) / f"{name}.safetensors"
    expected = module.state_dict()
    with open_safetensors(path) as file:
        check_tensors(path, file, expected)
        check_sha256(path, config)
        tensors = {key: file.get_tensor(key).to(device=device, dtype=dtype) for key in expected}
    module.load_state_dict(tensors, strict=True, assign=True)
    if name in ("unet", "vae"):
        to_channels_last(module)
    return module.eval().requires_grad_(False)


def check_sha256(path: Path, config: BundleConfig) -> None:
    """Raise ValueError if the file is missing, or is not the one written with the bundle."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    expected = config.files.get(bundle_name(path))
    if expected is not None and sha256(path) != expected:
        raise ValueError(
            f"{path} has changed since it was written (its sha256 is not the one in config.json): "
            f"convert or copy the model again"
        )


def bundle_name(path: Path) -> str:
    """The name of a weights file inside its bundle: unet.safetensors, or t5/model.safetensors."""
    return path.name if path.stem in COMPONENTS else f"{path.parent.name}/{path.name}"


def sha256(path: Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """Hex digest of a file, read in blocks; `on_bytes` hears of each."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()
