"""How a frontier is shown: as a table, and as a picture."""

from pathlib import Path

from scripts.evaluate.metrics import Estimate


def markdown(points: list[dict]) -> str:
    """A line for each variant."""
    lines = [
        "| clip | variant | cost | time | log-mel | FAD | KL | CLAP % |",
        "|---:|---|---:|---:|---|---|---|---|",
    ]
    for point in sorted(points, key=lambda point: point["seconds"]):
        cells = [f"{point['seconds']:g} s", f"`{point['variant']}`"]
        cells += [f"{point[n]:.2f}" if point[n] is not None else "-" for n in ("cost", "time")]
        cells.append(str(Estimate(**point["log_mel"])) if point["log_mel"] else "-")
        cells += [entry(point, metric) for metric in ("fad", "kl", "clap")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def entry(point: dict, metric: str) -> str:
    """The figure of the full run, the difference from it of others."""
    if point[metric] is None:
        return "-"
    if not point["over_full"]:
        return str(Estimate(**point[metric]))
    found = Estimate(**point["over_full"][metric])
    return f"{found.value:+.2g} ({found.low:+.2g} to {found.high:+.2g})"


def plot(points: list[dict], picture: Path) -> None:
    """Distance of log-mel spectrograms against cost. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    kinds = {
        "steps": "fewer steps",
        "reuse": "reuse",
        "guidance": "less guidance",
        "drafter": "a drafter",
        "sampler": "another sampler",
    }
    for start, label in kinds.items():
        own = [p for p in points if p["log_mel"] and p["cost"] and p["variant"].startswith(start)]
        own.sort(key=lambda point: point["cost"])
        values = [point["log_mel"] for point in own]
        spread = [
            [v["value"] - v["low"] for v in values],
            [v["high"] - v["value"] for v in values],
        ]
        x, y = [point["cost"] for point in own], [v["value"] for v in values]
        line = "-" if start == "steps" else ""
        axes.errorbar(x, y, yerr=spread, marker="o", linestyle=line, capsize=3, label=label)
        for point, height in zip(own, y, strict=True):
            name = Path(point["variant"].split("=", 1)[1]).stem
            axes.annotate(
                name, (point["cost"], height), fontsize=7, xytext=(4, 3), textcoords="offset points"
            )
    axes.set(
        xlabel="operations, of the full run",
        ylabel="log-mel distance from it (nats)",
        ylim=(0, None),
    )
    axes.legend()
    figure.savefig(picture, dpi=120)
