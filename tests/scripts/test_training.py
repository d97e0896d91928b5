"""The training loop: what it does depends on its seed and step alone, also when it is cut off."""

import csv
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.demo import loop as training
from scripts.demo import train as train_demo
from scripts.demo.loop import Run, train

STEPS = 125


def fit(run: Run, *, cut_off_at: int | None = None, width: int = 8, average: float = 0.9):
    """Train a small network to double its input; the loss draws its batches and its dropout."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, width), nn.Dropout(0.1), nn.Linear(width, 4))
    calls = 0

    def loss():
        nonlocal calls
        calls += 1
        if calls == cut_off_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 4)
        return {"loss": (network(x) - 2 * x).square().mean(), "size": x.abs().mean()}

    return train(run, "double", network, loss, steps=STEPS, rate=1e-2, average=average)


def curve(folder: Path) -> list[list[str]]:
    """The rows without their times."""
    with (folder / "double" / "curve.csv").open() as file:
        return [
            [value for name, value in row.items() if name != "seconds"]
            for row in csv.DictReader(file)
        ]


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir(), cut.mkdir()
    expected = fit(Run(out=whole))
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    for calls in (60, 40):  # the second one is cut off after its checkpoint at step 75
        with pytest.raises(KeyboardInterrupt):
            fit(Run(out=cut), cut_off_at=calls)
    found = fit(Run(out=cut))
    for key, value in expected.state_dict().items():
        assert torch.equal(value, found.state_dict()[key]), key
    assert curve(whole) == curve(cut)
    assert [int(row[0]) for row in curve(cut)] == [25, 50, 75, 100, 125]


def test_training_learns_and_ends(tmp_path):
    network = fit(Run(out=tmp_path, steps=400))
    assert not network.training
    rows = curve(tmp_path)
    assert float(rows[-1][2]) < 0.3 * float(rows[0][2])
    assert float(rows[-1][1]) < 0.05 * max(float(row[1]) for row in rows)  # the learning rate
    before = network.state_dict()
    again = fit(Run(out=tmp_path, steps=400), cut_off_at=1)  # nothing is left to do
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in before.items())


def test_seeds_differ(tmp_path):
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        fit(Run(out=tmp_path / str(seed), steps=25, seed=seed))
    assert curve(tmp_path / "0") != curve(tmp_path / "1")


def test_minutes_end_a_run(tmp_path):
    fit(Run(out=tmp_path, minutes=0.01))
    state = torch.load(tmp_path / "double" / "checkpoint.pt", weights_only=True)
    assert 0.6 <= state["seconds"] < 0.9


def test_the_average_lags_behind(tmp_path):
    """With a decay of 0, the average is the network; the checkpoint holds both."""
    fit(Run(out=tmp_path, steps=30), average=0.0)
    state = torch.load(tmp_path / "double" / "checkpoint.pt", weights_only=True)
    assert state["trained"]
    for key, value in state["trained"].items():
        torch.testing.assert_close(state["average"][key], value)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    fit(Run(out=tmp_path, steps=25))
    with pytest.raises(ValueError, match="checkpoint.pt is damaged or of another training"):
        fit(Run(out=tmp_path, steps=50), width=16)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    fit(Run(out=tmp_path, steps=25))
    path = tmp_path / "double" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="remove it to start again"):
        fit(Run(out=tmp_path, steps=50))


def test_divergence_ends_training(tmp_path):
    network = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="diverged"):
        train(
            Run(out=tmp_path),
            "nan",
            network,
            lambda: {"loss": network(torch.full((1, 1), torch.inf)).sum()},
            steps=3,
            rate=1e-3,
        )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"device": "tpu"}, "'tpu'"),
        ({"steps": 0}, "steps 0"),
        ({"minutes": -1.0}, "minutes -1.0"),
        ({"minutes": float("nan")}, "minutes nan"),
        ({"steps": 5, "minutes": 1.0}, "one of them"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        Run(out=tmp_path, **options)


def test_cuda_is_refused_where_there_is_none(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="'cuda' is not present"):
        Run(out=tmp_path, device="cuda")


@pytest.mark.parametrize("options", [["--steps", "0"], ["--seed", "-3"], ["--out", "/dev/null/x"]])
def test_the_command_says_what_is_wrong_in_one_line(tmp_path, monkeypatch, options):
    monkeypatch.setattr(sys, "argv", ["train_demo.py", "--out", str(tmp_path / "out"), *options])
    with pytest.raises(SystemExit, match=r"^error: [^\n]+$"):
        train_demo.main()
