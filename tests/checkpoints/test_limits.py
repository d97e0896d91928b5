"""Configs that come from files are refused, in one line that names the entry; others are not."""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from audiolitefocus.checkpoints.bundle import load_config
from audiolitefocus.checkpoints.limits import check_config, make_config
from audiolitefocus.checkpoints.towers import transformers_config
from audiolitefocus.config import (
    AttentionRule,
    BundleConfig,
    UNetConfig,
    VAEConfig,
    VocoderConfig,
    demo_folder,
)
from audiolitefocus.validation import MAX_JSON_BYTES, read_json

ELEVEN = (1,) * 11
RULE = asdict(AttentionRule())


def test_configs_are_read_as_they_are_written():
    data = json.loads(BundleConfig(name="x").to_json())
    data.pop("format")
    assert make_config(BundleConfig, data, "config") == BundleConfig(name="x")


@pytest.mark.parametrize(
    "config, match",
    [
        (UNetConfig(in_channels=0), "in_channels = 0: must be a whole number from 1"),
        (UNetConfig(channels=(128, 2**17)), "channels = 131072"),
        (UNetConfig(attention_levels=(-1,)), "attention_levels = -1"),
        (UNetConfig(attention_levels=(4,)), r"attention_levels \(4,\): there are 4 levels"),
        (UNetConfig(heads=(4, 8)), r"heads \(4, 8\): one entry for each"),
        (UNetConfig(channels=(), heads=()), "1 to 8 levels"),
        (UNetConfig(contexts=("self", "clap")), "contexts .*clap.*at most 8 of"),
        (UNetConfig(contexts=("self",)), "none attends to text"),
        (UNetConfig(attention_levels=()), "none attends to text"),
        (UNetConfig(resnets=64, depth=64), "74304 transformer layers: at most 1024"),
        (UNetConfig(norm_groups=48), "128 channels: must divide by norm_groups 48"),
        (UNetConfig(heads=(3, 8, 12, 20)), "128 channels: .* heads 3"),
        (UNetConfig(absent=("down.0.stages.0.transformers.0",)), "absent 'down.0.*no such transf"),
        (UNetConfig(absent=("middle.stage.transformers.0",) * 2), "absent: names .* twice"),
        (UNetConfig(absent=tuple(UNetConfig().transformers)), "none of the others attends to text"),
        (VAEConfig(scale_factor=0.0), "scale_factor = 0.0"),
        (VAEConfig(channels=(128, 100)), r"\(128, 100\): .* norm_groups 32"),
        (VocoderConfig(resblock_dilations=((0,),) * 3), "resblock_dilations = 0"),
        (VocoderConfig(upsample_rates=(5, 4)), "upsample_kernels .* one for each"),
        (VocoderConfig(upsample_rates=(5, 4, 2, 2, 5)), "upsample_kernels .* at least as long"),
        (VocoderConfig(upsample_rates=ELEVEN, upsample_kernels=ELEVEN), "initial_channels 1024"),
        (VocoderConfig(resblock_kernels=(3, 7)), "one list of at most 8"),
        (VocoderConfig(resblock_dilations=(ELEVEN,) * 3), "one list of at most 8"),
        (VocoderConfig(resblock_kernels=(3, 7, 10)), r"\(3, 7, 10\): must be odd"),
        (BundleConfig(trained_seconds=0.0), "trained_seconds = 0.0"),
        (BundleConfig(vae=VAEConfig(latent_channels=4)), "VAE's latents: 4 against 8"),
        (BundleConfig(unet=UNetConfig(loa_dim=64, t5_dim=64)), "768 against 64; T5's.*1024 ag"),
        (BundleConfig(vocoder=VocoderConfig(mel_bins=66)), "mel bins left over.*: 2 against 0"),
        (BundleConfig(vocoder=VocoderConfig(mel_bins=16)), "latent rows left over.*: 4 against 0"),
    ],
)
def test_impossible_configs_are_refused(config, match):
    with pytest.raises(ValueError, match=f"^here.*{match}") as caught:
        check_config(config, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"format": None}, 'no "format" entry'),
        ({"format": 2}, "format 2: this version reads 1; convert again"),
        ({"name": 3}, "config.name = 3: expected str"),
        ({"unet": {}}, "config.unet lacks: attention_levels, channels"),
        ({"surprise": 1}, "config has unknown entries: .'surprise'"),
        ({"trained_seconds": float("nan")}, "config.trained_seconds = nan: expected float"),
        ({"attention_rule": RULE | {"weight": 2.0}}, "attention_rule.weight = 2.0"),
        ({"attention_rule": RULE | {"lengths": 0.5}}, "attention_rule.lengths = 0.5"),
        ({"attention_rule": {"weight": 1.0}}, "attention_rule lacks: lengths, sparse_ratio"),
    ],
)
def test_a_damaged_config_is_refused_by_entry(tmp_path, changes, match):
    data = json.loads((demo_folder() / "config.json").read_text()) | changes
    data = {key: value for key, value in data.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f"config.json.*{match}"):
        load_config(tmp_path)


def test_a_bundle_from_before_rules_of_attention_has_the_papers(tmp_path):
    data = json.loads((demo_folder() / "config.json").read_text())
    assert data.pop("attention_rule") != RULE
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert load_config(tmp_path).attention_rule == AttentionRule()


def test_a_folder_that_is_no_bundle_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no config.json: not a bundle"):
        load_config(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="audiolitefocus convert"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "name, changes, match",
    [
        ("gpt2", {"n_head": -1}, "n_head = -1: must lie in 0 to"),
        ("gpt2", {"eos_token_id": -2}, "eos_token_id = -2: must lie in -1 to"),
        ("t5", {"d_model": 2**40}, "d_model = 1099511627776: must lie in"),
        (
            "clap",
            {"audio_config": {"spec_size": 2**19}},
            "spec_size = 524288: .* 0 to 4096",
        ),
        (
            "clap",
            {"text_config": {"num_hidden_layers": 200}},
            "the weights are 7 tensors",
        ),
    ],
)
def test_sizes_that_no_tower_has_are_refused(name, changes, match):
    with pytest.raises(ValueError, match=match):
        transformers_config(name, changes, tensors=7)


def test_a_missing_token_may_have_the_id_minus_one():
    assert transformers_config("gpt2", {"eos_token_id": -1, "n_layer": 2}, tensors=7).n_layer == 2


def test_a_json_file_is_read_only_if_it_is_small_and_an_object(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(ValueError, match="x.json: no such file"):
        read_json(path)
    for text, match in (("{", "not JSON"), ("[]", "no JSON object"), ("[" * 10**5, "not JSON")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"x.json is {match}"):
            read_json(path)
    with path.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(ValueError, match="too large for a config"):
        read_json(path)


def test_bundles_of_format_1_load(tmp_path):
    shutil.copyfile(demo_folder() / "config.json", tmp_path / "config.json")
    assert load_config(tmp_path).name == "demo"


def test_configs_and_their_limits_are_checked_without_torch():
    code = (
        "import sys; from audiolitefocus import config; from audiolitefocus.checkpoints import "
        "limits; limits.check_config(config.BundleConfig(), 'x'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
