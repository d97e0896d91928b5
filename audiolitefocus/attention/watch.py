"""Where self-attention looks: the LiteFocus paper's Figure 2 for any model and prompt, as numbers.

Tokens are put in order of frequency row. LiteFocus rests on most of the attention of a query
staying in the query's own row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from audiolitefocus.attention.modules import SelfAttention

BINS = 48  # pixels a frequency row, at most
ELEMENTS = 2**24  # attention weights held at a time: 64 MB in float32


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
    parts = []
    for part in q.split(chunk, dim=2):
        weights = (part @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        weights = reduce(weights, "b h n (f t) -> n f t", "mean", f=rows)
        parts.append(weights @ pool)  # n f bins
    seen = rearrange(torch.cat(parts), "(f t) g s -> f t g s", f=rows)
    own = seen.sum(-1).diagonal(dim1=0, dim2=2).mean()
    count = pool.sum(0)  # of the times in a bin
    mean = torch.einsum("ftgs,tr->frgs", seen / count, pool / count) * rows * length
    return rearrange(mean, "f r g s -> (f r) (g s)").cpu(), float(own)


class Watch:
    """Looks at every self-attention of a UNet while the pipeline runs with dense attention.

    Used as `with Watch(...) as watch: pipe(..., callback=watch.next_step)`, by one call at a time.

    Args:
        blocks: whose maps are kept.
        steps: that are looked at, from 0.

    Attributes:
        shares: of every self-attention in these steps.
        maps: (block, step) -> where its attention goes, as `attention_by_row`.

    Raises:
        ValueError: a block that does not exist.
    """

    def __init__(self, unet: torch.nn.Module, blocks: Sequence[str], steps: Sequence[int]):
        self.step, self.steps, self.blocks = 0, steps, blocks
        self.shares: list[Share] = []
        self.maps: dict[tuple[str, int], Tensor] = {}
        self.names = {m: n for n, m in unet.named_modules() if isinstance(m, SelfAttention)}
        if unknown := sorted(set(blocks) - set(self.names.values())):
            raise ValueError(
                f"no self-attention {unknown}: there are {', '.join(self.names.values())}"
            )
        self.hooks: list[RemovableHandle] = []

    def __enter__(self) -> "Watch":
        self.hooks = [module.register_forward_pre_hook(self.look) for module in self.names]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self.hooks:
            hook.remove()

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


def steps_between(steps: int) -> list[int]:
    """Five steps of so many, from the first to the last, evenly spread; fewer where there are."""
    return sorted({round((steps - 1) * i / 4) for i in range(5)})
