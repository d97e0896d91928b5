"""scripts/reuse/partner.py and divergence.py, and drafters in scripts/evaluate/frontier.py."""

import json

import numpy as np
import pytest
import soundfile
import torch

from audiolitefocus import AudioLDM2Pipeline, load_component
from audiolitefocus.config import demo_folder
from audiolitefocus.models.condition import Condition
from scripts.evaluate import frontier
from scripts.reuse import divergence, partner
from tests.support.compare import assert_same, seeded

BATCHED = 1e-3  # rounding of batched matrix products and of 16 bit samples
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


def test_a_model_does_not_diverge_from_itself_and_does_from_its_partner(
    folder, tmp_path, monkeypatch, capsys
):
    found = {}
    for name, drafter in {"self": "demo", "partner": folder}.items():
        out = tmp_path / f"{name}.json"
        options = ("--drafter", drafter, "--runs", 1, "--share", 0.5, "--out", out)
        run(monkeypatch, divergence, *RUN, *options)
        found[name] = json.loads(out.read_text())
    assert found["self"]["divergence"] == [0.0] * 4 and found["self"]["clips"] == 2
    values = found["partner"]["divergence"]
    assert all(0 < value < 2 for value in values)
    start, stop = found["partner"]["drafter_interval"]
    sums = [values[n] + values[n + 1] for n in range(3)]
    assert (start, stop) == (sums.index(min(sums)) / 4, sums.index(min(sums)) / 4 + 0.5)
    assert f"--drafter-interval {start:g}:{stop:g}" in capsys.readouterr().out


def test_the_frontier_counts_and_makes_drafted_variants(folder, tmp_path, monkeypatch):
    options = ("--clips", 2, "--seconds", 0.64, "--resamples", 10, "--no-time", "--out", tmp_path)
    options += ("--full", "steps=4", "--drafter", folder)
    whole = "drafter_interval=0:1"
    run(monkeypatch, frontier, *options, "--variants", "drafter_interval=0:0.5", whole)
    results = json.loads((tmp_path / "frontier.json").read_text())
    assert results["about"]["drafter"] == "demo-without-self"
    _, half, every = results["points"]
    assert half["cost"] == pytest.approx((1 + every["cost"]) / 2) and 0.5 < every["cost"] < 0.95
    assert half["log_mel"]["value"] > 0
    clip = next((tmp_path / "drafter-interval-0-1-0.64").glob("*.json"))
    recipe = json.loads(clip.read_text())
    alone = AudioLDM2Pipeline.from_pretrained(folder, device="cpu")
    call = {name: recipe[name] for name in ("sampler", "num_inference_steps", "seed")}
    made = alone(recipe["prompt"], guidance_scale=7.0, audio_length_in_s=0.64, **call).audios[0]
    sound = soundfile.read(clip.with_suffix(".wav"))[0]
    np.testing.assert_allclose(sound, made, rtol=0, atol=BATCHED)


def test_a_drafted_variant_without_a_drafter_is_refused(tmp_path, monkeypatch):
    options = ("--clips", 2, "--seconds", 0.64, "--no-time", "--out", tmp_path)
    with pytest.raises(SystemExit, match="a variant with drafter_interval needs --drafter"):
        run(monkeypatch, frontier, *options, "--variants", "drafter_interval=0:0.5")
