"""What a benchmark found: the results, a table for people and a record for programs.

`python scripts/report.py scripts/results/NAME.json` prints records, one or more, as the README's
table.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from scripts.benchmark.timing import median

BASELINE = "diffusers"
GIB = 2**30


@dataclass
class Result:
    """One contender at one length: times in seconds, memory in bytes beyond the weights'."""

    contender: str
    dtype: str
    seconds: float
    flops: int | None = None
    memory: int | None = None
    times: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def key(self) -> str:
        return f"{self.contender} {self.dtype}"

    @property
    def median(self) -> float | None:
        return median(self.times) if self.times else None


def record(results: Iterable[Result], about: dict, peaks: dict[str, float]) -> dict:
    """Everything, ready for JSON."""
    rows = [
        asdict(r) | {"median": r.median, "share_of_peak": share_of_peak(r, peaks)} for r in results
    ]
    return {**about, "peak_flops": peaks, "results": rows}


def share_of_peak(result: Result, peaks: dict[str, float]) -> float | None:
    """Achieved FLOP/s over the machine's measured peak of that dtype."""
    if result.median is None or result.flops is None or result.dtype not in peaks:
        return None
    return result.flops / result.median / peaks[result.dtype]


def table(results: list[Result], peaks: dict[str, float]) -> str:
    """Times, and how often each fits into the baseline's: of the same dtype, and of float32."""
    lines = [
        f"{'seconds':>8} {'contender':24} {'dtype':9} {'time s':>9} {'speed':>7} {'vs fp32':>7} "
        f"{'TFLOP':>7} {'peak %':>6} {'GiB':>6}  note"
    ]
    for r in results:
        same, single = (_speed(results, r, dtype) for dtype in (r.dtype, "float32"))
        share = share_of_peak(r, peaks)
        lines.append(
            f"{r.seconds:8g} {r.contender:24} {r.dtype:9} {_cell(r.median, '9.4f')} "
            f"{_cell(same, '6.2f')}x {_cell(single, '6.2f')}x "
            f"{_cell(r.flops and r.flops / 1e12, '7.3f')} {_cell(share and 100 * share, '6.1f')} "
            f"{_cell(r.memory is not None and r.memory / GIB, '6.2f')}  {r.note}"
        )
    return "\n".join(line.rstrip() for line in lines)


def _speed(results: list[Result], result: Result, dtype: str) -> float | None:
    """How many times faster than the baseline of a dtype at the same length."""
    for other in results:
        if (other.contender, other.dtype, other.seconds) == (BASELINE, dtype, result.seconds):
            return other.median / result.median if other.median and result.median else None
    return None


def _cell(value: float | None, form: str) -> str:
    width = int(form.split(".")[0])
    return f"{'-':>{width}}" if value is None or value is False else f"{value:{form}}"


def publish(results: list[Result], about: dict, peaks: dict[str, float], path: Path | None):
    """Print the table and then the record as one line; keep the record in a file too."""
    found = record(results, about, peaks)
    print(table(results, peaks), flush=True)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found), flush=True)


def markdown(records: Iterable[dict]) -> str:
    """Records as the README's table: a line for each length and dtype, seconds and how many times
    faster than the baseline in float32, in the same run. Later records replace cells of earlier
    ones.
    """
    cells: dict[tuple, str] = {}
    names: dict[str, None] = {}
    for found in records:
        known = Result.__dataclass_fields__
        results = [Result(**{k: v for k, v in r.items() if k in known}) for r in found["results"]]
        for r in results:
            speed = _speed(results, r, "float32")
            names[r.contender] = None
            if r.median and speed:
                cells[r.seconds, r.dtype, r.contender] = f"{r.median:.2f} s, {speed:.2f}x"
    lines = [f"| clip | dtype | {' | '.join(names)} |", "|---:|---|" + "---:|" * len(names)]
    for seconds, dtype in sorted({key[:2] for key in cells}, key=lambda k: (k[0], k[1] < "f")):
        row = (cells.get((seconds, dtype, name), "-") for name in names)
        lines.append(f"| {seconds:g} s | {dtype} | {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(json.loads(Path(name).read_text()) for name in sys.argv[1:]))
