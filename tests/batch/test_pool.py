"""How many workers a cluster has room for."""

import pytest

from audiolitefocus.batch.pool import Pool, plan_pool

GPUS = [{"CPU": 32, "GPU": 8}, {"CPU": 32, "GPU": 8}, {"CPU": 4}]
CPUS = [{"CPU": 10}, {"CPU": 6}, {"memory": 1e9}]


@pytest.mark.parametrize(
    "nodes, device, workers, expected",
    [
        (GPUS, "auto", None, Pool(16, cpus=1, gpus=1)),
        (GPUS, "cuda", 3, Pool(3, cpus=1, gpus=1)),
        (GPUS, "cpu", None, Pool(17, cpus=4, gpus=0)),
        (CPUS, "auto", None, Pool(3, cpus=4, gpus=0)),
        ([{"CPU": 2}], "auto", None, Pool(1, cpus=2, gpus=0)),
        ([{"CPU": 2}], "cpu", 2, Pool(2, cpus=1, gpus=0)),
        (CPUS, "cpu", 2, Pool(2, cpus=6, gpus=0)),
        (CPUS, "cpu", 5, Pool(5, cpus=3, gpus=0)),
        (CPUS, "cpu", 16, Pool(16, cpus=1, gpus=0)),
    ],
)
def test_workers_share_what_there_is(nodes, device, workers, expected):
    pool = plan_pool(nodes, device, workers)
    assert pool == expected
    if not pool.gpus:  # they find room
        assert sum(int(node.get("CPU", 0)) // pool.cpus for node in nodes) >= pool.workers


@pytest.mark.parametrize(
    "nodes, device, workers, message",
    [
        (CPUS, "cuda", None, "has no GPU"),
        (GPUS, "auto", 17, "workers 17: the Ray cluster has 16 GPUs"),
        (CPUS, "cpu", 17, "workers 17: the Ray cluster has 16 CPUs"),
        ([], "cpu", None, "has 0 CPUs"),
    ],
)
def test_more_than_there_is_is_refused(nodes, device, workers, message):
    with pytest.raises(ValueError, match=message):
        plan_pool(nodes, device, workers)


def test_units_grow_with_the_clips_until_each_worker_has_many():
    assert [Pool(2, 1, 0).unit(n) for n in (1, 200, 1280, 10**6)] == [1, 1, 10, 32]
