"""Weights files of a variant, as fp16: of a folder, a repository, and where there is none."""

import json
import shutil

import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline, convert_checkpoint
from audiolitefocus.checkpoints.hub import preferred_weights, wanted
from tests.support.checkpoints import diffusers_pipeline
from tests.support.command import assert_failed, run
from tests.support.hub_server import REPO, files_of, fill_cache


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A folder with weights in float32, and in float16 as the variant fp16."""
    pipeline, folder = diffusers_pipeline(), tmp_path_factory.mktemp("both") / "tiny"
    pipeline.save_pretrained(folder)
    pipeline.to(torch.float16).save_pretrained(folder, variant="fp16")
    return folder


def test_a_variant_is_preferred_to_everything_else():
    names = ["model.safetensors", "model.fp16.safetensors", "model.fp16.bin", "model.ema.bin"]
    assert preferred_weights(names) == ["model.safetensors"]
    assert preferred_weights(names, "fp16") == ["model.fp16.safetensors"]
    assert preferred_weights(names, "ema") == ["model.ema.bin"]
    assert preferred_weights(names, "none") == ["model.safetensors"]
    files = [f"unet/{name}" for name in (*names, "config.json")] + [
        "vae/config.json",
        "vae/model.bin",
    ]
    chosen = wanted(files, ["unet", "vae"], "fp16")  # a component without it has its others
    assert {"unet/model.fp16.safetensors", "vae/model.bin"} <= set(chosen)


@pytest.mark.parametrize("variant", ["none", "../x", 3])
def test_a_variant_that_nothing_has_is_an_error(both, tmp_path, variant):
    with pytest.raises(ValueError, match="variant .*(no weights file has it|must be a name)"):
        convert_checkpoint(both, tmp_path / "bundle", variant=variant)
    fill_cache(tmp_path, files_of(both))
    options = {"cache_dir": tmp_path, "local_files_only": True}
    with pytest.raises(ValueError, match=f"{REPO}.*variant"):
        AudioLDM2Pipeline.from_pretrained(REPO, variant=variant, **options)


def test_a_repository_has_a_bundle_for_each_variant(both, tmp_path):
    fill_cache(tmp_path, files_of(both))
    options = {"cache_dir": tmp_path, "local_files_only": True, "device": "cpu"}
    full, half = (
        AudioLDM2Pipeline.from_pretrained(REPO, variant=v, **options) for v in (None, "fp16")
    )
    assert half.folder.name == f"{full.folder.name}-fp16"
    weights = full.unet.state_dict()
    for key, weight in half.unet.state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, weights[key].half().float())
    sources = half.config.provenance["sha256"]
    assert sum(".fp16." in name for name in sources) == 7


def test_a_folder_on_the_command_line(both, tmp_path):
    assert run("convert", both, "half", "--variant", "fp16", cwd=tmp_path).returncode == 0
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in config["provenance"]["sha256"]
    assert_failed(run("convert", both, "x", "--variant", "no", cwd=tmp_path), "variant 'no'")


def test_a_bundle_has_no_variants(tiny_bundle, original_file, tmp_path):
    with pytest.raises(ValueError, match="variant 'fp16': a bundle has one set of weights"):
        AudioLDM2Pipeline.from_pretrained(tiny_bundle, variant="fp16")
    path = shutil.copy(original_file, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="variant 'fp16': .*x.pth has one set of weights"):
        convert_checkpoint(path, tmp_path / "bundle", variant="fp16")
