"""How many workers a cluster has room for, and what each of them takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

THREADS = 4  # of a worker on CPUs: more workers make more clips than more threads do
UNITS_PER_WORKER = 64  # at least, so that all end at about the same time
LARGEST_UNIT = 32  # batches: Ray takes some milliseconds for each unit

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Pool:
    """Workers, and the CPUs and GPUs that each reserves; it runs as many threads as CPUs."""

    workers: int
    cpus: int
    gpus: int

    def unit(self, batches: int) -> int:
        """Batches that a worker is given at a time."""
        return max(1, min(LARGEST_UNIT, batches // (UNITS_PER_WORKER * self.workers)))


def plan_pool(nodes: Sequence[Resources], device: str, workers: int | None = None) -> Pool:
    """A worker for each GPU, or on clusters without any, and with "cpu", for a few CPUs each.

    Args:
        nodes: resources of the cluster's machines, by Ray's names.
        device: "auto", "cuda", "cpu" or "mps".
        workers: how many instead; on CPUs they share those that there are.

    Raises:
        ValueError: no GPU for "cuda", or fewer than workers; fewer CPUs than workers.
    """
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if device == "cuda" and not gpus:
        raise ValueError("device cuda: the Ray cluster has no GPU; give --device cpu")
    if gpus and device in ("auto", "cuda"):
        if (workers or 1) > gpus:
            raise ValueError(f"workers {workers}: the Ray cluster has {gpus} GPUs, one for each")
        return Pool(workers or gpus, cpus=1, gpus=1)
    cpus = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    if (workers or 1) > sum(cpus):
        raise ValueError(f"workers {workers or 1}: the Ray cluster has {sum(cpus)} CPUs")
    if workers is None:
        threads = min(THREADS, *cpus, THREADS)
    else:  # the most threads with which all of them find room
        fits = [t for t in range(1, max(cpus) + 1) if sum(c // t for c in cpus) >= workers]
        threads = min(fits[-1], max(THREADS, sum(cpus) // workers))
    return Pool(workers or sum(c // threads for c in cpus), cpus=threads, gpus=0)
