"""Files of prompts on a Ray cluster: planned on disk, made by an actor pool of Ray Data."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import ray
import ray.data
import ray.exceptions
from ray.data import ActorPoolStrategy, Dataset

from audiolitefocus.batch.clips import is_missing
from audiolitefocus.batch.cluster import connected, explained, set_up
from audiolitefocus.batch.ledger import Ledger, Numbered
from audiolitefocus.batch.pool import Pool, plan_pool
from audiolitefocus.batch.prompts import plan_prompts
from audiolitefocus.batch.stores import new_mark, open_store
from audiolitefocus.batch.units import Tally, read_units, unpack
from audiolitefocus.batch.workers import ClipWorker, Job, Result
from audiolitefocus.checkpoints.bundle import load_config
from audiolitefocus.checkpoints.resolve import resolve_bundle
from audiolitefocus.options import GenerationOptions
from audiolitefocus.validation import check_choice, check_number

LOOKING = 16  # threads that look for clips that are there
DEVICES = ("auto", "cuda", "cpu", "mps")


class Totals(NamedTuple):
    """How many clips were made, found finished, and failed: all of the file's together."""

    made: int
    kept: int
    failed: int


class RayRun:
    """Clips of a file of prompts, to be made on a Ray cluster. Close it, or use it in `with`.

    The clips are those of `read_prompts` and `BatchRun`: the same names, seeds, files and rules of
    what may be replaced. All that grows with their number lies in a temporary file.

    Args:
        prompts: file of prompts.
        out: folder that all machines share, or a URL as `stores.Elsewhere` takes.
        options: of clips whose line does not say otherwise.
        model, dtype, device, offload: as for `AudioLDM2Pipeline.from_pretrained`, on every machine.
        batch_size, bits, force: as for `BatchRun` and `read_prompts`.

    Raises:
        ValueError, OSError: whatever can be wrong with prompts, model or files that are in the way;
            found before any clip is made.

    Attributes:
        total, missing: how many clips there are, and are to be made.
    """

    def __init__(
        self,
        prompts: str | os.PathLike[str],
        out: str | os.PathLike[str],
        options: GenerationOptions | None = None,
        *,
        model: str = "audioldm2",
        dtype: str = "auto",
        device: str = "auto",
        offload: bool = False,
        batch_size: int = 1,
        bits: int | None = None,
        force: bool = False,
    ):
        check_number("batch_size", batch_size, 1, 10000)
        check_choice("device", device, DEVICES)
        self.store, self.batch_size, self.force = open_store(out), batch_size, force
        self.loading = {"model": model, "dtype": dtype, "offload": offload}
        self.device = device
        self.folder = TemporaryDirectory(prefix="audiolitefocus-", ignore_cleanup_errors=True)
        try:
            # 1. Prompts
            self.path = Path(self.folder.name) / "ledger"
            self.ledger = Ledger(self.path)
            target = getattr(self.store, "folder", Path(self.folder.name) / "clips")
            chosen, notes = options or GenerationOptions(), self.ledger.notes()
            clips = plan_prompts(Path(prompts), target, chosen, notes, bits=bits)
            self.total = self.ledger.plan(clips)
            # 2. The model
            self.config = load_config(resolve_bundle(model))
            # 3. What is there
            self.store.create()
            self._keep_what_is_there()
            self.missing = self.total - self.ledger.kept
        except BaseException:
            self.folder.cleanup()
            raise

    def __enter__(self) -> "RayRun":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Delete the plan and the results."""
        self.ledger.close()
        self.folder.cleanup()

    def _keep_what_is_there(self) -> None:
        """Find clips that are finished. Raises ValueError for a file that is in the way."""
        clips = self.ledger.missing()
        with ThreadPoolExecutor(LOOKING) as threads:
            while some := list(islice(clips, 8 * LOOKING)):
                absent = threads.map(self._is_missing, some)
                for (number, _), missing in zip(some, absent, strict=True):
                    if not missing:
                        self.ledger.keep(number)

    def _is_missing(self, numbered: Numbered) -> bool:
        with self.store.on_disk([numbered[1]]) as (clip,):
            try:
                return is_missing(self.config, clip, force=self.force)
            except ValueError as error:
                here = str(clip.path.parent)
                raise ValueError(str(error).replace(here, str(self.store))) from None

    def run(
        self,
        address: str = "local",
        *,
        workers: int | None = None,
        worker: type[ClipWorker] = ClipWorker,
        on_clip: Callable[[Result], object] = lambda result: None,
    ) -> Totals:
        """Make what is missing; a clip that fails does not stop the others.

        Args:
            address: "local" starts Ray on this machine, "auto" finds the cluster that runs here,
                HOST:PORT is that of a head node. A Ray that this process is connected to is used
                whatever the address says.
            workers: default: one for each GPU, or for every `pool.THREADS` CPUs.
            worker: the class of the actors.
            on_clip: called with each result, in the order in which they come.

        Raises:
            ValueError, OSError: no cluster there, or no room in it; a machine that cannot load the
                model or does not see the folder; a fault of the cluster. Clips that are finished
                stay, and another run makes the others.
        """
        if workers is not None:
            check_number("workers", workers, 1, 100_000)
        if self.missing:
            with connected(address):
                nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
                pool = plan_pool(nodes, self.device, workers)
                mark = new_mark()
                self.store.mark(mark)
                try:
                    for result in self._results(pool, worker, mark):
                        if self.ledger.finish(
                            result.number, result.said if result.failed else None
                        ):
                            on_clip(result)
                finally:
                    self.store.unmark(mark)
        return Totals(self.ledger.made, self.ledger.kept, self.ledger.failed)

    def failures(self) -> Iterator[str]:
        """A line for each clip that was not made in `run`, with the reason."""
        return self.ledger.failures()

    def _results(self, pool: Pool, worker: type[ClipWorker], mark: str) -> Iterator[Result]:
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        tally = ray.remote(Tally).options(num_cpus=0, label_selector=here).remote()
        units = self._units(pool, tally, here)
        results = units.map_batches(
            worker,
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=pool.workers),
            fn_constructor_args=(self._job(pool, mark), tally),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
        set_up(results)
        try:
            for rows in results.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                for unit in unpack(rows):
                    yield from unit
        except (ray.exceptions.RayError, RuntimeError) as error:
            raise explained(error, tally) from None

    def _units(self, pool: Pool, tally: Any, here: dict[str, str]) -> Dataset:
        """The plan as a stream of rows, which a task beside the ledger reads."""
        return ray.data.from_items([0]).map_batches(
            read_units,  # type: ignore[arg-type]  # with arguments of its own
            batch_size=1,
            batch_format="pyarrow",
            fn_kwargs={
                "ledger": str(self.path),
                "batch_size": self.batch_size,
                "unit": pool.unit(self.missing // self.batch_size),
                "ahead": 4 * pool.workers,
                "tally": tally,
            },
            num_cpus=0,  # it waits most of the time, and workers may reserve all that there are
            label_selector=here,
        )

    def _job(self, pool: Pool, mark: str) -> Job:
        device = "cuda" if pool.gpus else self.device
        return Job(
            {**self.loading, "device": device},
            self.config,
            self.store,
            mark,
            os.getcwd(),
            pool.cpus,
            self.force,
        )
