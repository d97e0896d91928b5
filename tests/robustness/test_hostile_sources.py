"""Damaged and malicious checkpoints: converted, or refused in one line with nothing left behind."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.checkpoints import linked
from tests.support.command import Result, assert_failed, run
from tests.support.hostile import (
    HOSTILE,
    PLACES,
    assert_ended_well,
    fuzz,
    replace,
    spoilt_json,
    spoilt_safetensors,
)

pytestmark = pytest.mark.usefixtures("little_memory")
SOURCES = ("unet", "vae", "vocoder", "projection_model", "text_encoder", "text_encoder_2")
SOURCE_FILES = (
    *(f"{name}/config.json" for name in (*SOURCES, "language_model")),
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json",
)


def convert(source: Path, tmp_path: Path) -> Result:
    """A conversion that ends well, and leaves nothing but its bundle, if that."""
    before = sorted(os.listdir(tmp_path))
    result = run("convert", source, "made", cwd=tmp_path)
    assert_ended_well(result)
    shutil.rmtree(tmp_path / "made", ignore_errors=result.returncode != 0)
    assert sorted(os.listdir(tmp_path)) == before
    return result


@fuzz
@given(st.sampled_from(SOURCE_FILES), PLACES, HOSTILE)
def test_spoilt_settings_of_a_source(diffusers_folder, tmp_path, name, path, value):
    source = linked(diffusers_folder, tmp_path / "source")
    replace(source / name, spoilt_json((source / name).read_bytes(), path, value))
    convert(source, tmp_path)


@fuzz
@given(data=st.data())
def test_spoilt_weights_of_a_source(data, diffusers_folder, tmp_path):
    source = linked(diffusers_folder, tmp_path / "source")
    weights = source / "vocoder" / "model.safetensors"
    replace(weights, data.draw(spoilt_safetensors(weights.read_bytes())))
    convert(source, tmp_path)


class Code:
    def __reduce__(self):
        return os.system, ("touch pwned",)


STRANGE = {
    "code": lambda: Code(),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.empty(2**40, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "stretched": lambda: torch.ones(1).expand(2**20, 2**20),
    "complex": lambda: torch.ones(3, dtype=torch.complex64),
    "8 bits": lambda: torch.ones(3).to(torch.float8_e4m3fn),
    "a number": lambda: 7,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("legacy", [True, False])
def test_strange_pickles_are_refused(kind, legacy, diffusers_folder, tmp_path):
    source = linked(diffusers_folder, tmp_path / "source")
    (source / "vocoder" / "model.safetensors").unlink()
    path, tensors = source / "vocoder" / "pytorch_model.bin", {"conv_pre.bias": STRANGE[kind]()}
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    assert_failed(convert(source, tmp_path))
    assert not list(tmp_path.rglob("pwned"))
