"""scripts/benchmark/parallel.py: predictions follow from what is counted."""

import pytest
import torch

from audiolitefocus.parallel.settings import AsyncDiff
from scripts.benchmark.parallel import LINKS, Model, evaluations, table
from tests.support.denoising import CONFIG


def test_a_run_is_its_whole_steps_and_the_largest_part_of_the_others():
    assert evaluations(AsyncDiff(2, warmup=6, last=2), 25, 0.5) == 8 + 17 * 0.5
    assert evaluations(AsyncDiff(2, warmup=6, last=2, stride=2), 25, 0.5) == 8 + 9 * 0.5
    assert evaluations(AsyncDiff(4, warmup=20, last=5), 25, 0.25) == 25


def test_predictions_are_between_a_loss_and_the_number_of_devices():
    found = list(Model(CONFIG, 2.56, throughput=1e12, launch=1e-9).predictions())
    for prediction in found:
        assert 1 / prediction.devices < prediction.busiest <= 1 or prediction.devices > 4
        for link in LINKS:
            limit = 2 * prediction.devices  # stride 2 runs parts once for two steps
            assert 0 < prediction.speed[link] <= prediction.free[link] * (1 + 1e-9) <= limit
    assert len(table(found).splitlines()) == 2 + len(found)
    slower = list(Model(CONFIG, 2.56, throughput=1e12, launch=1e-3).predictions())
    assert slower[0].speed["NVLink"] == pytest.approx(0.5, rel=0.1)  # guidance launches twice
    assert torch.tensor([p.sent for p in found]).min() > 0
