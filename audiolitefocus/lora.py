"""LoRA adapters on a pipeline's UNet, mixed into `AudioLDM2Pipeline`."""

import os
from dataclasses import replace
from pathlib import Path

from audiolitefocus.checkpoints.adapters import SCALE, Adapter, apply_adapters
from audiolitefocus.checkpoints.bundle import load_config
from audiolitefocus.config import BundleConfig, Distilled
from audiolitefocus.models.unet import UNet
from audiolitefocus.validation import check_rule

PREFIX = "lora/"  # of adapters among `BundleConfig.files`


class TakesAdapters:
    """Methods that add adapters to the UNet's weights and take them off. Not during a call."""

    folder: Path
    config: BundleConfig
    unet: UNet
    _adapters: tuple[tuple[Adapter, float], ...] = ()

    def unets(self) -> list[UNet]:
        """The UNet, and its copies on other devices."""
        return [self.unet]

    @property
    def adapters(self) -> dict[str, float]:
        """Names of the adapters that the UNet has, and their scales."""
        return {adapter.name: scale for adapter, scale in self._adapters}

    def load_lora(self, path: str | os.PathLike, scale: float = 1.0) -> None:
        """Add an adapter to the UNet's weights, beside those that it has.

        An adapter that is there already gets the new scale.

        Args:
            path: a folder with adapter_config.json and adapter_model.safetensors, as
                `audiolitefocus finetune` and PEFT write them.
            scale: how much of it; 0 is nothing, negative the opposite.

        Raises:
            ValueError: no LoRA adapter, or one for another model.
        """
        adapter = Adapter.read(path)
        adapter.check(self.unet)
        scale = check_rule("scale", scale, SCALE)
        others = [entry for entry in self._adapters if entry[0].sha256 != adapter.sha256]
        self._set_adapters([*others, (adapter, scale)])

    def unload_lora(self) -> None:
        """Take all adapters off: the UNet has the weights of its bundle again."""
        self._set_adapters([])

    def _set_adapters(self, adapters: list[tuple[Adapter, float]]) -> None:
        """Raise ValueError for what does not go together, before anything is changed."""
        names = [adapter.name for adapter, _ in adapters]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two different adapters are named {', '.join(twice)}: rename one")
        distilled = self._distilled(adapters)
        touched = {
            layer for adapter, _ in (*self._adapters, *adapters) for layer in adapter.factors
        }
        for unet in self.unets():
            apply_adapters(unet, self.folder, adapters, touched)
        self._adapters = tuple(adapters)
        # so that recipes of clips say which weights made them
        own = {name: digest for name, digest in self.config.files.items() if not is_adapter(name)}
        added = {f"{PREFIX}{adapter.name}:{scale:g}": adapter.sha256 for adapter, scale in adapters}
        self.config = replace(self.config, files={**own, **added}, distilled=distilled)

    def _distilled(self, adapters: list[tuple[Adapter, float]]) -> Distilled | None:
        """What the UNet is distilled for, by its bundle or by an adapter. Raises ValueError."""
        own = load_config(self.folder).distilled
        all_of_them = [(self.config.name, own), *((a.name, a.distilled) for a, _ in adapters)]
        found = [(name, distilled) for name, distilled in all_of_them if distilled is not None]
        if len(found) > 1:
            names = " and ".join(name for name, _ in found)
            raise ValueError(f"{names} are distilled, each for itself: load one alone")
        return found[0][1] if found else None


def is_adapter(name: str) -> bool:
    """True for the name of an adapter among a model's files."""
    return name.startswith(PREFIX)
