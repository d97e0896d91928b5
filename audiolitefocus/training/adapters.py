"""What of the UNet is trained: low-rank adapters beside its layers, by PEFT, or all of it."""

import copy
from collections.abc import Callable, Mapping

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from audiolitefocus.models.layers import ResnetBlock, TimeEmbedding, Transformer2D
from audiolitefocus.models.unet import UNet

ADAPTER = "default"  # PEFT's name of the only one


def add_adapters(unet: UNet, rank: int, seed: int, *, time: bool = False) -> None:
    """LoRA on every linear layer of the transformers; the other weights stay as they are.

    B begins as zero, so that the UNet does what it did.

    Args:
        time: on those by which the UNet knows the diffusion time too.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    kinds: tuple[type[nn.Module], ...] = (Transformer2D,)
    if time:
        kinds += TimeEmbedding, ResnetBlock
    layers = [
        f"{name}.{inner}"
        for name, module in unet.named_modules()
        if isinstance(module, kinds)
        for inner, linear in module.named_modules()
        if isinstance(linear, nn.Linear)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, bias="none")
        inject_adapter_in_model(config, unet, adapter_name=ADAPTER)


def frozen_teacher(unet: UNet, *, full: bool) -> Callable[..., Tensor]:
    """The UNet as it is before it is trained, called as `UNet.forward` is.

    Args:
        full: a copy, because all of `unet` is trained; else `unet` without its adapters.
    """
    if full:
        return copy.deepcopy(unet).requires_grad_(False)

    def without_adapters(*inputs, **named):
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in unet.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            return unet(*inputs, **named)
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    return without_adapters


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def as_saved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adapters' parameters as `checkpoints.adapters.write_adapter` names them."""
    return {name.replace(f".{ADAPTER}.", "."): tensor for name, tensor in tensors.items()}


def recompute_activations(unet: UNet) -> None:
    """Gradient checkpointing (Chen et al. 2016): blocks are computed again on the way back."""
    for module in unet.modules():
        if isinstance(module, (Transformer2D, ResnetBlock)):
            branch = module.branch

            def again(*inputs, branch=branch):
                return checkpoint(branch, *inputs, use_reentrant=False)

            module.branch = again  # type: ignore[method-assign]
