"""The UNet of a pipeline on all of its devices."""

from collections.abc import Sequence
from copy import deepcopy

import torch

from audiolitefocus.checkpoints.bundle import cast
from audiolitefocus.diffusion.network import Network
from audiolitefocus.models.unet import UNet


def further_networks(unet: UNet, devices: Sequence[torch.device]) -> list[Network]:
    """The UNet on every device but the first, where it is: one copy on a device."""
    copies = {devices[0]: unet}
    for device in devices[1:]:
        if device not in copies:
            copies[device] = deepcopy(unet)
            cast(copies[device], None, device)
    return [Network(copies[device], copies[device].evaluate) for device in devices[1:]]
