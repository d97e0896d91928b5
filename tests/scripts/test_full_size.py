"""`audiolitefocus check` on random weights of audioldm2-full's size, in diffusers layout."""

import json

import pytest
from huggingface_hub import constants

from scripts.benchmark.clip import write_weights
from tests.support.command import run


@pytest.mark.slow
def test_only_what_can_be_heard_of_random_weights_fails_a_check(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    write_weights(tmp_path)
    result = run(
        "check", tmp_path / "source", "--device", "cpu", "--json", "report.json", cwd=tmp_path
    )
    report = json.loads((tmp_path / "report.json").read_text())
    found = {
        f"{section['title']}/{row['name']}": row
        for section in report["sections"]
        for row in section["rows"]
    }
    failed = {name for name, row in found.items() if row["ok"] is False}
    # a random vocoder is all but silent, and its noise has no caption
    assert failed <= {"Clip/sound", "Clip/CLAP"}, result.stdout
    assert found["Model/heads"]["text"].startswith("heads of 32 channels, [8, 12, 20]")
    assert found["Model/unet"]["text"].startswith("346,943,496 weights")
    assert found["Parity/unet"]["values"]["difference"] < 1e-4
    assert found["Stages/vocoder"]["values"]["shape"] == [1, 163872]
