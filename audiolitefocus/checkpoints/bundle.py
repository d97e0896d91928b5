"""Bundles: converted checkpoints on disk, loaded strictly.

A bundle is a folder: config.json, {unet, vae, vocoder, projection}.safetensors, and clap/, t5/,
gpt2/ in transformers' layout with their tokenizers.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from audiolitefocus.checkpoints.limits import make_config
from audiolitefocus.checkpoints.tensors import check_tensors, open_safetensors
from audiolitefocus.config import FORMAT_VERSION, AttentionRule, BundleConfig, demo_folder
from audiolitefocus.models.layers import to_channels_last
from audiolitefocus.models.text_encoder import Projection
from audiolitefocus.models.unet import UNet
from audiolitefocus.models.vae import VAE
from audiolitefocus.models.vocoder import HiFiGAN
from audiolitefocus.validation import check_not_pointer, read_json, shown

COMPONENTS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "vae": VAE,
    "vocoder": HiFiGAN,
    "projection": Projection,
}
TOWERS = ("clap", "t5", "gpt2")  # transformers' networks, which `towers` loads
Network = TypeVar("Network", bound=nn.Module)


def load_config(folder: str | os.PathLike) -> BundleConfig:
    """The config of a bundle, checked. Raises ValueError that names the entry and the remedy."""
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
    data = read_json(path)
    if "format" not in data:
        raise ValueError(f'{path} has no "format" entry: not written by audiolitefocus')
    if (version := data.pop("format")) != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format {shown(version)}: this version reads {FORMAT_VERSION}; convert again"
        )
    # older bundles have none of these
    data.setdefault("attention_rule", asdict(AttentionRule()))
    data.setdefault("distilled", None)
    if isinstance(unet := data.get("unet"), dict):
        unet.setdefault("absent", [])
    return make_config(BundleConfig, data, f"{path}: config")


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
        dtype: of the weights, but for those that a network keeps in float32 where half precision
            is audible (its `float32_weights`); None keeps that of the file.
        device: None is the CPU.

    Raises:
        ValueError: a file that is missing or damaged (its sha256 is in config.json), or whose keys
            or shapes are not exactly those of the config. Found before anything is allocated.
    """
    config = load_config(folder)
    module = build(name, config)  # on the meta device: absurd sizes cost nothing yet
    path = Path(folder) / f"{name}.safetensors"
    expected = module.state_dict()
    with open_safetensors(path) as file:
        # the header before the digest, which takes reading gigabytes
        check_tensors(path, file, expected)
        check_sha256(path, config)
        tensors = {
            key: file.get_tensor(key).to(device=device, dtype=weight_dtype(module, key, dtype))
            for key in expected
        }
    module.load_state_dict(tensors, strict=True, assign=True)
    to_channels_last(module)
    return module.eval().requires_grad_(False)


def cast(network: Network, dtype: torch.dtype | None, device: torch.device | str) -> Network:
    """Move a network to a device and, but for weights that it keeps in float32, to a dtype."""
    state = {
        key: tensor.to(device, weight_dtype(network, key, dtype))
        for key, tensor in network.state_dict().items()
    }
    network.load_state_dict(state, assign=True)
    to_channels_last(network)
    return network.eval().requires_grad_(False)


def weight_dtype(network: nn.Module, key: str, dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype to load a weight in: float32 where the network keeps it."""
    half = dtype in (torch.bfloat16, torch.float16)
    kept = half and key.startswith(getattr(network, "float32_weights", ()))
    return torch.float32 if kept else dtype


def check_sha256(path: Path, config: BundleConfig) -> None:
    """Raise ValueError if a weights file is missing or has changed since the bundle was written."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    check_not_pointer(path)
    # A bundle without digests is allowed: whoever can change weights can change config.json too.
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
    """Hex digest of a file, read in blocks; `on_bytes` is called with the size of each."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            on_bytes(len(block))
    return digest.hexdigest()


def describe(folder: str | os.PathLike) -> Iterator[str]:
    """Lines for people: name, networks, files with sizes, provenance. Raises ValueError."""
    folder = demo_folder() if os.fspath(folder) == "demo" else Path(folder)
    config = load_config(folder)
    rate = config.vocoder.sampling_rate
    yield f"{config.name}: {rate} Hz, trained on {config.trained_seconds:g} s"
    if (made := config.distilled) is not None:
        yield f"  distilled for {made.sampler}, with guidance {made.guidance_scale:g} baked in"
    for name in COMPONENTS:
        count = sum(parameter.numel() for parameter in build(name, config).parameters())
        yield f"  {name:<11}{count:>13,} parameters{_size(folder / f'{name}.safetensors')}"
    for name in TOWERS:
        yield f"  {name:<11}{'':>13}           {_size(folder / name / 'model.safetensors')}"
    unet = config.unet
    yield f"  channels {unet.channels}, heads {unet.heads}"
    yield f"  contexts {unet.contexts}, transformer depth {unet.depth}"
    if unet.absent:
        left = Counter(context for _, context in unet.transformers.values())
        counts = ", ".join(f"{left[context]} {context}" for context in dict.fromkeys(unet.contexts))
        count = left.total()
        yield f"  pruned: {count} of {count + len(unet.absent)} transformers stay ({counts})"
    for name in ("clap", "t5"):
        if not (folder / name / "tokenizer_config.json").is_file():
            yield f"  no tokenizer for {name}: prompts cannot be read"
    for key, value in config.provenance.items():
        yield from (
            f"  {key}: {entry}" for entry in (value if isinstance(value, list) else [value])
        )


def _size(path: Path) -> str:
    return f"  {path.stat().st_size / 1e6:10,.1f} MB" if path.is_file() else "     missing"
