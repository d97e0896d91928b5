"""How much memory a fine-tuning takes, counted before it starts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from audiolitefocus.checkpoints.bundle import build
from audiolitefocus.config import BundleConfig
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.unet import UNet
from audiolitefocus.training.adapters import add_adapters, recompute_activations, trained
from audiolitefocus.training.objective import Batch, NoiseLoss
from audiolitefocus.training.settings import Finetuning

T5_TOKENS = 32  # of a caption, roughly


@dataclass(frozen=True)
class Memory:
    """Bytes, on the device that trains.

    Attributes:
        weights: of the UNet, float32.
        states: gradients, the optimizer's two moments and the average of what is trained.
        activations: what is kept of an evaluation for the way back.
    """

    weights: int
    states: int
    activations: int
    parameters: int  # numbers that are trained

    @property
    def total(self) -> int:
        return self.weights + self.states + self.activations

    def __str__(self) -> str:
        parts = (self.weights, self.states, self.activations)
        weights, states, activations = (f"{size / 1e9:.1f} GB" for size in parts)
        return (
            f"{self.parameters:,} numbers are trained; about {self.total / 1e9:.1f} GB of memory: "
            f"weights {weights}, gradients and optimizer {states}, activations {activations}"
        )


def training_memory(
    config: BundleConfig,
    settings: Finetuning,
    attention: object,
    frames: int,
    *,
    itemsize: int = 4,
    taught: bool = False,
) -> Memory:
    """Counted on tensors without memory, for clips of so many latent frames.

    Args:
        itemsize: bytes of an activation: 2 in mixed precision.
        taught: the UNet as it was is evaluated too.
    """
    unet = build("unet", config)
    assert isinstance(unet, UNet)
    if settings.full:
        unet.requires_grad_(True)
    else:
        unet.requires_grad_(False)
        with torch.device("meta"):
            add_adapters(unet, settings.rank, 0, time=settings.distill is not None)
    if settings.checkpointing:
        recompute_activations(unet)
    numbers = sum(parameter.numel() for parameter in trained(unet).values())
    weights = sum(p.numel() for p in unet.parameters()) - (0 if settings.full else numbers)
    if settings.full and (taught or settings.distill):
        weights *= 2  # the teacher's
    kept = _saved_bytes(unet, config, settings, attention, frames)
    return Memory(4 * weights, 4 * 4 * numbers, kept * itemsize // 4, numbers)


def _saved_bytes(
    unet: UNet, config: BundleConfig, settings: Finetuning, attention, frames: int
) -> int:
    """What autograd keeps of one evaluation, float32, weights left out."""
    size, own = settings.batch_size, config.unet
    rows = config.vocoder.mel_bins // config.vae.downsampling
    shape = (size, own.in_channels, frames, rows)
    loss = NoiseLoss(unet, config.schedule, attention, settings.snr_gamma).to("meta")
    seen: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        # kept alive, so that no other storage gets its number
        seen.setdefault(x.untyped_storage()._cdata, x)
        return x

    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        t5 = None
        if "t5" in own.contexts:
            t5 = torch.empty(size, T5_TOKENS, own.t5_dim)
        condition = Condition(torch.empty(size, 8, own.loa_dim), t5)
        steps = torch.empty(size, dtype=torch.long)
        loss(Batch(torch.empty(shape), torch.empty(shape), condition, steps, 0))
    weights = {p.untyped_storage()._cdata for p in unet.parameters()}
    return sum(x.untyped_storage().nbytes() for key, x in seen.items() if key not in weights)
