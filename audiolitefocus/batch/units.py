"""Units: what the workers of a Ray cluster are given at a time, a few batches each.

When a worker dies, Ray starts another one and gives it the same unit again; what the first had
finished is found finished. A clip at which workers die again and again would keep that up forever,
and therefore the tally counts attempts.
"""

import pickle
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from audiolitefocus.batch.ledger import Ledger, Numbered
from audiolitefocus.options import GenerationOptions

OPEN_BATCHES = 256  # of different options, that are kept waiting for clips that fit
POLL_SECONDS = 0.1  # how often a reader that is ahead looks again

Batch = list[Numbered]


@dataclass
class Tally:
    """An actor that counts what has begun, and keeps why a worker could not start."""

    units: int = 0
    attempts: Counter = field(default_factory=Counter)
    fault: str | None = None

    def begin_unit(self) -> None:
        self.units += 1

    def begun(self) -> int:
        return self.units

    def attempt(self, *numbers: int) -> int:
        """Count another attempt at clips that are made together, and return how many there were."""
        self.attempts[numbers] += 1
        return self.attempts[numbers]

    def forget(self, keys: list[tuple[int, ...]]) -> None:
        for numbers in keys:
            self.attempts.pop(numbers, None)

    def refuse(self, reason: str) -> None:
        self.fault = self.fault or reason

    def refused(self) -> str | None:
        return self.fault


def batches(clips: Iterable[Numbered], size: int) -> Iterator[Batch]:
    """The batches of `run.group`, as soon as each is full; the rest at the end.

    Of more different options than `OPEN_BATCHES`, the batch that has waited longest is not filled.
    """
    waiting: dict[GenerationOptions, Batch] = {}
    for number, clip in clips:
        options = replace(clip.options, seed=None)
        batch = waiting.setdefault(options, [])
        batch.append((number, clip))
        if len(batch) == size or options.unconditional == "empty_prompt":
            yield waiting.pop(options)
        elif len(waiting) > OPEN_BATCHES:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def read_units(
    rows: Any, ledger: str, batch_size: int, unit: int, ahead: int, tally: Any
) -> Iterator[Any]:
    """Rows of units for the workers, at most so many `ahead` of those that have begun.

    Ray Data has no such limit for small rows, and would keep all of them in the driver's memory.
    The same ledger gives the same rows again, should this process die.
    """
    plan = Ledger(Path(ledger))
    waiting: list[Batch] = []
    sent = 0
    for batch in batches(plan.missing(), batch_size):
        waiting.append(batch)
        if len(waiting) == unit:
            while sent - ray.get(tally.begun.remote()) >= ahead:
                time.sleep(POLL_SECONDS)
            yield to_rows(waiting)
            waiting, sent = [], sent + 1
    if waiting:
        yield to_rows(waiting)
    plan.close()


def to_rows(content: object) -> pa.Table:
    """One row that carries an object."""
    return pa.table({"pickled": pa.array([pickle.dumps(content)], pa.binary())})


def unpack(rows: pa.Table) -> Iterator[Any]:
    """The objects in rows."""
    return map(pickle.loads, rows["pickled"].to_pylist())
