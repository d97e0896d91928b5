"""Transformers that a UNet was pruned of: the others do what they did, and are counted alone."""

import json
from dataclasses import replace

import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.attention.modules import SelfAttention
from audiolitefocus.attention.settings import LiteFocus, TokenMerging
from audiolitefocus.check.model import Stages
from audiolitefocus.check.parity import check_parity
from audiolitefocus.checkpoints.bundle import describe, load_config
from audiolitefocus.config import BundleConfig, UNetConfig, demo_folder
from audiolitefocus.models.layers import Transformer2D
from audiolitefocus.models.unet import UNet
from audiolitefocus.runtime import kept_bytes
from scripts.benchmark.operations import operations
from scripts.prune.bundle import write_pruned
from tests.support.compare import assert_same, seeded
from tests.support.denoising import CONFIG, clip_noise, tiny_condition, tiny_unet

NAMES = list(CONFIG.transformers)
LEVEL_1 = tuple(name for name, (level, _) in CONFIG.transformers.items() if level == 1)
ABSENT = {
    "one": NAMES[:1],
    "the first text": NAMES[1:3],  # guidance parts later
    "every second": NAMES[::2],
    "a level": LEVEL_1,
    "all but one": [name for name in NAMES if name != "up.0.stages.1.transformers.2"],
}


def without(unet: UNet, absent) -> UNet:
    """The UNet without these transformers, with its weights."""
    pruned = UNet(replace(unet.config, absent=tuple(absent)))
    weights = {k: w for k, w in unet.state_dict().items() if k in pruned.state_dict()}
    pruned.load_state_dict(weights, strict=True)
    return pruned.eval().requires_grad_(False)


def silenced(unet: UNet, absent) -> UNet:
    """The UNet with these transformers adding nothing."""
    for name in absent:
        for parameter in unet.get_submodule(name).proj_out.parameters():
            parameter.zero_()
    return unet


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        UNetConfig(),
        replace(CONFIG, attention_levels=(0, 1), resnets=2),
        replace(CONFIG, contexts=("self", "loa", "t5", "self"), absent=tuple(NAMES[2:5])),
    ],
)
def test_a_config_knows_the_transformers_of_its_unet(config):
    with torch.device("meta"):
        unet = UNet(config)
    found = {n: m.context for n, m in unet.named_modules() if isinstance(m, Transformer2D)}
    assert found == {name: context for name, (_, context) in config.transformers.items()}
    order = [name for name in unet.units() if name in found]
    assert sorted(order) == sorted(found)
    for name, (level, _) in config.transformers.items():
        assert unet.get_submodule(name).norm.num_channels == config.channels[level]


@torch.inference_mode()
@pytest.mark.parametrize("name, entries", zip(ABSENT, (2, 4, 2, 4, 4), strict=True))
def test_an_absent_transformer_is_one_that_adds_nothing(name, entries):
    whole, absent = tiny_unet(), ABSENT[name]
    pruned = without(whole, absent)
    inputs = clip_noise(2), torch.tensor(500), tiny_condition(entries, 1)
    before = whole(*inputs)
    expected = silenced(whole, absent)(*inputs)
    assert_same(pruned(*inputs), expected)
    assert (expected - before).norm() > 0.01 * before.norm()
    sparse = LiteFocus(cross_frequency=False, levels=(1, 2))  # which draws nothing
    assert_same(*(unet(*inputs, attention=sparse) for unet in (pruned, whole)))


def test_a_level_without_self_attention_draws_nothing():
    with torch.device("meta"):
        unet = UNet(replace(CONFIG, absent=LEVEL_1))
    for kind in (LiteFocus, TokenMerging):
        assert unet.draw(kind(levels=(1,)), clip_noise(1), seeded()) == [None, None, None]
        assert unet.plan(kind(levels=(1,)), clip_noise(1)) == {}
        assert len(unet.plan(kind(levels=(1, 2)), clip_noise(1))) == 16


def test_what_comes_before_the_first_text_is_computed_once():
    """However late that is, skip connections included."""
    config, shape = replace(CONFIG, absent=tuple(ABSENT["all but one"])), (1, 8, 16, 16)
    once, twice = (operations(config, shape, "dense", branches=b) for b in (1, 2))
    with torch.device("meta"):
        unet = UNet(config)
    names = {module: name for name, module in unet.named_modules()}
    order = [names[piece] for piece in unet.pieces()]
    at = order.index("up.0.stages.1")
    before, there, after = (
        sum(once.within[name] for name in own)
        for own in (order[:at], order[at : at + 1], order[at + 1 :])
    )
    assert before + after + there == once.total
    assert before + there + 2 * after < twice.total < before + 2 * (there + after)


def test_operations_fall_by_those_of_what_is_left_out():
    shape = (1, 8, 64, 16)
    whole = operations(CONFIG, shape, "dense", branches=1)
    found = operations(replace(CONFIG, absent=LEVEL_1), shape, "dense", branches=1)
    assert found.total == whole.total - sum(whole.within[name] for name in LEVEL_1)
    assert not set(LEVEL_1) & set(found.within)


@pytest.mark.parametrize("absent", ABSENT.values(), ids=ABSENT)
def test_keys_and_values_of_what_is_there_are_kept(absent):
    config = replace(CONFIG, absent=tuple(absent))
    with torch.device("meta"):
        unet = UNet(config)
    numbers = 0
    for name, (level, _) in config.transformers.items():
        own = [m for m in unet.get_submodule(name).modules() if isinstance(m, SelfAttention)]
        numbers += sum(2 * m.to_k.weight.shape[0] for m in own) * (16 >> level) * (64 >> level)
    assert kept_bytes(BundleConfig(unet=config), 64, 4) == 2 * numbers * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The demo without every second transformer."""
    absent = list(load_config(demo_folder()).unet.transformers)[1::2]
    made = tmp_path_factory.mktemp("models") / "pruned"
    write_pruned(demo_folder(), made, absent, "demo-half", "for a test")
    return made


@pytest.fixture(scope="module")
def pipes(folder):
    """The pruned model, and the demo whose same transformers add nothing."""
    pruned, whole = (
        AudioLDM2Pipeline.from_pretrained(model, device="cpu") for model in (folder, "demo")
    )
    silenced(whole.unet, pruned.config.unet.absent)
    return pruned, whole


CALLS = {
    "plain": {},
    "reuse": {"reuse": "deepcache:2:start=0.2"},
    "windows": {"windows": 0.64, "audio_length_in_s": 1.28},
    "held frames": {"refresh": 2},
}


@pytest.mark.parametrize("name", CALLS)
def test_a_pruned_bundle_generates_what_the_silenced_model_does(pipes, name):
    options = {"audio_length_in_s": 0.64, "num_inference_steps": 5, "sampler": "dpm++", "seed": 3}
    options |= CALLS[name]
    if name == "held frames":
        recording = 0.3 * torch.sin(torch.arange(20480) / 20)
        options |= {"continue_audio": recording, "audio_length_in_s": 2.56}
    found, expected = (
        pipe("rain", **options, output_type="latent").audios.clone() for pipe in pipes
    )
    assert_same(found, expected)


def test_info_says_what_stays(folder):
    (line,) = [line for line in describe(folder) if "stay" in line]
    assert line == "  pruned: 15 of 30 transformers stay (5 self, 5 loa, 5 t5)"
    assert any("15 transformers of demo, for a test" in line for line in describe(folder))
    assert not any("stay" in line for line in describe(demo_folder()))


def test_weights_are_a_part_of_the_models_under_their_names(folder, pipes):
    pruned, whole = (pipe.unet.state_dict() for pipe in pipes)
    assert len(load_config(folder).unet.absent) == 15 and set(pruned) < set(whole)


def test_diffusers_layout_is_refused_in_one_line(pipes, tmp_path):
    with pytest.raises(ValueError, match="pruned of 15 transformers, which diffusers cannot") as e:
        pipes[0].save_pretrained(tmp_path / "saved")
    assert "\n" not in str(e.value) and not list(tmp_path.iterdir())


def test_a_check_of_the_model_does_not_fail_for_it(pipes):
    (row,) = check_parity(Stages(pipes[0])).rows
    assert row.ok is None and row.text == "not compared: diffusers has no pruned UNets"


def test_a_bundle_from_before_has_all_its_transformers(tmp_path):
    data = json.loads((demo_folder() / "config.json").read_text())
    data["unet"].pop("absent", None)
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert load_config(tmp_path).unet.absent == ()
