"""One thread that owns the pipeline, and a bounded queue of what it is asked for.

Requests that differ in prompt and seed alone are made as one batch; a clip does not depend on its
batch, up to rounding.
"""

import math
import threading
import time
from collections import deque
from dataclasses import replace

from torch import Tensor

from audiolitefocus.batch.clips import make_together
from audiolitefocus.diffusion.distilled import options_for
from audiolitefocus.options import GenerationOptions
from audiolitefocus.output import AudioOutput
from audiolitefocus.pipeline import AudioLDM2Pipeline

REMEMBERED = 0.7  # weight of what batches took so far against the last one


class Cancelled(Exception):
    """Nobody waits for this any more."""


class Full(Exception):
    """The queue is full; try again in `seconds`."""

    def __init__(self, seconds: int):
        self.seconds = seconds
        super().__init__(f"the queue is full; try again in {seconds} s")


class Closed(Exception):
    """The worker ends."""

    def __init__(self):
        super().__init__("the server is shutting down")


class Job:
    """A clip to make. Its methods are called in the worker's thread; they should not block.

    Args:
        options: with a seed.
        seconds: of sound, all candidates together.
    """

    def __init__(self, prompt: str, options: GenerationOptions, seconds: float):
        assert options.seed is not None
        self.prompt, self.options, self.seconds = prompt, options, seconds
        self.seed: int = options.seed
        self.cancelled = False

    def on_step(self, done: int, total: int, latents: Tensor) -> None:
        """After each denoising step, with the latents of the whole batch."""

    def on_tile(self, done: int, total: int) -> None:
        """After each tile of a long clip that is decoded."""

    def on_made(self, output: AudioOutput) -> None:
        """Once the latents are there: blocks to decode, or candidates. Nothing else follows."""

    def on_error(self, error: Exception) -> None:
        """In place of `on_made`, or when it fails."""

    @property
    def alike(self) -> GenerationOptions | None:
        """Equal for jobs that can share a batch; None: alone."""
        # texts of "empty_prompt" are padded together, so that a clip would depend on its batch
        if self.options.recording is not None or self.options.unconditional == "empty_prompt":
            return None
        return replace(self.options, seed=None)


class Worker:
    """Makes jobs, in the order in which they came, with those alike that wait behind the first.

    Args:
        waiting: jobs in the queue, at most.
        batch: jobs made together, at most.
        seconds: of sound in a batch of several.
    """

    def __init__(self, pipe: AudioLDM2Pipeline, *, waiting: int, batch: int, seconds: float):
        self.pipe, self.most_waiting, self.batch, self.seconds = pipe, waiting, batch, seconds
        self.device = threading.Lock()  # held while something is made
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._running: list[Job] = []
        self._closed = False
        self._pace = 1.0  # seconds a batch
        self._thread = threading.Thread(target=self._run, name="pipeline", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def running(self) -> int:
        return len(self._running)

    def submit(self, job: Job) -> None:
        """Queue a job. Raises Full or Closed."""
        with self._changed:
            self.check_room()
            self._queue.append(job)
            self._changed.notify()

    def check_room(self) -> None:
        """Raise Full or Closed if a job could not be queued now."""
        if self._closed:
            raise Closed
        if len(self._queue) >= self.most_waiting:
            raise Full(max(1, math.ceil(self._pace)))

    def cancel(self, job: Job) -> None:
        """Forget a job: at once if it waits, at the next step if nobody else is in its batch."""
        with self._changed:
            job.cancelled = True
            if job in self._queue:
                self._queue.remove(job)

    def before(self, job: Job) -> int | None:
        """How many are made before this one, if it waits."""
        with self._changed:
            if job not in self._queue:
                return None
            return self._queue.index(job) + bool(self._running)

    def close(self) -> None:
        """Fail what waits, stop what runs, and end the thread."""
        with self._changed:
            self._closed = True
            left = list(self._queue)
            self._queue.clear()
            self._changed.notify()
        for job in left:
            job.on_error(Closed())
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            start = time.monotonic()
            with self.device:
                self._make(batch)
            took = time.monotonic() - start
            self._pace = REMEMBERED * self._pace + (1 - REMEMBERED) * took

    def _next(self) -> list[Job]:
        """The first job, and those alike behind it; empty when the worker is closed."""
        with self._changed:
            self._running = []
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._closed:
                return []
            first = self._queue.popleft()
            batch, seconds = [first], first.seconds
            for job in list(self._queue) if first.alike else []:
                if len(batch) < self.batch and job.alike == first.alike:
                    if (seconds := seconds + job.seconds) > self.seconds:
                        break
                    batch.append(job)
                    self._queue.remove(job)
            self._running = batch
        return batch

    def _make(self, batch: list[Job]) -> None:
        try:
            outputs = self._make_together(batch)
        except Cancelled:
            for job in batch:
                job.on_error(Closed() if self._closed else Cancelled())
            return
        except Exception as error:
            if len(batch) == 1:
                batch[0].on_error(error)
            for job in batch if len(batch) > 1 else []:  # so that only those fail that must
                self._make([job])
            return
        for job, output in zip(batch, outputs, strict=True):
            try:
                self._check_wanted([job])
                job.on_made(output)
            except Exception as error:
                job.on_error(Closed() if self._closed else error)

    def _make_together(self, batch: list[Job]) -> list[AudioOutput]:
        options = options_for(self.pipe.config, batch[0].options)
        steps = 0

        def on_step(step: int, timestep: int, latents: Tensor) -> None:
            nonlocal steps
            self._check_wanted(batch)
            steps = step + 1
            for job in batch:
                job.on_step(steps, options.steps_taken, latents)

        def on_tile(done: int, total: int) -> None:
            self._check_wanted(batch)
            for job in batch:
                job.on_tile(done, total)

        self._check_wanted(batch)
        prompts, seeds = [job.prompt for job in batch], [job.seed for job in batch]
        return make_together(self.pipe, prompts, seeds, options, on_step, on_tile)

    def _check_wanted(self, batch: list[Job]) -> None:
        """Raise Cancelled if nobody waits for any of these jobs, or the worker is closed."""
        if self._closed or all(job.cancelled for job in batch):
            raise Cancelled
