"""Adapters in PEFT's format: what they add, and that they can be taken off."""

import json

import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.checkpoints.adapters import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    Adapter,
    parse_adapter,
    write_adapter,
)
from audiolitefocus.checkpoints.tensors import open_safetensors, save_tensors
from audiolitefocus.models.condition import Condition
from audiolitefocus.training.adapters import add_adapters, as_saved, trained
from tests.support.compare import assert_same, seeded

pytest.importorskip("peft")


@pytest.fixture
def fresh(tiny_bundle):
    return AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu")


def adapter(pipe, folder, seed: int, rank: int = 3):
    """A random adapter on disk; the UNet of `pipe` gets PEFT's layers with the same numbers."""
    folder.mkdir()
    add_adapters(pipe.unet, rank, seed)
    with torch.no_grad():
        for parameter in trained(pipe.unet).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=seeded(seed)))
    write_adapter(folder, "tiny", rank, as_saved(trained(pipe.unet)))
    return folder


@torch.no_grad()
def evaluate(pipe) -> torch.Tensor:
    config = pipe.config.unet
    loa = torch.randn(1, 8, config.loa_dim, generator=seeded(1))
    t5 = torch.randn(1, 5, config.t5_dim, generator=seeded(2))
    latents = torch.randn(1, config.in_channels, 16, 16, generator=seeded(3))
    return pipe.unet(latents, torch.tensor(500), Condition(loa, t5))


def test_an_adapter_in_the_weights_does_what_peft_does_beside_them(fresh, pipe, tmp_path):
    before = evaluate(fresh)
    folder = adapter(fresh, tmp_path / "a", seed=0)
    expected = evaluate(fresh)
    assert (expected - before).norm() > 0.01 * before.norm()
    other = AudioLDM2Pipeline.from_pretrained(pipe.folder, device="cpu")
    other.load_lora(folder)
    assert_same(evaluate(other), expected)
    assert other.adapters == {"a": 1.0}


def test_peft_reads_what_is_written(fresh, tmp_path):
    import peft

    folder = adapter(fresh, tmp_path / "a", seed=0)
    config = peft.PeftConfig.from_pretrained(folder)
    assert config.peft_type == peft.PeftType.LORA and config.r == 3
    loaded = peft.PeftModel.from_pretrained(
        AudioLDM2Pipeline.from_pretrained(fresh.folder, device="cpu").unet, folder
    )
    ours, theirs = trained(fresh.unet), dict(loaded.named_parameters())
    for name, parameter in ours.items():
        assert torch.equal(theirs[PREFIX + name], parameter)


def test_adapters_add_up_and_come_off_without_a_trace(pipe, tmp_path):
    folders = [
        adapter(AudioLDM2Pipeline.from_pretrained(pipe.folder, device="cpu"), tmp_path / name, seed)
        for seed, name in enumerate("ab")
    ]
    other = AudioLDM2Pipeline.from_pretrained(pipe.folder, device="cpu")
    original = {name: w.clone() for name, w in other.unet.state_dict().items()}
    deltas = [Adapter.read(folder) for folder in folders]
    other.load_lora(folders[0], 0.5)
    other.load_lora(folders[1], -2)
    assert other.adapters == {"a": 0.5, "b": -2.0}
    layer = next(iter(deltas[0].factors))
    weight = original[f"{layer}.weight"] + deltas[0].delta(layer, 0.5) + deltas[1].delta(layer, -2)
    torch.testing.assert_close(other.unet.get_submodule(layer).weight, weight)
    other.load_lora(folders[0], 1)  # again: another scale
    assert other.adapters == {"b": -2.0, "a": 1.0}
    other.unload_lora()
    assert other.adapters == {}
    for name, tensor in other.unet.state_dict().items():
        assert torch.equal(tensor, original[name])


def changed(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "of kind 'IA3'.* only LoRA"),
        ({"bias": "all"}, "bias 'all'"),
        ({"r": 0}, "r 0: must be a whole number from 1"),
        ({"lora_alpha": "x"}, "lora_alpha 'x': must be a number above 0"),
        ({"rank_pattern": {"a": 2}}, "differ from layer to layer"),
    ],
)
def test_adapters_of_other_kinds_are_refused(fresh, tmp_path, changes, message):
    folder = adapter(fresh, tmp_path / "a", seed=0)
    changed(folder, **changes)
    with pytest.raises(ValueError, match=message):
        Adapter.read(folder)


def test_an_adapter_for_another_model_is_refused_and_nothing_changes(fresh, pipe, tmp_path):
    folder = adapter(fresh, tmp_path / "a", seed=0)
    with open_safetensors(folder / WEIGHTS) as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    key = next(key for key in tensors if "lora_A" in key)
    wider = torch.cat([tensors[key]] * 2, dim=1)
    save_tensors(folder / WEIGHTS, {**tensors, key: wider})
    other = AudioLDM2Pipeline.from_pretrained(pipe.folder, device="cpu")
    before = evaluate(other)
    with pytest.raises(ValueError, match="made for another model"):
        other.load_lora(folder)
    save_tensors(folder / WEIGHTS, {**tensors, key: torch.full_like(tensors[key], torch.nan)})
    with pytest.raises(ValueError, match="not finite"):
        other.load_lora(folder)
    assert torch.equal(evaluate(other), before)


def test_a_folder_and_its_scale_are_told_apart(tmp_path):
    assert parse_adapter("a/b") == ("a/b", 1.0)
    assert parse_adapter("a/b:0.5") == ("a/b", 0.5)
    (tmp_path / "x:2").mkdir()
    assert parse_adapter(str(tmp_path / "x:2")) == (str(tmp_path / "x:2"), 1.0)
    with pytest.raises(ValueError, match="must be a folder, or FOLDER:SCALE"):
        parse_adapter("a:b")
    with pytest.raises(ValueError, match="is no adapter: it has no adapter_config.json"):
        Adapter.read(tmp_path)
