"""Outputs of the UNet's units, from one step of a call to the next."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from audiolitefocus.reuse.settings import Table


class ReuseStore:
    """What one call keeps of its steps, by a table; the networks know nothing of it.

    Args:
        table: of the steps of this call.
        units: every unit of the UNet, by name (`UNet.units`).
        positions: where each step lies, which order 1 extrapolates along.
        order: 0 takes what was computed last, 1 extrapolates from the last two.
    """

    def __init__(
        self,
        table: Table,
        units: Mapping[str, nn.Module],
        positions: Sequence[float],
        order: int = 0,
    ):
        self.computed = {units[name]: row for name, row in table.items()}
        self.positions, self.order = positions, order
        self.kept: dict[nn.Module, list[tuple[int, Tensor]]] = {}  # step and output, newest first
        self.branches = 0

    def reused(self, step: int, clips: int, branches: int) -> dict[nn.Module, Tensor]:
        """Outputs to take in this step, of `branches` of guidance, 1 or 2.

        Where guidance ends, the condition's half of what is kept goes on, which stands second.
        Where it begins, nothing does.
        """
        if branches > self.branches:
            self.kept.clear()
        elif branches < self.branches:
            self.kept = {
                unit: [(s, x[-clips:] if len(x) > clips else x) for s, x in outputs]
                for unit, outputs in self.kept.items()
            }
        self.branches = branches
        return {
            unit: self._extrapolated(self.kept[unit], step)
            for unit, row in self.computed.items()
            if not row[step] and unit in self.kept
        }

    def wanted(self, step: int) -> dict[nn.Module, Tensor | None]:
        """Units whose outputs this step has to record, if it computes them."""
        ahead = slice(step + 1, None if self.order else step + 2)
        return {unit: None for unit, row in self.computed.items() if not all(row[ahead])}

    def keep(
        self, step: int, recorded: Mapping[nn.Module, Tensor | None], *, copy: bool = False
    ) -> None:
        """Take over what a step has recorded, as copies where its memory is used again."""
        for unit, output in recorded.items():
            if output is not None:
                output = output.clone() if copy else output
                self.kept[unit] = [(step, output), *self.kept.get(unit, [])][: 1 + self.order]

    def _extrapolated(self, outputs: list[tuple[int, Tensor]], step: int) -> Tensor:
        """Through the last two outputs, if there are two."""
        (last, newest), *older = outputs
        if not older:
            return newest
        [(first, oldest)] = older
        at = self.positions
        share = (at[step] - at[last]) / (at[last] - at[first])
        return newest + (newest - oldest) * share
