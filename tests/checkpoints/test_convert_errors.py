"""Sources that cannot be converted are refused in one line, and nothing is left behind."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiolitefocus.checkpoints.convert import convert_checkpoint
from tests.support.checkpoints import fails, linked

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(diffusers_folder, tmp_path) -> Path:
    """A source that a test may change."""
    return linked(diffusers_folder, tmp_path / "source")


def rewrite(path: Path, content: bytes | str) -> None:
    path.unlink()
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def edit_json(path: Path, **changes) -> None:
    rewrite(path, json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path: Path, edit) -> None:
    tensors = load_file(path)
    edit(tensors)
    path.unlink()
    save_file(tensors, path)


# Arguments and places


@pytest.mark.parametrize(
    "options, match",
    [
        ({"dtype": "float8"}, "float8.*float32"),
        ({"dtype": torch.int8}, "int8.*float32"),
        ({"heads": "many"}, "many.*trained"),
        ({"tokenizers": "nowhere"}, "nowhere.*clap/"),
    ],
)
def test_invalid_options_are_refused(diffusers_folder, tmp_path, options, match):
    fails(diffusers_folder, tmp_path, match, **options)


@pytest.mark.parametrize("source", ["nowhere", "./no/where", "a/b/c", "/no/where", "no/file.pth"])
def test_a_source_that_does_not_exist_is_refused(tmp_path, source):
    fails(source, tmp_path, "no such file or folder.*OWNER/NAME")


def test_a_repository_out_of_reach_is_refused(tmp_path):
    fails("nobody/nothing", tmp_path, "nobody/nothing.*cache", OSError)


def test_a_bundle_is_refused_as_a_source(tiny_bundle, tmp_path):
    fails(tiny_bundle, tmp_path, "bundle already")


def test_only_a_bundle_is_replaced_and_only_by_force(diffusers_folder, tiny_bundle, tmp_path):
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (bundle / "stale.txt").write_text("old")
    fails(diffusers_folder, tmp_path, "--force")
    convert_checkpoint(diffusers_folder, bundle, force=True)
    assert not (bundle / "stale.txt").exists()
    shutil.rmtree(bundle)
    bundle.mkdir()
    (bundle / "thesis.txt").write_text("mine")
    fails(diffusers_folder, tmp_path, "not a bundle", force=True)


def test_a_failed_conversion_keeps_the_old_bundle(folder, tiny_bundle, tmp_path):
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    edit_weights(
        folder / "vocoder/model.safetensors", lambda t: t["conv_pre.bias"].fill_(torch.nan)
    )
    fails(folder, tmp_path, "NaN or infinite entries in vocoder: conv_pre.bias$", force=True)
    for path in tiny_bundle.rglob("*.*"):
        assert path.read_bytes() == (bundle / path.relative_to(tiny_bundle)).read_bytes()


def test_the_parent_of_the_destination_must_exist(diffusers_folder, tmp_path):
    with pytest.raises(ValueError, match="create it first"):
        convert_checkpoint(diffusers_folder, tmp_path / "no" / "bundle")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_parent_is_an_error(diffusers_folder, tmp_path):
    place = tmp_path / "place"
    place.mkdir(mode=0o500)
    with pytest.raises(OSError, match="place"):
        convert_checkpoint(diffusers_folder, place / "bundle")


def test_a_full_disk_is_found_before_writing(diffusers_folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    fails(diffusers_folder, tmp_path, "1,000 bytes free", OSError)


# Folders in diffusers layout


def test_missing_components_are_listed(folder, tmp_path):
    shutil.rmtree(folder / "vae")
    shutil.rmtree(folder / "scheduler")
    fails(folder, tmp_path, "vae/config.json, scheduler/scheduler_config.json")


def test_a_component_without_weights_is_refused(folder, tmp_path):
    (folder / UNET_FILE).unlink()
    fails(folder, tmp_path, "unet has no weights")


def test_other_pipelines_are_refused(folder, tmp_path):
    edit_json(folder / "model_index.json", _class_name="AudioLDMPipeline")
    fails(folder, tmp_path, "is a AudioLDMPipeline: only AudioLDM2Pipeline")


def test_speech_checkpoints_are_refused(folder, tmp_path):
    edit_json(folder / "text_encoder_2/config.json", model_type="vits")
    fails(folder, tmp_path, "VITS, which reads phonemes")


@pytest.mark.parametrize(
    "file, changes, match",
    [
        ("unet/config.json", {"act_fn": "gelu"}, "unet/config.json.*act_fn = 'gelu'"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type"),
        ("unet/config.json", {"freq_shift": 1}, "freq_shift = 1"),
        ("unet/config.json", {"block_out_channels": "abc"}, "block_out_channels = 'abc'"),
        ("unet/config.json", {"block_out_channels": [32, 64]}, "down_block_types"),
        ("unet/config.json", {"layers_per_block": [1, 2, 2]}, "layers_per_block.*differs"),
        ("unet/config.json", {"cross_attention_dim": [[None, 64, 32]] * 3}, "T5.*40 against 32"),
        ("unet/config.json", {"cross_attention_dim": [[[None, 64]]] * 3}, "loa_dim = .None, 64."),
        ("unet/config.json", {"down_block_types": ["DownBlock2D"] * 3}, "mirror each other"),
        ("vae/config.json", {"shift_factor": 0.1}, "shift_factor = 0.1"),
        ("vae/config.json", {"scaling_factor": 0}, "scale_factor = 0"),
        ("vocoder/config.json", {"normalize_before": True}, "normalize_before = True"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}, "beta_schedule"),
        ("projection_model/config.json", {"use_learned_position_embedding": True}, "learned_pos"),
        ("language_model/config.json", {"n_embd": 128}, "source: .*towers.*GPT-2: 128 against 64"),
        ("text_encoder/config.json", {"text_config": {"hidden_size": "x"}}, "no ClapModel"),
    ],
)
def test_settings_that_are_not_implemented_are_refused_by_name(
    folder, tmp_path, file, changes, match
):
    edit_json(folder / file, **changes)
    fails(folder, tmp_path, match)


def test_a_config_that_is_not_json_is_refused(folder, tmp_path):
    rewrite(folder / "vae/config.json", "{")
    fails(folder, tmp_path, "vae/config.json is not JSON")


def test_all_wrong_keys_are_listed(folder, tmp_path):
    def spoil(tensors):
        tensors["adapter.weight"] = torch.zeros(2)
        del tensors["conv_in.bias"]
        tensors["conv_out.bias"] = torch.zeros(9)
        tensors["mid_block.attentions.0.proj_in.weight"] = torch.zeros(96, 96, 3, 3)

    edit_weights(folder / UNET_FILE, spoil)
    match = (
        r"in 4 keys: missing unet: conv_in.bias; unknown unet: adapter.weight; "
        r"unet: mid_block.attentions.0.proj_in.weight gives \[96, 864\], expected \[96, 96\]; "
        r"unet: conv_out.bias gives \[9\], expected \[8\]"
    )
    fails(folder, tmp_path, match)


def test_values_beyond_half_precision_are_refused(folder, tmp_path):
    edit_weights(folder / UNET_FILE, lambda tensors: tensors["conv_in.bias"].fill_(1e6))
    fails(folder, tmp_path, r"unet: conv_in.bias \(beyond torch.float16\)", dtype="float16")


@pytest.mark.parametrize("spoil", ["truncated", "flipped", "empty"])
def test_damaged_safetensors_are_refused(folder, tmp_path, spoil):
    content = (folder / UNET_FILE).read_bytes()
    damaged = {"truncated": content[:-1000], "flipped": content[:9] + b"\xff" + content[10:]}
    rewrite(folder / UNET_FILE, damaged.get(spoil, b""))
    fails(folder, tmp_path, "diffusion_pytorch_model.safetensors is damaged")


def test_missing_and_misplaced_shards_are_refused(folder, tmp_path):
    weights = folder / UNET_FILE
    tensors = load_file(weights)
    weights.unlink()
    index = weights.with_name("diffusion_pytorch_model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "one-00001.safetensors")}))
    fails(folder, tmp_path, "lacks one-00001.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "../vae/x.safetensors")}))
    fails(folder, tmp_path, "outside its folder: ../vae/x.safetensors")
    index.write_text(json.dumps({"weight_map": {**dict.fromkeys(tensors, "one"), "more": "one"}}))
    torch.save(tensors, weights.with_name("one"))
    fails(folder, tmp_path, "no shard holds: more")
