"""All spellings of a checkpoint give one bundle: pickles, half precision, shards, old names."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Model

from audiolitefocus.checkpoints.convert import convert_checkpoint
from tests.support.checkpoints import WEIGHTS, digests, linked
from tests.support.original_layout import original_checkpoint

ROUNDING = 2**-10  # half precision keeps 11 bits


@pytest.fixture
def folder(diffusers_folder, tmp_path) -> Path:
    """A source that a test may change."""
    return linked(diffusers_folder, tmp_path / "source")


def test_pickles_and_shards_give_the_same_bundle(tiny_pipeline, tiny_bundle, tmp_path):
    expected = digests(tiny_bundle)
    tiny_pipeline.save_pretrained(tmp_path / "bin", safe_serialization=False)
    for component in ("text_encoder", "text_encoder_2", "language_model", "vocoder"):
        path = tmp_path / "bin" / component / "model.safetensors"  # transformers writes no .bin now
        torch.save(load_file(path), path.with_name("pytorch_model.bin"))
        path.unlink()
    tiny_pipeline.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    assert len(list((tmp_path / "shards" / "unet").glob("*-of-*.safetensors"))) > 5
    for kind in ("bin", "shards"):
        convert_checkpoint(tmp_path / kind, tmp_path / f"{kind}-bundle", heads="config")
        assert digests(tmp_path / f"{kind}-bundle") == expected


def test_half_precision_gives_the_same_up_to_rounding(tiny_pipeline, tiny_bundle, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    for path in (tmp_path / "half").rglob("*.fp16.safetensors"):
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    convert_checkpoint(tmp_path / "half", tmp_path / "bundle", dtype="float32")
    for name in WEIGHTS:
        half, full = load_file(tmp_path / "bundle" / name), load_file(tiny_bundle / name)
        torch.testing.assert_close(half, full, rtol=ROUNDING, atol=2**-24)


def test_a_language_model_without_head_gives_the_same_bundle(
    tiny_pipeline, folder, tiny_bundle, tmp_path
):
    shutil.rmtree(folder / "language_model")
    trunk = tiny_pipeline.language_model.transformer
    assert isinstance(trunk, GPT2Model)
    trunk.save_pretrained(folder / "language_model")
    convert_checkpoint(folder, tmp_path / "bundle", heads="config")
    assert digests(tmp_path / "bundle") == digests(tiny_bundle)


def test_old_names_of_the_autoencoder_give_the_same_bundle(folder, tiny_bundle, tmp_path):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, tensor in load_file(path).items():
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}", f"attentions.0.{name}")
        tensors[key] = tensor
    path.unlink()
    save_file(tensors, path)
    convert_checkpoint(folder, tmp_path / "bundle", heads="config")
    assert digests(tmp_path / "bundle") == digests(tiny_bundle)


def test_a_bare_state_dict_in_an_old_pickle_is_read(tiny_pipeline, tiny_bundle, tmp_path):
    """Without "state_dict", and in the format of before PyTorch 1.6."""
    path = tmp_path / "old.ckpt"
    torch.save(original_checkpoint(tiny_pipeline), path, _use_new_zipfile_serialization=False)
    config = convert_checkpoint(
        path, tmp_path / "bundle", cache_dir=tmp_path, local_files_only=True
    )
    assert config.files["unet.safetensors"] in (tiny_bundle / "config.json").read_text()


@pytest.mark.parametrize("spelling", ["weight_{}", "parametrizations.weight.original{}"])
def test_weight_norm_is_folded(tiny_pipeline, tiny_bundle, tmp_path, spelling):
    at = "first_stage_model.vocoder."
    names = ("g", "v") if spelling == "weight_{}" else ("0", "1")
    spelt = original_checkpoint(tiny_pipeline)
    for key in [key for key in spelt if key.startswith(at) and key.endswith(".weight")]:
        direction = spelt.pop(key)
        magnitude = direction.flatten(1).norm(dim=1).reshape(-1, 1, 1)
        stem = key.removesuffix("weight")
        spelt[stem + spelling.format(names[0])] = magnitude
        spelt[stem + spelling.format(names[1])] = 3 * direction
    path = tmp_path / "x.pth"
    torch.save(spelt, path)
    convert_checkpoint(
        path,
        tmp_path / "bundle",
        cache_dir=tmp_path,
        local_files_only=True,
    )
    found, expected = (
        load_file(b / "vocoder.safetensors") for b in (tmp_path / "bundle", tiny_bundle)
    )
    torch.testing.assert_close(found, expected)
