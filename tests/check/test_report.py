"""Findings as text and as JSON: what fails is said, and no folder of anybody's is named."""

import json
from pathlib import Path

import pytest
import torch

from audiolitefocus.check.report import (
    Row,
    Section,
    attempt,
    failures,
    statistics,
    to_json,
    without_paths,
)

FINDINGS = [
    Section("Machine", [Row("torch", "2.13"), Row("memory", "")]),
    Section("Stages", [Row("unet", "fine", ok=True), Row("vae", "bad", ok=False), Row("clip", "")]),
]


def test_marks_stand_where_something_was_checked():
    machine, stages = ([*section.lines()] for section in FINDINGS)
    assert machine == ["Machine", "  torch           2.13", "  memory"]
    assert stages[1:3] == ["  ok      unet            fine", "  FAILED  vae             bad"]
    assert failures(FINDINGS) == ["vae (stages)"]


def test_json_says_the_same():
    found = json.loads(json.dumps(to_json("demo", FINDINGS)))
    assert found["model"] == "demo" and found["passed"] is False
    assert found["sections"][1]["rows"][1] == {
        "name": "vae",
        "text": "bad",
        "ok": False,
        "values": {},
    }


@pytest.mark.parametrize(
    "text, shown",
    [
        ("/home/someone/models/x/unet.safetensors has changed", ".../unet.safetensors has changed"),
        ("no such file: '/data/x.json'", "no such file: '.../x.json'"),
        (r"C:\Users\someone\x.json: absent", ".../x.json: absent"),
        ("fetched from cvssp/audioldm2, 1/2 of it", "fetched from cvssp/audioldm2, 1/2 of it"),
        (f"{Path.home()}/x", ".../x"),
        ("https://huggingface.co/cvssp", "https://huggingface.co/cvssp"),
    ],
)
def test_paths_are_cut_to_their_last_part(text, shown):
    assert without_paths(text) == shown


def test_an_error_is_a_failed_check_in_one_line():
    def broken():
        raise RuntimeError("it\nis broken in /home/me/x")

    row = attempt("unet", broken)
    assert row == Row("unet", "RuntimeError: it is broken in .../x", ok=False)


@pytest.mark.parametrize(
    "tensor, ok, words",
    [
        (torch.arange(6.0).view(2, 3), True, "(2, 3): mean 2.5, std 1.871, 0 to 5"),
        (torch.ones(4), False, "constant"),
        (torch.tensor([1.0, torch.nan, torch.inf]), False, "2 of 3 values are NaN or infinite"),
        (torch.full((2,), 3.0, dtype=torch.float16), False, "constant"),
    ],
)
def test_statistics_of_an_output(tensor, ok, words):
    row = statistics("x", tensor)
    assert row.ok is ok and words in row.text
    json.dumps(row.values, allow_nan=False)
