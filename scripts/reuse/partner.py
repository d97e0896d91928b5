"""A cheaper partner of a model, to draft with: its UNet without some transformers, by a rule.

python -m scripts.reuse.partner --model demo --without self --out partner

Nothing is trained (scripts.prune.recover does that). All other weights are the model's own, and so
are its VAE, vocoder and text towers. Which transformers it costs least to leave out can be learnt:
scripts.prune.learn.
"""

import argparse
import sys
from pathlib import Path

from audiolitefocus.checkpoints.bundle import load_config
from audiolitefocus.checkpoints.resolve import resolve_bundle
from audiolitefocus.config import CONTEXTS, BundleConfig
from scripts.prune.bundle import write_pruned


def make_partner(source: Path, folder: Path, contexts: set[str]) -> BundleConfig:
    """Write the bundle `source` without the transformers of these contexts. Returns its config.

    Raises:
        ValueError: a model that has none of these transformers, or would have no other ones.
        OSError: the folder exists, or cannot be written.
    """
    config = load_config(source)
    own = config.unet.transformers
    absent = [name for name, (_, context) in own.items() if context in contexts]
    if len(absent) in (0, len(own)):
        there = sorted({context for _, context in own.values()})
        raise ValueError(f"--without {' '.join(sorted(contexts))}: {config.name} has {there}")
    name = f"{config.name}-without-{'-'.join(sorted(contexts))}"
    return write_pruned(source, folder, absent, name, f"all with {', '.join(sorted(contexts))}")


def thin_out(source: Path, folder: Path, every: int) -> BundleConfig:
    """Write the bundle `source` without every n-th transformer, in the order of running.

    Raises: as `make_partner`.
    """
    config = load_config(source)
    absent = list(config.unet.transformers)[every - 1 :: every]
    if every < 2 or not absent:
        raise ValueError(
            f"--every {every}: must be from 2 to {len(config.unet.transformers)}, the number of "
            f"transformers of {config.name}"
        )
    how = f"one of every {every} in the order of running"
    return write_pruned(source, folder, absent, f"{config.name}-without-every-{every}", how)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help="a bundle")
    rule = parser.add_mutually_exclusive_group(required=True)
    rule.add_argument("--without", nargs="+", choices=CONTEXTS, help="all of these contexts")
    rule.add_argument("--every", type=int, help="one of so many, in the order of running")
    parser.add_argument("--out", type=Path, required=True, help="a folder")
    chosen = parser.parse_args()
    try:
        source = resolve_bundle(chosen.model)
        if chosen.without:
            partner = make_partner(source, chosen.out, set(chosen.without))
        else:
            partner = thin_out(source, chosen.out, chosen.every)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{chosen.out}: {partner.name}")


if __name__ == "__main__":
    main()
