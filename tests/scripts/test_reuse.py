"""scripts/reuse and scripts/evaluate/frontier.py: tables that are made, what they cost and do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.checkpoints.bundle import load_config
from audiolitefocus.config import demo_folder
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.layers import StepInputs
from audiolitefocus.models.unet import UNet
from audiolitefocus.reuse.settings import LearnedReuse
from scripts.benchmark.operations import counter, operations
from scripts.evaluate import frontier
from scripts.plots import frontier as frontier_plot
from scripts.reuse import calibrate, learn

RUN = ["--steps", "4", "--sampler", "dpm++", "--seconds", "0.64", "--batch-size", "1"]
CONFIG = load_config(demo_folder()).unet
SHAPE = (1, 8, 16, 16)


def run(monkeypatch, program, *options) -> None:
    monkeypatch.setattr("sys.argv", [program.__name__, *map(str, options)])
    program.main()


@torch.inference_mode()
def test_operations_with_reuse_are_those_that_are_done():
    """Units nested in each other count once."""
    unet = UNet(CONFIG).eval()
    condition = Condition(torch.zeros(2, 8, CONFIG.loa_dim), torch.zeros(2, 16, CONFIG.t5_dim))
    inputs = StepInputs(unet.time_biases(torch.tensor(9.0)), *unet.cross_kv(condition), {})
    units, latents = unet.units(), torch.zeros(SHAPE)
    counted = operations(CONFIG, SHAPE, "dense")
    for names in ([], ["down.1"], ["down.2", "down.1"], ["up.0.stages.0.transformers.1", "down.3"]):
        recording = replace(inputs, recorded={units[name]: None for name in names})
        unet.evaluate(latents, recording)
        outputs = {unit: x for unit, x in recording.recorded.items() if x is not None}
        with counter() as done:
            unet.evaluate(latents, replace(inputs, reused=outputs))
        assert counted.with_reused(names) == done.get_total_flops()
    assert isinstance(done, FlopCounterMode) and counted.with_reused([]) == counted.total


@pytest.mark.parametrize("program, more", [(calibrate, ()), (learn, ("--penalty", "0.01"))])
def test_a_table_costs_no_more_than_asked_and_generates(monkeypatch, tmp_path, program, more):
    path = tmp_path / "table.json"
    run(monkeypatch, program, *RUN, "--runs", 1, "--cost", 0.7, "--out", path, *more)
    learned = LearnedReuse.read(path)
    assert learned.steps == 4 and learned.attention == "dense"
    assert any(not all(row) for row in learned.table(4).values())
    pipe = AudioLDM2Pipeline.from_pretrained("demo", device="cpu")
    options = {"num_inference_steps": 4, "sampler": "dpm++", "audio_length_in_s": 0.64, "seed": 0}
    reused = pipe("rain", reuse=f"learned:{path}", **options).audios
    full = pipe("rain", **options).audios
    assert abs(reused - full).max() > 1e-4
    with pytest.raises(ValueError, match="was made for steps 4, not 5"):
        pipe("rain", reuse=f"learned:{path}", **{**options, "num_inference_steps": 5})


def test_a_calibrated_unit_is_computed_again_once_it_has_changed():
    change = torch.tensor([[9.0, 9.0], [0.1, 9.0], [0.1, 0.3], [0.1, 0.3], [0.1, 0.1]])
    table = calibrate.table_of({"unit": change}, 0.2)
    assert table["unit"] == (True, False, True, False, False)
    assert calibrate.table_of({"unit": change}, 0.0)["unit"] == (True,) * 5


@pytest.fixture
def learner() -> learn.Learner:
    chosen = learn.parser(None).parse_args(["--out", "x.json", *RUN])
    return learn.Learner(learn.Rollouts(chosen), 0.01)


def test_a_mix_that_takes_nothing_of_the_step_before_is_the_full_evaluation(learner, monkeypatch):
    monkeypatch.setattr(learn, "LIMIT", 100.0)
    learner.logits.data.fill_(100.0)
    learner.optimizer = torch.optim.SGD([learner.logits], lr=0.0)
    assert learner.run(0) < 1e-10


def test_units_of_the_smallest_shares_are_reused(learner):
    learner.logits.data.copy_(torch.arange(learner.logits.numel()).view_as(learner.logits))
    reused = [name for name, row in learner.table(0.99).items() if not all(row)]
    assert reused and reused == learner.names[: len(reused)]
    assert all(learner.table(0.99)[name] == (True, False, True, True) for name in reused)


def test_a_frontier_compares_variants_with_the_full_run_and_goes_on(monkeypatch, tmp_path):
    options = ["--clips", 3, "--seconds", 0.64, "--full", "steps=4", "--resamples", 100]
    options += ["--no-time", "--out", tmp_path, "--variants", "reuse=deepcache:1"]
    run(monkeypatch, frontier, *options)
    run(monkeypatch, frontier, *options, "steps=2", "guidance_interval=0:0.5", "reuse=deepcache:3")
    found = json.loads((tmp_path / "frontier.json").read_text())["points"]
    points = {point["variant"]: point for point in found}
    assert len(found) == 5 and points["steps=4"]["cost"] == 1
    assert points["reuse=deepcache:1"]["log_mel"]["value"] == 0  # nothing is reused
    assert points["steps=2"]["cost"] == 0.5 and points["steps=2"]["log_mel"]["value"] > 0.01
    assert 0.7 < points["guidance_interval=0:0.5"]["cost"] < 0.85
    assert points["reuse=deepcache:3"]["cost"] < 0.8
    assert points["steps=2"]["over_full"]["kl"] and (tmp_path / "frontier.png").is_file()


def test_variants_that_begin_alike_have_folders_of_their_own():
    long = "steps=13,reuse=deepcache:3,guidance_interval=0:0."
    names = {frontier.folder_name(text) for text in ("steps=13", f"{long}8", f"{long}6")}
    assert len(names) == 3 and "steps-13" in names


def test_frontiers_of_one_run_are_drawn_together(monkeypatch, tmp_path):
    results = Path("scripts/results")
    picture = tmp_path / "drawn.png"
    alike = [results / f"frontier-demo{name}.json" for name in ("", "-10s", "-combined")]
    run(monkeypatch, frontier_plot, *alike, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    for other in ("ddim", "guidance-3.5"):
        with pytest.raises(SystemExit, match="compared with different runs"):
            run(
                monkeypatch, frontier_plot, *alike, results / f"frontier-demo-{other}.json", picture
            )
