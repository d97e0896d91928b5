"""A model without some of its transformers: all other weights are its own."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from audiolitefocus.checkpoints.bundle import load_component, load_config
from audiolitefocus.checkpoints.limits import check_config
from audiolitefocus.config import BundleConfig
from audiolitefocus.training.bundle import with_unet


def write_pruned(
    source: Path, folder: Path, absent: Collection[str], name: str, how: str, *, force: bool = False
) -> BundleConfig:
    """Write the bundle `source` without these transformers. Returns its config.

    Args:
        absent: their names (`UNetConfig.transformers`).
        name: of the new model.
        how: they were chosen, for its provenance.
        force: replace a folder that is there.

    Raises:
        ValueError: names that the model does not have, or nothing left that attends to text.
        OSError: the folder exists, or cannot be written.
    """
    config = load_config(source)
    unet = replace(config.unet, absent=(*config.unet.absent, *absent))
    check_config(unet, f"{config.name}, pruned")
    pruned = f"{len(absent)} transformers of {config.name}, {how}"
    partner = replace(
        config, name=name, unet=unet, provenance={**config.provenance, "pruned": pruned}
    )
    weights = load_component(source, "unet").state_dict()
    left_out = tuple(f"{transformer}." for transformer in unet.absent)
    kept = {key: w for key, w in weights.items() if not key.startswith(left_out)}
    with_unet(source, folder, partner, kept, force=force)
    return load_config(folder)
