"""A tiny UNet, and copies of it that share nothing, as they lie on several devices."""

from copy import deepcopy

import pytest

from audiolitefocus.diffusion.network import Network
from audiolitefocus.models.unet import UNet
from tests.support.denoising import tiny_unet


@pytest.fixture(scope="session")
def unet() -> UNet:
    return tiny_unet()


@pytest.fixture(scope="session")
def networks(unet) -> list[Network]:
    copies = [unet, *(deepcopy(unet) for _ in range(4))]
    return [Network(copy, copy.evaluate) for copy in copies]
