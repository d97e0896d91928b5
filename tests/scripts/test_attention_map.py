"""The script draws and writes what it sees."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parents[2]


def test_the_demo_model(tmp_path):
    command = [sys.executable, "-m", "scripts.plots.attention_map", "rain", "--device", "cpu"]
    command += ["--seconds", "0.64", "--steps", "2", "--look", "1", "--output", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert (tmp_path / "attention.png").stat().st_size > 0
    rows = list(csv.DictReader((tmp_path / "row_share.csv").open()))
    assert {row["step"] for row in rows} == {"1"}
    assert len({row["block"] for row in rows}) == len(rows)
    assert all(0 < float(row["share"]) <= 1 for row in rows)
