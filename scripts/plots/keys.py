"""Distance from dense attention against the keys that a query is shown of other rows.

python -m scripts.plots.keys scripts/results/keys-demo.json docs/keys.png

From the results of `scripts.evaluate.attentions` for one length and several ratios and weights.
Needs matplotlib: pip install 'audiolitefocus[plot]'.
"""

import argparse
import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from audiolitefocus.attention.settings import LiteFocus, parse_attention
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.checkpoints.bundle import load_config
from audiolitefocus.checkpoints.resolve import resolve_bundle
from audiolitefocus.config import BundleConfig

NAMES = {0.0: "unweighted, as in the paper", 0.5: "weight 0.5", 1.0: "weight 1"}


def sampled_keys(lite: LiteFocus, seconds: float, config: BundleConfig) -> int:
    """Keys of other rows that a query of level 1 attends to."""
    length = ClipLength(seconds, config)
    rows, frames = length.latent_rows // 2, length.latent_frames // 2
    return (rows - 1) * int(lite.sparse_ratio * frames)


def plot(cells: list[dict], config: BundleConfig, picture: Path) -> None:
    """A line for each weight; level 1 and the usual scale alone."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for weight, name in NAMES.items():
        points = []
        for cell in cells:
            lite = parse_attention(cell["attention"])
            if not isinstance(lite, LiteFocus) or lite.levels != (1,) or lite.scale != 1:
                continue
            keys = sampled_keys(lite, cell["seconds"], config)
            if cell["distance"] and (lite.weight == weight or keys == 0):
                points.append((keys, cell["distance"]))
        points.sort(key=lambda point: point[0])
        values = [distance for _, distance in points]
        spread = [
            [value["value"] - value["low"] for value in values],
            [value["high"] - value["value"] for value in values],
        ]
        heights = [value["value"] for value in values]
        axes.errorbar(
            [x for x, _ in points], heights, yerr=spread, marker="o", capsize=3, label=name
        )
    axes.set_xscale("symlog", linthresh=10)
    axes.set(
        xlabel="keys sampled of other rows, a query", ylabel="distance from dense", ylim=(0, None)
    )
    axes.set_title(
        f"{cells[0]['seconds']:g} s, means of {cells[0]['clips']} clips with 95 % intervals"
    )
    axes.legend()
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path)
    chosen = parser.parse_args()
    try:
        found = json.loads(chosen.results.read_text(encoding="utf-8"))
        config = load_config(resolve_bundle(found["about"]["model"]))
        if len({cell["seconds"] for cell in found["cells"]}) != 1:
            raise ValueError(f"{chosen.results} holds several lengths, or none: give one")
        plot(found["cells"], config, chosen.picture)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
