"""Quality against cost, a column for each clip length.

python -m scripts.plots.frontier scripts/results/frontier-demo{,-10s,-20s,-combined}.json \\
    docs/frontier.png

From results of `scripts.evaluate.frontier`. Needs matplotlib: pip install 'audiolitefocus[plot]'.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = {  # of a variant, by the option that it changes
    "steps": "fewer steps",
    "reuse": "reuse",
    "guidance_interval": "less guidance",
    "adaptive_guidance": "less guidance",
    "guidance_scale": "another guidance",
    "drafter_interval": "a drafter",
    "sampler": "another sampler",
}
TOGETHER = "together"


def kind_of(variant: str) -> str:
    names = [part.partition("=")[0] for part in variant.split(",")]
    return KINDS.get(names[0], names[0]) if len(names) == 1 else TOGETHER


def label_of(variant: str) -> str:
    """A line for each option: its value, and what it is of where that would not tell."""
    lines = []
    for name, _, value in (part.partition("=") for part in variant.split(",")):
        prefix = "" if name in ("steps", "reuse") else name.partition("_")[0] + " "
        suffix = " steps" if name == "steps" else ""
        lines.append(prefix + (Path(value).stem if "/" in value else value) + suffix)
    return "\n".join(lines)


def draw(axes: "Axes", points: list[dict], figure_of: str) -> None:
    """A metric's difference from the full run against cost; a colour for each kind of variant."""
    kinds = [*dict.fromkeys(KINDS.values()), TOGETHER]
    for kind in sorted({kind_of(point["variant"]) for point in points}, key=kinds.index):
        own = [point for point in points if kind_of(point["variant"]) == kind]
        own.sort(key=lambda point: point["cost"])
        found = [p["log_mel"] if figure_of == "log_mel" else p["over_full"]["kl"] for p in own]
        costs, heights = [p["cost"] for p in own], [f["value"] for f in found]
        spread = [
            [f["value"] - f["low"] for f in found],
            [f["high"] - f["value"] for f in found],
        ]
        axes.errorbar(
            costs,
            heights,
            yerr=spread,
            color=f"C{kinds.index(kind)}",
            linestyle="-" if kind == KINDS["steps"] else "",
            marker="o",
            capsize=3,
            label=kind,
        )
        for point, height in zip(own, heights, strict=True):
            axes.annotate(
                label_of(point["variant"]),
                (point["cost"], height),
                fontsize=6,
                xytext=(4, 3),
                textcoords="offset points",
            )


def plot(points: list[dict], picture: Path) -> None:
    """Distance from the full run, and the difference in KL, of points with a counted cost."""
    from matplotlib.figure import Figure

    shown = [point for point in points if point["cost"] is not None and point["log_mel"]]
    lengths = sorted({point["seconds"] for point in shown})
    if not lengths:
        return
    figure = Figure(figsize=(max(6.5, 4.6 * len(lengths)), 7.5), layout="constrained")
    grid = figure.subplots(2, len(lengths), squeeze=False, sharey="row", sharex=True)
    for seconds, (distance, kl) in zip(lengths, grid.T, strict=True):
        own = [point for point in shown if point["seconds"] == seconds]
        draw(distance, own, "log_mel")
        draw(kl, [point for point in own if point["over_full"].get("kl")], "kl")
        kl.axhline(0, color="grey", linewidth=0.8)
        distance.set_title(f"{seconds:g} s")
        kl.set_xlabel("operations, of the full run")
    grid[0, 0].set(ylabel="log-mel distance from it (nats)", ylim=(0, None), xlim=(0, 1.05))
    grid[1, 0].set(ylabel="KL, less that of the full run (nats)")
    named = {
        label: handle
        for axes in grid.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named))
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("picture", type=Path)
    chosen = parser.parse_args()
    try:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in chosen.results]
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    of_run = "sampler", "full", "guidance_scale"
    if len(runs := {tuple(f["about"][name] for name in of_run) for f in found}) > 1:
        sys.exit(f"error: compared with different runs: {sorted(runs)}; draw them apart")
    plot([point for f in found for point in f["points"]], chosen.picture)


if __name__ == "__main__":
    main()
