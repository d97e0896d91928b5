"""From the CPU to a device, without waiting for it."""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """`x` of the CPU on a device. The device goes on with what it has to do meanwhile."""
    # From pageable memory the driver may first wait for all that the device still has to do.
    # Pinning needs a GPU, which tests with tensors that have no memory do without.
    if device.type == "cuda" and x.device.type == "cpu" and torch.cuda.is_available():
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
