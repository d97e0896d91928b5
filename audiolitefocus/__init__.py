"""Text to audio with AudioLDM2's networks, and LiteFocus attention built in.

Axes, everywhere in this package: b batch, c channels, t time, f frequency, h heads, d head width,
m compensation keys, s context tokens. Latents are b c t f. Inside the networks feature maps are
b c f t in channels_last memory, and a transformer's tokens b f t c.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audiolitefocus.attention.dense import dense_attention as dense_attention
    from audiolitefocus.attention.litefocus import litefocus_attention as litefocus_attention
    from audiolitefocus.attention.settings import LiteFocus as LiteFocus
    from audiolitefocus.attention.settings import TokenMerging as TokenMerging
    from audiolitefocus.checkpoints.bundle import load_component as load_component
    from audiolitefocus.checkpoints.convert import convert_checkpoint as convert_checkpoint
    from audiolitefocus.config import UNetConfig as UNetConfig
    from audiolitefocus.models.condition import Condition as Condition
    from audiolitefocus.models.unet import UNet as UNet
    from audiolitefocus.models.vae import VAE as VAE
    from audiolitefocus.models.vocoder import HiFiGAN as HiFiGAN
    from audiolitefocus.options import GenerationOptions as GenerationOptions
    from audiolitefocus.output import AudioOutput as AudioOutput
    from audiolitefocus.pipeline import AudioLDM2Pipeline as AudioLDM2Pipeline

__version__ = "0.1.0"

# Public names, and the modules that they are imported from when they are first used: so that
# `audiolitefocus --help` loads no torch. Everything deeper may change.
_HOMES = {
    "AudioLDM2Pipeline": "pipeline",
    "AudioOutput": "output",
    "GenerationOptions": "options",
    "LiteFocus": "attention.settings",
    "TokenMerging": "attention.settings",
    "dense_attention": "attention.dense",
    "litefocus_attention": "attention.litefocus",
    "UNet": "models.unet",
    "UNetConfig": "config",
    "VAE": "models.vae",
    "HiFiGAN": "models.vocoder",
    "Condition": "models.condition",
    "load_component": "checkpoints.bundle",
    "convert_checkpoint": "checkpoints.convert",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    """A public name, imported now."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
