"""scripts/reuse/partner.py and divergence.py, and drafters in scripts/evaluate/frontier.py."""

import json
from dataclasses import replace

import pytest
import torch

from audiolitefocus import load_component
from audiolitefocus.checkpoints.bundle import load_config
from audiolitefocus.config import demo_folder
from audiolitefocus.models.condition import Condition
from scripts.evaluate import frontier
from scripts.reuse import divergence, partner
from tests.support.compare import assert_same, seeded

pytestmark = pytest.mark.slow  # makes many clips with two models

RUN = ["--steps", "4", "--sampler", "dpm++", "--seconds", "0.64", "--batch-size", "2"]


def run(monkeypatch, program, *options) -> None:
    monkeypatch.setattr("sys.argv", [program.__name__, *map(str, options)])
    program.main()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The demo without its `self` transformers."""
    made = tmp_path_factory.mktemp("models") / "partner"
    partner.make_partner(demo_folder(), made, {"self"})
    return made


@torch.inference_mode()
def test_a_partner_is_the_model_whose_left_out_transformers_add_nothing(folder):
    whole, pruned = (load_component(source, "unet") for source in (demo_folder(), folder))
    generator, config = seeded(), whole.config
    latents = torch.randn(1, 8, 16, 16, generator=generator)
    condition = Condition(
        torch.randn(1, 8, config.loa_dim, generator=generator),
        torch.randn(1, 5, config.t5_dim, generator=generator),
    )
    step = torch.tensor(500)
    before = whole(latents, step, condition)
    for module in whole.modules():
        if getattr(module, "context", None) == "self":
            module.proj_out.weight.zero_()
            module.proj_out.bias.zero_()
    found = pruned(latents, step, condition)
    assert_same(found, whole(latents, step, condition))
    assert (found - before).norm() > 0.01 * before.norm()
    assert sum(x.numel() for x in pruned.parameters()) < sum(x.numel() for x in whole.parameters())


def test_what_a_model_does_not_have_cannot_be_left_out(folder, tmp_path, monkeypatch):
    for source, contexts in ((folder, ["self"]), (demo_folder(), ["self", "loa", "t5"])):
        with pytest.raises(SystemExit, match="^error: --without .*: demo.* has "):
            out = tmp_path / "none"
            run(monkeypatch, partner, "--model", source, "--without", *contexts, "--out", out)
    assert not list(tmp_path.iterdir())


def test_transformers_can_be_thinned_out(folder, tmp_path, monkeypatch, capsys):
    run(monkeypatch, partner, "--model", folder, "--every", 2, "--out", tmp_path / "half")
    assert "demo-without-self-without-every-2" in capsys.readouterr().out
    before, after = (load_config(f).unet for f in (folder, tmp_path / "half"))
    assert list(after.transformers) == list(before.transformers)[::2]
    for every in (1, 21):
        with pytest.raises(SystemExit, match=f"^error: --every {every}: must be from 2 to 20, the"):
            options = ("--model", folder, "--every", every, "--out", tmp_path / "none")
            run(monkeypatch, partner, *options)


def test_a_model_does_not_diverge_from_itself_and_does_from_its_partner(
    folder, tmp_path, monkeypatch, capsys
):
    found = {}
    for name, drafter in {"self": "demo", "partner": folder}.items():
        out = tmp_path / f"{name}.json"
        options = ("--drafter", drafter, "--runs", 1, "--share", 0.5, "--out", out)
        run(monkeypatch, divergence, *RUN, *options)
        found[name] = json.loads(out.read_text())
    assert found["self"]["noise"] == found["self"]["clean"] == [0.0] * 4
    assert found["self"]["clips"] == 2
    values = found["partner"]["clean"]
    assert all(0 < value < 2 for value in (*values, *found["partner"]["noise"]))
    start, stop = found["partner"]["drafter_interval"]
    sums = [values[n] + values[n + 1] for n in range(3)]
    assert (start, stop) == (sums.index(min(sums)) / 4, sums.index(min(sums)) / 4 + 0.5)
    assert f"--drafter-interval {start:g}:{stop:g}" in capsys.readouterr().out


def test_the_frontier_counts_the_steps_of_both_models(folder, tmp_path, monkeypatch):
    options = ("--clips", 2, "--seconds", 0.64, "--full", "steps=4", "--out", tmp_path)
    monkeypatch.setattr("sys.argv", ["frontier", *map(str, options), "--drafter", str(folder)])
    found = frontier.Frontier(frontier.arguments())
    half, every = (found.options(f"drafter_interval=0:{stop}") for stop in (0.5, 1))
    assert found.drafter_of(found.full) is None and found.drafter_of(half) is found.drafter
    assert found.cost(found.full) == 1.0 and 0.5 < found.cost(every) < 0.95
    assert found.cost(half) == pytest.approx((1 + found.cost(every)) / 2)
    # without guidance in the drafter's steps, they cost less
    assert found.cost(replace(half, guidance_interval=(0.5, 1.0))) < found.cost(half)
    assert found.cost(replace(half, reuse="deepcache:2")) is None


def test_a_drafted_variant_without_a_drafter_is_refused(tmp_path, monkeypatch):
    options = ("--clips", 2, "--seconds", 0.64, "--no-time", "--out", tmp_path)
    with pytest.raises(SystemExit, match="a variant with drafter_interval needs --drafter"):
        run(monkeypatch, frontier, *options, "--variants", "drafter_interval=0:0.5")
