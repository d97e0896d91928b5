"""What runs in the processes of a Ray cluster: a reader of the plan, workers, and a tally of both.

A unit is what a worker is given at a time: a few batches. When a worker dies, Ray starts another
one and gives it the same unit again; what the first had finished is found finished. A clip at which
workers die again and again would keep that up forever, and therefore the tally counts attempts.
"""

import os
import pickle
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import torch

from audiolitefocus.batch.clips import is_missing
from audiolitefocus.batch.ledger import Ledger, Numbered
from audiolitefocus.batch.requests import ClipRequest
from audiolitefocus.batch.run import BatchRun, describe_made, reason_of
from audiolitefocus.batch.stores import Store
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.config import BundleConfig
from audiolitefocus.options import GenerationOptions
from audiolitefocus.output import AudioOutput
from audiolitefocus.pipeline import AudioLDM2Pipeline

ATTEMPTS = 3  # at a clip, before it is given up because the worker died each time
OPEN_BATCHES = 256  # of different options, that are kept waiting for clips that fit
POLL_SECONDS = 0.1  # how often a reader that is ahead looks again

Batch = list[Numbered]


@dataclass(frozen=True)
class Job:
    """What all workers of a run are told.

    Attributes:
        loading: keyword arguments of `AudioLDM2Pipeline.from_pretrained`, the model among them.
        config: of the model as the driver has it.
        store: where clips go, and `mark`, a file that is there as long as the run.
        folder: that relative names of files count from.
        threads: of one worker on the CPU.
    """

    loading: dict[str, Any]
    config: BundleConfig
    store: Store
    mark: str
    folder: str
    threads: int
    force: bool = False


class Result(NamedTuple):
    """What became of a clip: `said` is the line to print of it, or why it was not made."""

    number: int
    failed: bool
    said: str


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
            yield _row(waiting)
            waiting, sent = [], sent + 1
    if waiting:
        yield _row(waiting)
    plan.close()


def _row(content: object) -> pa.Table:
    return pa.table({"pickled": pa.array([pickle.dumps(content)], pa.binary())})


def unpack(rows: pa.Table) -> Iterator[Any]:
    """The contents of rows."""
    return map(pickle.loads, rows["pickled"].to_pylist())


class ClipWorker:
    """An actor that holds a pipeline and makes the clips of units."""

    def __init__(self, job: Job, tally):
        self.job, self.tally = job, tally
        try:
            self.start()
        except Exception as error:
            reason = f"on {socket.gethostname()}: {reason_of(error)}"
            ray.get(tally.refuse.remote(reason))
            raise

    def start(self) -> None:
        """Check that this machine sees what the driver sees, and load the model."""
        if os.path.isdir(self.job.folder):
            os.chdir(self.job.folder)
        if not self.job.store.has(self.job.mark):
            raise ValueError(
                f"{self.job.store} is not the same place as on the machine of the command: give a "
                f"folder that all machines share, or an object store such as s3://BUCKET/PREFIX"
            )
        self.digest = lru_cache(1024)(sha256)
        self.load()

    def load(self) -> None:
        torch.set_num_threads(self.job.threads)
        self.pipe = AudioLDM2Pipeline.from_pretrained(**self.job.loading)
        if self.pipe.config.files != self.job.config.files:
            raise ValueError(f"the weights of {self.pipe.config.name} differ between machines")

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for unit in unpack(rows):
            ray.get(self.tally.begin_unit.remote())
            yield _row([result for batch in unit for result in self.attempt(batch)])
            numbers = [tuple(number for number, _ in batch) for batch in unit]
            self.tally.forget.remote(numbers + [(n,) for batch in numbers for n in batch])

    def attempt(self, batch: Batch) -> list[Result]:
        """Results of a batch: made at once, and one by one if a worker has died at it."""
        numbers = [number for number, _ in batch]
        if len(batch) > 1 and ray.get(self.tally.attempt.remote(*numbers)) == 1:
            return self.make(batch)
        results = []
        for number, clip in batch:
            if ray.get(self.tally.attempt.remote(number)) > ATTEMPTS:
                reason = f"{ATTEMPTS} workers died at it"
                results.append(Result(number, True, self.failure(clip, reason)))
            else:
                results += self.make([(number, clip)])
        return results

    def make(self, batch: Batch) -> list[Result]:
        """Make clips that are still missing, and put them in their place."""
        store = self.job.store
        try:
            with store.on_disk([clip for _, clip in batch]) as local:
                said, failed = self.make_files(local)
        except Exception as error:  # of the place: whatever its file system raises
            return [Result(number, True, self.failure(clip, error)) for number, clip in batch]
        here = str(local[0].path.parent)
        return [
            Result(number, True, f"{store.shown(path)}: {failed[path].replace(here, str(store))}")
            if path in failed
            else Result(number, False, f"{store.shown(path)} {said.get(path, '')}".strip())
            for number, path in ((n, clip.path) for (n, _), clip in zip(batch, local, strict=True))
        ]

    def make_files(self, clips: list[ClipRequest]) -> tuple[dict[Path, str], dict[Path, str]]:
        """Make clips as files, and publish each: what is said of those made, why others failed."""
        said: dict[Path, str] = {}
        failed: dict[Path, str] = {}
        # 1. What is in the way by now, though it was not when the run was planned
        missing = []
        for clip in clips:
            try:
                self.check_recording(clip)
                if is_missing(self.pipe.config, clip, force=self.job.force):
                    missing.append(clip)
            except (ValueError, OSError) as error:
                failed[clip.path] = reason_of(error)

        # 2. The rest
        def publish(clip: ClipRequest, output: AudioOutput) -> None:
            try:
                self.job.store.publish(clip.path)
                said[clip.path] = describe_made(clip, output)
            except Exception as error:  # of the place again
                failed[clip.path] = reason_of(error)

        run = BatchRun(self.pipe, missing, batch_size=len(clips), force=self.job.force)
        report = run.run(on_clip=publish)
        return said, failed | {Path(path): reason for path, reason in report.failed.items()}

    def failure(self, clip: ClipRequest, reason: Exception | str) -> str:
        text = reason if isinstance(reason, str) else reason_of(reason)
        return f"{self.job.store.shown(clip.path)}: {text}"

    def check_recording(self, clip: ClipRequest) -> None:
        """Raise ValueError unless the recording is the one that the clip was planned with."""
        if clip.recording_sha256 is None:
            return
        path = Path(str(clip.options.recording))
        if not path.is_file() or self.digest(path) != clip.recording_sha256:
            raise ValueError(
                f"{path} on {socket.gethostname()} is not the file that it is where the command "
                f"runs: put recordings into a folder that all machines share"
            )
