"""See where self-attention looks: the paper's Figure 2 for any model and prompt.

Tokens are put in order of frequency row. LiteFocus rests on most of the attention of a query
staying in the query's own row: `row_share.csv` says how much does, for every self-attention of the
UNet and some steps, and `attention.png` shows it. Needs matplotlib: pip install
'audiolitefocus[plot]'."""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
from einops import rearrange, reduce
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.attention.modules import SelfAttention

BINS = 48  # pixels a frequency row, at most
ELEMENTS = 2**24  # attention weights held at a time: 64 MB in float32
FAINTEST = 1e-3  # share of the brightest pixel that is drawn black


@dataclass(frozen=True)
class Share:
    """How much attention stays in the query's own row, and how much would by chance."""

    block: str
    rows: int
    step: int
    share: float
    chance: float


def attention_by_row(q: Tensor, k: Tensor) -> tuple[Tensor, float]:
    """Queries and keys (b, f, t, h, d) -> where attention goes, (f bins, f bins), averaged over
    heads and batch, and the share inside the query's own row.

    A pixel is the mean attention of neighbouring queries to neighbouring keys, times the number of
    keys: 1 where attention is even. Weights are computed for a few queries at a time, so memory
    stays bounded.
    """
    rows, length = q.shape[1:3]
    bins = min(BINS, length)
    edges = torch.arange(length, device=q.device) * bins // length  # of every time, its bin
    pool = torch.nn.functional.one_hot(edges, bins).float()  # t bins
    q, k = (rearrange(x.float(), "b f t h d -> b h (f t) d") for x in (q, k))
    chunk = max(1, ELEMENTS // (q.shape[0] * q.shape[1] * rows * length))
    seen = []
    for part in q.split(chunk, dim=2):
        weights = (part @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        weights = reduce(weights, "b h n (f t) -> n f t", "mean", f=rows)
        seen.append(weights @ pool)  # n f bins
    seen = rearrange(torch.cat(seen), "(f t) g s -> f t g s", f=rows)
    own = seen.sum(-1).diagonal(dim1=0, dim2=2).mean()
    count = pool.sum(0)  # of the times in a bin
    mean = torch.einsum("ftgs,tr->frgs", seen / count, pool / count) * rows * length
    return rearrange(mean, "f r g s -> (f r) (g s)").cpu(), float(own)


class Watch:
    """Looks at every self-attention of a UNet while the pipeline runs with dense attention."""

    def __init__(self, unet: torch.nn.Module, blocks: Sequence[str], steps: Sequence[int]):
        self.step, self.steps, self.blocks = 0, steps, blocks
        self.shares: list[Share] = []
        self.maps: dict[tuple[str, int], Tensor] = {}
        self.names = {m: n for n, m in unet.named_modules() if isinstance(m, SelfAttention)}
        self.hooks = [module.register_forward_pre_hook(self.look) for module in self.names]

    def look(self, module: SelfAttention, inputs: tuple) -> None:
        if self.step not in self.steps:
            return
        q, k = (
            rearrange(project(inputs[0]), "b f t (h d) -> b f t h d", h=module.heads)
            for project in (module.to_q, module.to_k)
        )
        seen, own = attention_by_row(q, k)
        name, rows = self.names[module], q.shape[1]
        self.shares.append(Share(name, rows, self.step, own, 1 / rows))
        if name in self.blocks:
            self.maps[name, self.step] = seen

    def next_step(self, step: int, timestep: int, latents: Tensor) -> None:
        self.step = step + 1


def first_of_every_level(unet: torch.nn.Module) -> list[str]:
    """The first self-attention of every level going down."""
    found: dict[str, str] = {}
    for name, module in unet.named_modules():
        if isinstance(module, SelfAttention) and name.startswith("down."):
            found.setdefault(name.split(".")[1], name)
    return list(found.values())


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
    look = chosen.look or sorted({round(last * i / 4) for i in range(5)})
    if wrong := [step for step in look if not 0 <= step <= last]:
        raise ValueError(f"steps {wrong}: must lie in 0 to {last}")
    watcher = Watch(pipe.unet, chosen.blocks or first_of_every_level(pipe.unet), look)
    names = list(watcher.names.values())
    if unknown := sorted(set(watcher.blocks) - set(names)):
        raise ValueError(f"no self-attention {unknown}: there are {', '.join(names)}")
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
