"""Updates of weights: their optimizer, their moving average, states to go on from."""

import contextlib
import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiolitefocus.atomic import atomic_file
from audiolitefocus.training.adapters import trained

CLIP = 1.0  # norm of the gradients
BETAS = (0.9, 0.99)


class Updates:
    """What of a network is trained, and everything that an update of it changes.

    Args:
        network: on its device; the parameters with a gradient are trained.
        rate: learning rate of AdamW.
        average: decay of the moving average of the weights; 0: it is the last ones.
        rates: of some parameters, by name, instead of `rate`.

    Attributes:
        parameters, average: the weights and their average, by name.
        optimizer: one that wraps it may take its place.
        done: updates so far.
    """

    def __init__(
        self,
        network: nn.Module,
        rate: float,
        *,
        average: float = 0.0,
        rates: Mapping[str, float] | None = None,
    ):
        rates = rates or {}
        self.parameters, self.buffers = trained(network), dict(network.named_buffers())
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.decay, self.rates = average, [rate, *rates.values()]
        groups = [[p for name, p in self.parameters.items() if name not in rates]]
        groups += [[self.parameters[name]] for name in rates]
        self.optimizer: Any = torch.optim.AdamW(
            [{"params": group} for group in groups], betas=BETAS, weight_decay=0.0
        )
        self.done = 0

    def update(
        self, share: float = 1.0, clip: Callable[..., Tensor] = nn.utils.clip_grad_norm_
    ) -> None:
        """Change the weights by their gradients, which are cleared.

        Args:
            share: of the learning rates.
            clip: limits the norm of the gradients and returns what it was.

        Raises:
            ValueError: a gradient that is not finite.
        """
        if not torch.as_tensor(clip(list(self.parameters.values()), CLIP)).isfinite():
            raise ValueError(
                f"update {self.done + 1}: training diverged, the gradient is not finite; start "
                f"again with a lower learning rate than {self.rates[0]:g}"
            )
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = share * rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # the average moves faster in the beginning
        decay = min(self.decay, (1 + self.done) / (10 + self.done))
        with torch.no_grad():
            torch._foreach_lerp_([*self.average.values()], [*self.parameters.values()], 1 - decay)
        self.done += 1

    def take_average(self) -> None:
        """Give the network the average of its weights."""
        copy_tensors(self.average, self.parameters)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """A block in which the network has the average of its weights."""
        own = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.take_average()
        try:
            yield
        finally:
            copy_tensors(own, self.parameters)

    def save(self, path: Path, **others: object) -> None:
        """Write a state, whole or not at all, with what else belongs to it."""
        kinds: dict[str, Mapping[str, Tensor]] = {
            "trained": self.parameters,
            "average": self.average,
            "buffers": self.buffers,
        }
        state: dict[str, Any] = {
            kind: {name: tensor.detach().cpu() for name, tensor in tensors.items()}
            for kind, tensors in kinds.items()
        }
        state |= {"optimizer": self.optimizer.state_dict(), "done": self.done, **others}
        with atomic_file(path) as part:
            torch.save(state, part)

    def resume(self, path: Path) -> dict[str, Any]:
        """Take over a state, if there is one. Returns it, with what else belongs to it.

        Raises:
            ValueError: it is damaged, or of another training.
        """
        if not path.exists():
            return {}
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            copy_tensors(state["trained"], self.parameters)
            copy_tensors(state["average"], self.average)
            copy_tensors(state.get("buffers", {}), self.buffers)
            self.optimizer.load_state_dict(state["optimizer"])
            self.done = int(state["done"])
        except Exception as error:  # torch.load raises whatever a damaged file leads it to
            raise ValueError(
                f"{path} is damaged or of another training ({str(error).splitlines()[0]}); remove "
                f"it to start again"
            ) from None
        return state


@torch.no_grad()
def copy_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copy tensors to those of the same names and shapes. Raises ValueError for others."""
    shapes, own = ({name: x.shape for name, x in xs.items()} for xs in (source, target))
    if shapes != own:
        raise ValueError("its tensors have other names or shapes")
    for name, tensor in target.items():
        tensor.copy_(source[name])


def write_table(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV, whole or not at all."""
    with atomic_file(path) as part, part.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def show_update(bar: Any, update: int, loss: float) -> None:
    """Put the number of updates and the loss on a progress bar of tqdm."""
    bar.n = update
    bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
    bar.update(0)
