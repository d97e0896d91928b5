"""scripts/evaluate/attentions.py: distances from dense attention, results that are kept."""

import json

import numpy as np
import pytest

from scripts.evaluate import attentions

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
