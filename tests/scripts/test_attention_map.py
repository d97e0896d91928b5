"""What scripts/attention_map.py measures, on weights written out, and that it runs."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("matplotlib")

from scripts.plots import attention_map

ROOT = Path(__file__).resolve().parents[2]

FLOAT32 = 1e-6  # averages of softmax weights, summed in another order


@pytest.mark.parametrize("elements", [1, 1000, 2**24])
def test_shares_and_map_of_all_weights(monkeypatch, elements):
    monkeypatch.setattr(attention_map, "ELEMENTS", elements)
    monkeypatch.setattr(attention_map, "BINS", 5)
    b, f, t, h, d = 2, 4, 12, 3, 8
    q, k = torch.randn(2, b, f, t, h, d, generator=torch.Generator().manual_seed(0))
    seen, own = attention_map.attention_by_row(q, k)

    scores = torch.einsum("bfthd,bgshd->bhftgs", q, k) * d**-0.5
    weights = scores.flatten(4).softmax(-1).view_as(scores).mean((0, 1))  # f t g s
    in_row = sum(weights[i, :, i].sum(-1).mean() for i in range(f)) / f
    assert_close(own, float(in_row), rtol=0, atol=FLOAT32)

    bins = torch.arange(t) * 5 // t
    corner = weights[1, bins == 2][:, 3, bins == 4]  # queries of row 1, keys of row 3
    assert_close(seen[1 * 5 + 2, 3 * 5 + 4], corner.mean() * f * t, rtol=0, atol=FLOAT32 * f * t)


def test_even_attention_is_one_everywhere():
    q, k = torch.zeros(2, 1, 2, 100, 1, 4)
    seen, own = attention_map.attention_by_row(q, k)
    assert_close(seen, torch.ones_like(seen))
    assert own == pytest.approx(0.5)


def test_the_demo_model(tmp_path):
    command = [sys.executable, "-m", "scripts.plots.attention_map", "rain", "--device", "cpu"]
    command += ["--seconds", "0.64", "--steps", "2", "--look", "1", "--output", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert (tmp_path / "attention.png").stat().st_size > 0
    rows = list(csv.DictReader((tmp_path / "row_share.csv").open()))
    assert {row["step"] for row in rows} == {"1"}
    assert len({row["block"] for row in rows}) == len(rows)
    assert all(0 < float(row["share"]) <= 1 for row in rows)
