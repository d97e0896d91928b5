"""Original checkpoints that cannot be converted are refused in one line."""

import pickle
from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import fails
from tests.support.original_layout import original_checkpoint


@pytest.fixture(scope="module")
def tensors(tiny_pipeline) -> dict[str, torch.Tensor]:
    return original_checkpoint(tiny_pipeline)


def save(tensors, path: Path) -> Path:
    torch.save(tensors, path)
    return path


def test_unknown_and_missing_keys_are_listed(tensors, tmp_path):
    spoilt = {**tensors, "surprise": torch.zeros(1), "model.diffusion_model.film": torch.zeros(1)}
    del spoilt["clap.model.logit_scale_a"]
    match = (
        "3 keys: unknown surprise; unknown model.diffusion_model.film; "
        "missing clap.model.logit_scale_a"
    )
    fails(save(spoilt, tmp_path / "x.pth"), tmp_path, match)


def test_weight_norm_that_does_not_fit_is_refused(tensors, tmp_path):
    at = "first_stage_model.vocoder.conv_pre."
    spoilt = {
        **tensors,
        at + "weight_g": torch.ones(3, 1, 1),
        at + "weight_v": torch.ones(64, 32, 7),
    }
    del spoilt[at + "weight"]
    match = r"conv_pre.weight_v is \[3, 1, 1\] and \[64, 32, 7\], expected \[64, 32, 7\]"
    fails(save(spoilt, tmp_path / "x.pth"), tmp_path, match)


@pytest.mark.parametrize(
    "missing, match",
    [
        ("scale_factor", "no scale_factor"),
        ("cond_stage_models.1.", "nothing under cond_stage_models.1.model."),
        ("first_stage_model.vocoder.conv_pre", "vocoder.conv_pre.weight is missing"),
        ("model.diffusion_model.input_blocks.4", "levels differ in their residual blocks"),
    ],
)
def test_missing_parts_are_named(tensors, tmp_path, missing, match):
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(missing)}
    fails(save(kept, tmp_path / "x.pth"), tmp_path, match)


def test_speech_checkpoints_are_refused(tensors, tmp_path):
    inner = "cond_stage_models.0.cond_stage_models.1.learnable_positional_embedding"
    fails(save({**tensors, inner: torch.zeros(1)}, tmp_path / "x.pth"), tmp_path, "phonemes")


def test_heads_of_the_config_need_a_config(original_file, tmp_path):
    fails(original_file, tmp_path, "has no unet/config.json", heads="config")


class Code:
    def __reduce__(self):
        return print, ("this ran",)


@pytest.mark.parametrize("protocol", [2, "zip"])
def test_code_in_a_pickle_is_refused(tmp_path, protocol):
    path = tmp_path / "x.pth"
    if protocol == "zip":
        torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Code()}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Code()}, protocol=protocol))
    fails(path, tmp_path, "pickled objects.*print.*refused")


@pytest.mark.parametrize("spoil", ["truncated", "flipped", "text", "empty"])
def test_damaged_pickles_are_refused(original_file, tmp_path, spoil):
    content = original_file.read_bytes()[: 1 << 20] if spoil == "truncated" else b""
    content = {"flipped": b"\0" + original_file.read_bytes()[1:], "text": b"x marks"}.get(
        spoil, content
    )
    (tmp_path / "x.pth").write_bytes(content)
    fails(tmp_path / "x.pth", tmp_path, "x.pth is damaged or not a PyTorch file")


@pytest.mark.parametrize(
    "content, match",
    [([1, 2], "a list"), ({}, "a dict"), ({"state_dict": {"a": 1}}, "no tensors: a")],
)
def test_files_without_tensors_are_refused(tmp_path, content, match):
    fails(save(content, tmp_path / "x.pth"), tmp_path, match)
