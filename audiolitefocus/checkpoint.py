"""Bundles on disk: strict loading, and saving of weights.

A bundle is a folder: config.json, {unet, vae, vocoder, projection}.safetensors, and clap/, t5/,
gpt2/ in transformers' own layout with their tokenizers.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from audiolitefocus.conditioning import Projection
from audiolitefocus.config import BundleConfig
from audiolitefocus.unet import UNet
from audiolitefocus.vae import VAE
from audiolitefocus.vocoder import HiFiGAN

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
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    with open_safetensors(path) as file:
        check_shapes(
            str(path),
            {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()},
            expected,
        )
        check_sha256(path, config)
        tensors = {key: file.get_tensor(key).to(device=device, dtype=dtype) for key in expected}
    module.load_state_dict(tensors, strict=True, assign=True)
    if name in ("unet", "vae"):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module.eval().requires_grad_(False)


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator:
    """`safe_open` whose failures are ValueErrors that name the file."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or not safetensors: {error}") from None


def check_shapes(where: str, found: Mapping[str, tuple], expected: Mapping[str, tuple]) -> None:
    """Raise ValueError that lists every missing, unknown and wrongly shaped key."""
    problems = [f"missing {key}" for key in expected if key not in found]
    problems += [f"unknown {key}" for key in found if key not in expected]
    problems += [
        f"{key} is {list(found[key])}, expected {list(shape)}"
        for key, shape in expected.items()
        if key in found and tuple(found[key]) != tuple(shape)
    ]
    if problems:
        raise ValueError(
            f"{where} does not fit its config ({len(problems)} keys): {'; '.join(problems)}"
        )


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


def save_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, without a second copy of the tensors in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:  # the disk is full, or the folder was taken away
        raise OSError(f"{path} cannot be written: {error}") from None
