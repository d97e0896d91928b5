"""scripts/benchmark/parallel.py: how long a run of AsyncDiff takes, in whole evaluations."""

from audiolitefocus.parallel.settings import AsyncDiff
from scripts.benchmark.parallel import evaluations


def test_a_run_is_its_whole_steps_and_the_largest_part_of_the_others():
    assert evaluations(AsyncDiff(2, warmup=6, last=2), 25, 0.5) == 8 + 17 * 0.5
    assert evaluations(AsyncDiff(2, warmup=6, last=2, stride=2), 25, 0.5) == 8 + 9 * 0.5
    assert evaluations(AsyncDiff(4, warmup=20, last=5), 25, 0.25) == 25
