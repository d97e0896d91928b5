"""How a frontier is shown as a table."""

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
