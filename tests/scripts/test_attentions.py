"""scripts/evaluate/attentions.py: distances from dense attention, results that are kept."""

import json

import numpy as np
import pytest

from audiolitefocus import LiteFocus
from audiolitefocus.checkpoints.bundle import load_config
from audiolitefocus.config import demo_folder
from scripts.evaluate import attentions
from scripts.plots import keys

ARGUMENTS = ["attentions", "--seconds", "0.64", "--clips", "2", "--tones", "1", "--steps", "1"]


def run(monkeypatch, path, *options: str) -> list[dict]:
    monkeypatch.setattr("sys.argv", [*ARGUMENTS, "--results", str(path), *options])
    return attentions.run(attentions.arguments())


def test_a_distance_is_the_norm_of_the_difference_over_the_norm():
    expected = np.array([[3.0, 4.0], [0.0, 2.0]])
    found = attentions.relative(np.array([[3.0, 9.0], [0.0, 2.0]]), expected)
    np.testing.assert_allclose(found, [1.0, 0.0])


def test_cells_are_measured_once_and_kept(monkeypatch, tmp_path):
    path = tmp_path / "near.json"
    cells = run(monkeypatch, path, "--attention", "litefocus:1", "litefocus:0.2")
    by_name = {cell["attention"]: cell for cell in cells}
    assert list(by_name) == ["dense", "litefocus:1", "litefocus:0.2"]
    assert by_name["litefocus:1"]["distance"]["value"] < 1e-4  # every key is sampled
    assert by_name["litefocus:0.2"]["distance"]["value"] > 1e-3
    assert all(cell["ripple"]["value"] > 0 and cell["tones"] == 1 for cell in cells)
    monkeypatch.setattr(attentions.Comparison, "measure", lambda *_: pytest.fail("again"))
    assert run(monkeypatch, path, "--attention", "litefocus:0.2") == cells
    assert json.loads(path.read_text())["cells"] == cells
    assert len(attentions.markdown(cells).splitlines()) == 2 + len(cells)


def test_results_with_other_settings_and_unknown_attention_are_refused(monkeypatch, tmp_path):
    path = tmp_path / "near.json"
    path.write_text(json.dumps({"about": {}, "cells": []}))
    with pytest.raises(ValueError, match="other settings"):
        run(monkeypatch, path, "--attention", "tome")
    with pytest.raises(ValueError, match="attention 'flash'"):
        run(monkeypatch, path, "--attention", "flash")


def test_a_picture_shows_the_distance_by_the_keys_that_are_sampled(monkeypatch, tmp_path):
    """At 10.24 s level 1 of the demo has 8 rows of 128 tokens."""
    config = load_config(demo_folder())
    for ratio, weight, sampled in ((0.1, 1.0, 7 * 12), (0.01, 0.0, 7), (0.0, 0.0, 0)):
        lite = LiteFocus(sparse_ratio=ratio, weight=weight)
        assert keys.sampled_keys(lite, 10.24, config) == sampled
    results, picture = tmp_path / "near.json", tmp_path / "keys.png"
    run(monkeypatch, results, "--attention", "litefocus:0.2", "litefocus:0.2:weight=1")
    monkeypatch.setattr("sys.argv", ["keys", str(results), str(picture)])
    keys.main()
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 5000
