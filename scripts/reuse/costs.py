"""What a table of reuse costs, by counted operations."""

from audiolitefocus.attention.settings import Attention
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.config import BundleConfig
from audiolitefocus.reuse.settings import Table
from scripts.benchmark.operations import operations


class Costs:
    """Operations of a run of one clip, as shares.

    Args:
        config: of the model.
        seconds, attention: of the clip.
        branches: 2 with guidance, 1 without.
    """

    def __init__(
        self, config: BundleConfig, seconds: float, attention: Attention, branches: int = 2
    ):
        length = ClipLength(seconds, config)
        shape = (1, config.unet.in_channels, length.latent_frames, length.latent_rows)
        self.counted = operations(config.unet, shape, attention, branches=branches)

    def of_unit(self, unit: str) -> float:
        """The share of an evaluation that a unit takes."""
        return self.counted.within[unit] / self.counted.total

    def run(self, table: Table, steps: int) -> float:
        """The cost of a run, in full evaluations."""
        rows = ([unit for unit, row in table.items() if not row[step]] for step in range(steps))
        return sum(map(self.counted.with_reused, rows)) / self.counted.total
