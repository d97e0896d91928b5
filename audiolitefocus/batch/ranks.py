"""The processes that share one job: who takes which part of it, who is still alive, and how each
has ended.

Started by torchrun, they meet in torch.distributed's store, which hands out numbers atomically. No
collective operation is used, so that a process that dies takes nobody with it: the others share
what it has not begun. One process alone uses the same code and a store of its own.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

BEAT = 2.0  # seconds between two signs of life
PATIENCE = 30.0  # seconds without one after which a process counts as lost
JOINING = timedelta(minutes=5)  # for all processes to appear; also of one request to the store


class Ranks:
    """Where this process stands among those of its job.

    Args:
        store: of torch.distributed, the same for all.
        rank, world: this process, of how many.
        patience: seconds of silence after which another is given up.
    """

    def __init__(self, store: dist.Store, rank: int = 0, world: int = 1, patience=PATIENCE):
        self.store, self.rank, self.world, self.patience = store, rank, world, patience
        self._heard: dict[int, tuple[int, float]] = {}  # count of signs of life, and since when
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)
        if world > 1:
            self._beats.start()

    @classmethod
    def join(cls) -> "Ranks":
        """Those of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, which torchrun sets; else this
        process alone.

        Raises:
            OSError: the others have not appeared.
        """
        if os.environ.get("WORLD_SIZE", "1") == "1":
            return cls(dist.HashStore())
        with _reachable():
            return cls(*next(iter(dist.rendezvous("env://", timeout=JOINING))))

    @property
    def first(self) -> bool:
        """Whether this is the one that plans and reports."""
        return self.rank == 0

    def device(self, device: str) -> str:
        """The device of this process: every one of a machine has a CUDA device of its own."""
        import torch

        if self.world > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{os.environ.get('LOCAL_RANK', self.rank)}"
        return device

    def agree(self, choose: Callable[[], list[int]]) -> list[int]:
        """What rank 0 chooses, for all. Raises OSError if it is lost meanwhile."""
        with _reachable():
            if self.first:
                chosen = choose()
                self.store.set("chosen", json.dumps(chosen))
                return chosen
            while not self.store.check(["chosen"]):
                if self._lost(0):
                    raise OSError("the first process of this job has stopped; run it again")
                time.sleep(0.05)
            return json.loads(self.store.get("chosen"))

    def take(self) -> int:
        """The next number: 0, 1, 2, ... Each goes to one process only."""
        with _reachable():
            return self.store.add("next", 1) - 1

    def advance(self, count: int) -> int:
        """Add to the progress that all processes have made together; its sum."""
        with _reachable():
            return self.store.add("progress", count)

    def gather(self, report: dict, on_wait: Callable[[], object] = lambda: None) -> list[dict]:
        """Hand in a report. Rank 0 waits for the others' and returns all that come: who falls
        silent is not waited for. The others return at once, with their own.
        """
        reports = [report]
        with _reachable():
            self.store.set(f"report {self.rank}", json.dumps(report))
            waiting = list(range(1, self.world)) if self.first else []
            while waiting:
                handed_in = [rank for rank in waiting if self.store.check([f"report {rank}"])]
                reports += [json.loads(self.store.get(f"report {rank}")) for rank in handed_in]
                waiting = [r for r in waiting if r not in handed_in and not self._lost(r)]
                on_wait()
                time.sleep(0.05)
        self._ended.set()
        if self._beats.is_alive():
            self._beats.join()
        return reports

    def _lost(self, rank: int) -> bool:
        """Whether a process has been silent for too long."""
        count, now = self.store.add(f"alive {rank}", 0), time.monotonic()
        if self._heard.get(rank, (-1, now))[0] != count:
            self._heard[rank] = count, now
        return now - self._heard[rank][1] > self.patience

    def _beat(self) -> None:
        while not self._ended.wait(min(BEAT, self.patience / 4)):
            try:
                self.store.add(f"alive {self.rank}", 1)
            except RuntimeError:  # whoever asks next will say so
                return


@contextmanager
def _reachable() -> Iterator[None]:
    """Failures of the store as an OSError in one line."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise OSError(
            f"the other processes of this job cannot be reached ({reason}); finished clips are "
            f"kept: run it again"
        ) from None
