"""What an evaluation found: results that grow cell by cell, tables of them and a plot.

`python -m scripts.evaluate.results results.json` prints the results as tables in Markdown.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from audiolitefocus.atomic import atomic_file
from scripts.evaluate.metrics import Estimate

METRICS = {"fad": "FAD", "kl": "KL", "clap": "CLAP %"}
GIVEN = "given"  # the "attention" of sounds that were not made here


@dataclass(frozen=True)
class Cell:
    """The figures of one set of clips; None where they cannot be had.

    Attributes:
        attention: as `parse_attention` takes it, or "given".
        seconds: clip length; None where clips have lengths of their own.
        fad: Fréchet distance of embeddings to the reference's: smaller is better.
        kl: of class probabilities, reference against generated, in nats: smaller is better.
        clap: mean cosine of text and sound, in percent: larger is better.
        over_dense: metric by metric, this cell less the one of dense attention, clip by clip.
    """

    attention: str
    seconds: float | None
    clips: int
    fad: Estimate
    kl: Estimate | None = None
    clap: Estimate | None = None
    over_dense: dict[str, Estimate] | None = None

    @property
    def key(self) -> tuple[str, float | None]:
        return self.attention, self.seconds


def cell_from(record: dict) -> Cell:
    """A cell from its JSON."""
    record = dict(record)
    for metric in METRICS:
        record[metric] = record[metric] and Estimate(**record[metric])
    if record["over_dense"] is not None:
        record["over_dense"] = {k: Estimate(**v) for k, v in record["over_dense"].items()}
    return Cell(**record)


class Results:
    """Cells in a JSON file that is written as a whole whenever one is added.

    Args:
        path: of the file; what it holds already is kept.
        about: how all cells were made.

    Raises:
        ValueError: the file's cells were made in another way.
    """

    def __init__(self, path: Path, about: dict):
        self.path, self.about = path, json.loads(json.dumps(about))
        self.cells: dict[tuple, Cell] = {}
        if not path.is_file():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            cells, others = [cell_from(record) for record in found["cells"]], found["about"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} is not from here; name another file or folder") from None
        keys = self.about.keys() | others.keys()
        if different := sorted(k for k in keys if self.about.get(k) != others.get(k)):
            raise ValueError(
                f"{path} holds results with other settings ({', '.join(different)}); name another "
                f"folder"
            )
        self.cells = {cell.key: cell for cell in cells}

    def add(self, cell: Cell) -> None:
        self.cells[cell.key] = cell
        records = [asdict(cell) for cell in self.ordered()]
        found = {"about": self.about, "cells": records}
        with atomic_file(self.path) as beside:
            beside.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")

    def ordered(self) -> list[Cell]:
        return sorted(self.cells.values(), key=lambda cell: cell.seconds or 0)


def markdown(cells: list[Cell]) -> str:
    """A table for each metric: a line for each attention, a column for each length. A difference
    from dense attention is given where its interval does not hold zero, and the number of clips
    where it is not that of the whole column.
    """
    by_key = {cell.key: cell for cell in cells}
    lengths: dict[float | None, int] = {}  # of clips, and how many clips at most
    for cell in cells:
        lengths[cell.seconds] = max(lengths.get(cell.seconds, 0), cell.clips)
    heads = [
        f"{count} clips" + ("" if seconds is None else f" of {seconds:g} s")
        for seconds, count in lengths.items()
    ]
    tables = []
    for metric, title in METRICS.items():
        lines = [f"| {title} | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
        for name in dict.fromkeys(cell.attention for cell in cells):
            row = [
                _entry(by_key.get((name, seconds)), metric, count)
                for seconds, count in lengths.items()
            ]
            lines.append(f"| {name} | {' | '.join(row)} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _entry(cell: Cell | None, metric: str, clips: int) -> str:
    if cell is None or getattr(cell, metric) is None:
        return "-"
    text = str(getattr(cell, metric))
    if cell.over_dense and metric in cell.over_dense:
        difference = cell.over_dense[metric]
        if difference.low > 0 or difference.high < 0:
            text += f", {difference.value:+.2g}"
    return text if cell.clips == clips else f"{text}, {cell.clips} clips"


def plot(cells: list[Cell], picture: Path) -> None:
    """Each metric against length, with intervals. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, 3), METRICS.items(), strict=True):
        for name in dict.fromkeys(cell.attention for cell in cells):
            own = [c for c in cells if c.attention == name and getattr(c, metric) and c.seconds]
            found = [getattr(cell, metric) for cell in own]
            spread = [[e.value - e.low for e in found], [e.high - e.value for e in found]]
            heights = [estimate.value for estimate in found]
            lengths = [cell.seconds for cell in own]
            axes.errorbar(lengths, heights, yerr=spread, marker="o", capsize=3, label=name)
        axes.set(xlabel="clip length (s)", title=title, xscale="log")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right")  # type: ignore[call-overload]
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        records = json.loads(Path(name).read_text(encoding="utf-8"))["cells"]
        print(markdown([cell_from(record) for record in records]))
