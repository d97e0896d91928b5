"""Text to audio with AudioLDM2's networks, and LiteFocus attention built in.

Axes, everywhere in this package: b batch, c channels, t time, f frequency, h heads, d head width,
m compensation keys, s context tokens. Latents are b c t f. Inside the networks feature maps are
b c f t in channels_last memory, and a transformer's tokens b f t c.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audiolitefocus.attention.litefocus import LiteFocus
    from audiolitefocus.pipeline import AudioLDM2Pipeline, AudioOutput

__version__ = "0.1.0"
__all__ = ["AudioLDM2Pipeline", "AudioOutput", "LiteFocus", "__version__"]

_HOMES = {
    "LiteFocus": "attention.litefocus",
    "AudioLDM2Pipeline": "pipeline",
    "AudioOutput": "pipeline",
}


def __getattr__(name: str):
    """Public names are imported when first used, so that `audiolitefocus --help` need not load
    torch.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
