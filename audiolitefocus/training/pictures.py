"""The loss curve as a picture."""

from collections.abc import Sequence
from pathlib import Path

from audiolitefocus.atomic import atomic_file


def draw_losses(losses: Sequence[tuple[int, float]], path: Path) -> None:
    """Losses and their running mean as a PNG. Needs matplotlib."""
    from matplotlib.figure import Figure

    steps, values = zip(*losses, strict=True)
    window = max(1, len(values) // 20)
    means = [
        sum(values[max(0, i + 1 - window) : i + 1]) / min(window, i + 1) for i in range(len(values))
    ]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, values, linewidth=0.5, alpha=0.4, label="each update")
    axes.plot(steps, means, label=f"mean of the last {window}")
    axes.set(xlabel="update", ylabel="loss", ylim=(0, None))
    axes.legend()
    with atomic_file(path) as part:
        figure.savefig(part, format="png", dpi=120)
