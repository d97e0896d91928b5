"""scripts/demo/finetune.py, and the sampler lcm in scripts/evaluate/frontier.py."""

import json

import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.checkpoints.adapters import WEIGHTS
from audiolitefocus.checkpoints.tensors import open_safetensors
from audiolitefocus.config import Distilled
from audiolitefocus.training.loop import SETTINGS
from scripts.demo import finetune
from scripts.demo.world import clips, latents
from scripts.evaluate import frontier

pytest.importorskip("peft")
pytest.importorskip("accelerate")

FEW = 3  # clips, instead of a thousand


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """A function that runs a very short fine-tuning and returns its folder."""
    encoded = tmp_path_factory.mktemp("encoded")

    def train(name, *options):
        out = tmp_path_factory.mktemp(name) / "out"
        options = ("--out", out, "--encoded", encoded, "--thousands", 1, *options)
        options = (*options, "--steps", 2, "--batch-size", 2, "--rank", 1)
        with pytest.MonkeyPatch.context() as patch:
            for module in (latents, clips):
                patch.setattr(module, "CHUNK", FEW)
            patch.setattr("sys.argv", ["finetune", *map(str, options)])
            finetune.main()
        return out

    return train


@pytest.fixture(scope="module")
def folder(train):
    """Of a distillation."""
    return train("few", "--distill", "lcm") / "adapter"


def test_what_comes_out_is_an_adapter_for_few_steps(folder):
    pipe = AudioLDM2Pipeline.from_pretrained("demo", device="cpu")
    pipe.load_lora(folder)
    assert pipe.config.distilled == Distilled("lcm", 2.0)
    with open_safetensors(folder / WEIGHTS) as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118


def test_all_of_the_unet_is_trained_sparse_on_clips_of_several_lengths(train):
    out = train("sparse", "--full", "--attention", "litefocus:0.1", "--seconds", 0.64, 1.28)
    before = AudioLDM2Pipeline.from_pretrained("demo", device="cpu")
    after = AudioLDM2Pipeline.from_pretrained(out / "bundle", device="cpu")
    assert after.config.name == "demo-finetuned" and after.config.distilled is None
    own = dict(before.unet.named_parameters())
    moved = [n for n, p in after.unet.named_parameters() if not torch.equal(p, own[n])]
    assert len(moved) > 0.9 * len(own)
    settings = json.loads((out / SETTINGS).read_text())
    assert settings["attention"] == "litefocus:0.1" and settings["seconds"] == [0.64, 1.28]


@pytest.mark.slow  # two pipelines, and operations counted of both
def test_the_frontier_makes_lcm_with_the_adapter(folder, tmp_path, monkeypatch):
    options = ("--clips", 2, "--seconds", 0.64, "--full", "steps=4", "--out", tmp_path)
    monkeypatch.setattr("sys.argv", ["frontier", *map(str, options), "--lora", str(folder)])
    found = frontier.Frontier(frontier.arguments())
    few = found.options("sampler=lcm,steps=2")
    assert found.pipe_of(few).adapters == {folder.name: 1.0}
    assert found.pipe_of(found.full) is found.pipe and not found.pipe.adapters
    # half the steps, without the second half
    assert 0.25 < found.cost(few) < 0.3


def test_lcm_without_an_adapter_is_refused(tmp_path, monkeypatch):
    options = ("--clips", 2, "--seconds", 0.64, "--no-time", "--out", tmp_path)
    options = (*options, "--variants", "sampler=lcm,steps=2")
    monkeypatch.setattr("sys.argv", ["frontier", *map(str, options)])
    with pytest.raises(SystemExit, match="a variant with sampler=lcm needs --lora"):
        frontier.main()
