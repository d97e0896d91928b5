"""See where self-attention looks: the paper's Figure 2 for any model and prompt.

Tokens are put in order of frequency row. LiteFocus rests on most of the attention of a query
staying in the query's own row: `row_share.csv` says how much does, for every self-attention of the
UNet and some steps, and `attention.png` shows it. Needs matplotlib: pip install
'audiolitefocus[plot]'."""

import argparse
import csv
import json
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.attention.watch import Share, Watch, first_of_every_level, steps_between

FAINTEST = 1e-3  # share of the brightest pixel that is drawn black


def draw(maps: dict[tuple[str, int], Tensor], shares: list[Share], picture: Path) -> None:
    """A row for each block, a column for each step."""
    blocks, steps = (sorted({key[i] for key in maps}) for i in (0, 1))
    size = (4 * len(steps) + 1, 4 * len(blocks))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(blocks), len(steps), squeeze=False)
    known = {(s.block, s.step): s for s in shares}
    for (block, step), seen in maps.items():
        ax, share = axes[blocks.index(block)][steps.index(step)], known[block, step]
        norm = LogNorm(float(seen.max()) * FAINTEST, float(seen.max()), clip=True)
        ax.imshow(seen, cmap="magma", norm=norm, interpolation="nearest")
        bins = len(seen) // share.rows
        middles = [bins * (row + 0.5) - 0.5 for row in range(share.rows)]
        ax.set_xticks(middles, range(share.rows))
        ax.set_yticks(middles, range(share.rows))
        ax.set(xlabel="row of the key", ylabel="row of the query")
        ax.set_title(f"{block}\nstep {step}: {share.share:.0%} in its row", fontsize=8)
    figure.savefig(picture, dpi=80)


def table(shares: list[Share]) -> str:
    """The share inside the query's own row: a line for each block, a column for each step; and the
    means of all blocks with as many rows.
    """
    steps = sorted({s.step for s in shares})
    lines = [f"{'block':52} rows chance" + "".join(f" step {step:<4}" for step in steps)]
    groups = {s.block: [o for o in shares if o.block == s.block] for s in shares}
    counts = sorted({s.rows for s in shares}, reverse=True)
    groups |= {f"mean, {count} rows": [s for s in shares if s.rows == count] for count in counts}
    for name, group in groups.items():
        means = [fmean(s.share for s in group if s.step == step) for step in steps]
        cells = "".join(f" {mean:9.1%}" for mean in means)
        lines.append(f"{name:52} {group[0].rows:4} {group[0].chance:6.1%}{cells}")
    return "\n".join(lines)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="See where self-attention looks.")
    add = parser.add_argument
    add("prompt")
    add("--model", default="demo")
    add("--seconds", type=float, help="default: the trained length")
    add("--steps", type=int, default=20, help="of the sampler")
    add("--look", type=int, nargs="+", help="steps to look at, from 0; default: five in between")
    add("--blocks", nargs="+", help="to draw; default: the first of every level")
    add("--seed", type=int, default=0)
    add("--device", default="auto")
    add("--output", type=Path, default=Path("attention"), help="folder")
    return parser.parse_args()


def watch(chosen: argparse.Namespace) -> Watch:
    """Run the pipeline and look. Raises ValueError for blocks or steps that do not exist."""
    pipe = AudioLDM2Pipeline.from_pretrained(chosen.model, device=chosen.device)
    last = chosen.steps - 1
    look = chosen.look or steps_between(chosen.steps)
    if wrong := [step for step in look if not 0 <= step <= last]:
        raise ValueError(f"steps {wrong}: must lie in 0 to {last}")
    with Watch(pipe.unet, chosen.blocks or first_of_every_level(pipe.unet), look) as watcher:
        pipe(
            chosen.prompt,
            audio_length_in_s=chosen.seconds,
            num_inference_steps=chosen.steps,
            generator=torch.Generator().manual_seed(chosen.seed),
            attention="dense",
            output_type="latent",
            callback=watcher.next_step,
        )
    return watcher


def main() -> None:
    chosen = options()
    try:
        watcher = watch(chosen)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    chosen.output.mkdir(parents=True, exist_ok=True)
    draw(watcher.maps, watcher.shares, chosen.output / "attention.png")
    rows = [asdict(share) for share in watcher.shares]
    with open(chosen.output / "row_share.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(table(watcher.shares))
    print(json.dumps({"model": chosen.model, "prompt": chosen.prompt, "shares": rows}))


if __name__ == "__main__":
    main()
