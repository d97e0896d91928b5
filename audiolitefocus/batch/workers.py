"""The actors of a Ray cluster: each holds a pipeline and makes the clips of units."""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import torch

from audiolitefocus.batch.clips import is_missing
from audiolitefocus.batch.requests import ClipRequest
from audiolitefocus.batch.run import BatchRun, describe_made, reason_of
from audiolitefocus.batch.stores import Store
from audiolitefocus.batch.units import Batch, to_rows, unpack
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.config import BundleConfig
from audiolitefocus.output import AudioOutput
from audiolitefocus.pipeline import AudioLDM2Pipeline

RECENT_RECORDINGS = 1024  # of whose files the digests are kept


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


class ClipWorker:
    """An actor that holds a pipeline and makes the clips of units.

    Attributes:
        attempts: at a clip, before it is given up because the worker died each time.
    """

    attempts = 5

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
        self.digest = lru_cache(RECENT_RECORDINGS)(sha256)
        self.load()

    def load(self) -> None:
        torch.set_num_threads(self.job.threads)
        self.pipe = AudioLDM2Pipeline.from_pretrained(**self.job.loading)
        if self.pipe.config.files != self.job.config.files:
            raise ValueError(f"the weights of {self.pipe.config.name} differ between machines")
        _ = self.pipe.text  # the text towers now, and not with the first clip

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for unit in unpack(rows):
            ray.get(self.tally.begin_unit.remote())
            yield to_rows([result for batch in unit for result in self.attempt(batch)])
            self.tally.forget.remote([tuple(number for number, _ in batch) for batch in unit])

    def attempt(self, batch: Batch) -> list[Result]:
        """Results of a batch: made at once, and one by one if a worker has died at it."""
        numbers = [number for number, _ in batch]
        if len(batch) > 1 and ray.get(self.tally.attempt.remote(*numbers)) == 1:
            return self.make(batch)
        results = []
        for number, clip in batch:
            if ray.get(self.tally.attempt.remote(number)) > self.attempts:
                reason = f"{self.attempts} workers died at it"
                results.append(Result(number, True, self.failure(clip, reason)))
            else:
                results += self.make([(number, clip)])
                ray.get(self.tally.forget.remote([(number,)]))  # at the next one it may die
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
