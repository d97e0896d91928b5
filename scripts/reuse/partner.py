"""A cheaper partner of a model, to draft with: its UNet without the transformers of some contexts.

python -m scripts.reuse.partner --model demo --without self --out partner

Nothing is trained. All other weights are the model's own, and so are its VAE, vocoder and text
towers.
"""

import argparse
import dataclasses
import re
import shutil
import sys
from pathlib import Path

from torch import Tensor

from audiolitefocus.atomic import atomic_folder
from audiolitefocus.checkpoints.bundle import load_component, load_config, sha256
from audiolitefocus.checkpoints.resolve import resolve_bundle
from audiolitefocus.checkpoints.tensors import save_tensors
from audiolitefocus.config import CONTEXTS, BundleConfig

TRANSFORMER = re.compile(r"(?<=\.transformers\.)(\d+)(?=\.)")


def without(weights: dict[str, Tensor], kept: list[int]) -> dict[str, Tensor]:
    """The weights with the transformers of these places in a stage alone, which count anew."""
    found = {}
    for name, tensor in weights.items():
        place = TRANSFORMER.search(name)
        if place is None:
            found[name] = tensor
        elif int(place[0]) in kept:
            found[TRANSFORMER.sub(str(kept.index(int(place[0]))), name)] = tensor
    return found


def make_partner(source: Path, folder: Path, contexts: set[str]) -> BundleConfig:
    """Write the bundle `source` without the transformers of these contexts. Returns its config.

    Raises:
        ValueError: a model that has none of these transformers, or would have no other ones.
        OSError: the folder exists, or cannot be written.
    """
    config = load_config(source)
    own = config.unet.contexts
    kept = [place for place, context in enumerate(own) if context not in contexts]
    if len(kept) in (0, len(own)):
        raise ValueError(f"--without {' '.join(sorted(contexts))}: {config.name} has {own}")
    unet = dataclasses.replace(config.unet, contexts=tuple(own[place] for place in kept))
    with atomic_folder(folder) as beside:
        shutil.copytree(source, beside, dirs_exist_ok=True)
        path = beside / "unet.safetensors"
        save_tensors(path, without(load_component(source, "unet").state_dict(), kept))
        partner = dataclasses.replace(
            config,
            name=f"{config.name}-without-{'-'.join(sorted(contexts))}",
            unet=unet,
            files={**config.files, path.name: sha256(path)},
        )
        (beside / "config.json").write_text(partner.to_json(), encoding="utf-8")
    return partner


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="a bundle")
    parser.add_argument("--without", nargs="+", choices=CONTEXTS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    chosen = parser.parse_args()
    try:
        partner = make_partner(resolve_bundle(chosen.model), chosen.out, set(chosen.without))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{chosen.out}: {partner.name}")


if __name__ == "__main__":
    main()
