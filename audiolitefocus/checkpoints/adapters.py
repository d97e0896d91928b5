"""LoRA adapters (Hu et al. 2022) in PEFT's format, added to the weights of the UNet.

W' = W + scale * alpha / r * B A for every adapter, summed up in float32: a network with adapters is
as fast as one without, and reads the same. What is taken off is read again from the bundle, so
that no rounding stays.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.checkpoints.limits import make_config
from audiolitefocus.checkpoints.tensors import open_safetensors
from audiolitefocus.config import Distilled
from audiolitefocus.validation import Number, check_rule, read_json, shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DISTILLED = "distilled.json"  # beside them, of adapters for few steps
PREFIX = "base_model.model."  # of keys, as PEFT writes them
SCALE = Number(-100.0, 100.0)
RANK = Number(1, 4096, whole=True)


@dataclass(frozen=True)
class Adapter:
    """One adapter.

    Attributes:
        name: of its folder.
        sha256: of its weights file.
        factors: by layer of the UNet, A (r, in) and B (out, r), and alpha / r.
        distilled: what it makes of the UNet, if it is for few steps.
    """

    name: str
    sha256: str
    factors: Mapping[str, tuple[Tensor, Tensor, float]]
    distilled: Distilled | None = None

    @classmethod
    def read(cls, folder: str | os.PathLike) -> "Adapter":
        """An adapter as `finetune`, or PEFT, has written it.

        Raises:
            ValueError: no adapter, or one of another kind than LoRA on layers of a UNet.
        """
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise ValueError(f"{folder} is no adapter: it has no {CONFIG}")
        config, path = read_json(folder / CONFIG), folder / WEIGHTS
        kind, bias = config.get("peft_type"), config.get("bias", "none")
        if kind != "LORA" or bias != "none" or config.get("use_dora"):
            raise ValueError(
                f"{folder} is an adapter of kind {shown(kind)}, bias {shown(bias)}: only LoRA "
                f"without bias and DoRA can be loaded"
            )
        rank = check_rule(f"{folder}: r", config.get("r"), RANK)
        alpha = check_rule(f"{folder}: lora_alpha", config.get("lora_alpha", rank), SCALE_OF_ALPHA)
        ranks, alphas = (config.get(f"{name}_pattern") or {} for name in ("rank", "alpha"))
        if ranks or alphas:
            raise ValueError(f"{folder}: ranks and alphas that differ from layer to layer")
        with open_safetensors(path) as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        gain = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        own, distilled = folder / DISTILLED, None
        if own.is_file():
            distilled = make_config(Distilled, read_json(own), f"{own}: distilled")
        return cls(folder.name, sha256(path), _factors(path, tensors, gain), distilled)

    def delta(self, layer: str, scale: float) -> Tensor:
        """What is added to a layer's weight (out, in), float32."""
        a, b, gain = self.factors[layer]
        return scale * gain * (b.float() @ a.float())

    def check(self, unet: nn.Module) -> None:
        """Raise ValueError unless every layer of it is one of the UNet, of its shape."""
        for layer, (a, b, _) in self.factors.items():
            try:
                weight = unet.get_parameter(f"{layer}.weight")
            except AttributeError:
                raise ValueError(f"adapter {self.name}: this UNet has no {layer}") from None
            if tuple(weight.shape) != (b.shape[0], a.shape[1]):
                raise ValueError(
                    f"adapter {self.name}: {layer} is {tuple(weight.shape)} here, and "
                    f"{(b.shape[0], a.shape[1])} there: it was made for another model"
                )


SCALE_OF_ALPHA = Number(0.0, 1e6, above=True)


def _factors(
    path: Path, tensors: Mapping[str, Tensor], gain: float
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """By layer. Raises ValueError for keys that are no pairs of matrices."""
    factors = {}
    layers = {key.removeprefix(PREFIX).rsplit(".lora_", 1)[0] for key in tensors}
    for layer in sorted(layers):
        a, b = (tensors.get(f"{PREFIX}{layer}.lora_{x}.weight") for x in "AB")
        if a is None or b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise ValueError(f"{path}: {layer} is no pair of matrices A (r, in) and B (out, r)")
        if not (a.isfinite().all() and b.isfinite().all()):
            raise ValueError(f"{path}: {layer} holds numbers that are not finite")
        factors[layer] = (a, b, gain)
    if not factors:
        raise ValueError(f"{path} holds no adapter")
    return factors


def apply_adapters(
    unet: nn.Module, folder: Path, adapters: Sequence[tuple[Adapter, float]], touched: set[str]
) -> None:
    """Set the weights of `touched` layers to those of the bundle plus the adapters'.

    Args:
        unet: of the bundle in `folder`, in any dtype and on any device.
        adapters: each with its scale.
    """
    with open_safetensors(folder / "unet.safetensors") as file, torch.no_grad():
        for layer in sorted(touched):
            total = file.get_tensor(f"{layer}.weight").float()
            for adapter, scale in adapters:
                if layer in adapter.factors:
                    total += adapter.delta(layer, scale)
            unet.get_parameter(f"{layer}.weight").copy_(total)


def parse_adapter(text: str) -> tuple[str, float]:
    """FOLDER or FOLDER:SCALE. Raises ValueError for a scale out of bounds."""
    folder, colon, scale = text.rpartition(":")
    if colon and not Path(text).exists():
        try:
            return folder, check_rule("scale", float(scale), SCALE)
        except ValueError:
            raise ValueError(
                f"lora {text!r}: must be a folder, or FOLDER:SCALE with {SCALE}"
            ) from None
    return text, 1.0


def write_adapter(
    folder: Path,
    unet_name: str,
    rank: int,
    tensors: Mapping[str, Tensor],
    *,
    distilled: Distilled | None = None,
) -> None:
    """An adapter in PEFT's format: `tensors` are A and B by "LAYER.lora_A.weight".

    Args:
        distilled: what it was distilled for, which is written beside it.
    """
    from audiolitefocus.atomic import atomic_file, atomic_files
    from audiolitefocus.checkpoints.tensors import save_tensors

    layers = sorted({key.rsplit(".lora_", 1)[0] for key in tensors})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": unet_name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": layers,
        "inference_mode": True,
    }
    if distilled is not None:  # first: without it the weights would be taken for others
        with atomic_file(folder / DISTILLED) as part:
            part.write_text(json.dumps(asdict(distilled), indent=2) + "\n", encoding="utf-8")
    with atomic_files(folder / WEIGHTS, folder / CONFIG) as (weights, text):
        save_tensors(weights, {PREFIX + key: tensor for key, tensor in tensors.items()})
        text.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
