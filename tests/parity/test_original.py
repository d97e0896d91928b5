"""A checkpoint with exactly the keys and shapes of the published audioldm2-full.pth."""

import shutil

import pytest
import torch
from diffusers import AudioLDM2UNet2DConditionModel
from torch import Tensor

from audiolitefocus.checkpoints.bundle import TOWERS, load_component
from audiolitefocus.checkpoints.convert import convert_checkpoint
from audiolitefocus.checkpoints.towers import load_tower
from tests.support.checkpoints import FULL_UNET, NETWORKS, UNET
from tests.support.compare import compare_unets
from tests.support.original_layout import extra_tensors, published_keys, unet_names


def random_tensors(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Random weights by which signals keep their size; zeros for buffers that are computed."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"scale_factor": torch.tensor(0.9)}
    for key, shape in shapes.items():
        if key.endswith(("relative_position_index", "num_batches_tracked")):
            tensors[key] = torch.zeros(shape, dtype=torch.long)
        elif key not in tensors:
            noise = torch.randn(shape, generator=generator)
            size = (shape[0] / noise.numel()) ** 0.5 if len(shape) > 1 else 0.1
            tensors[key] = noise.mul_(size) if len(shape) > 1 else 1 + noise.clamp_(-3, 3) * size
    return tensors


@pytest.fixture
def checkpoint(tmp_path):
    """A file that is deleted after the test with what was made from it: pytest would keep 9 GB."""
    path = tmp_path / "audioldm2-full.pth"
    tensors = random_tensors(published_keys()["audioldm2-full"])
    torch.save({"state_dict": extra_tensors(tensors) | tensors}, path)
    yield path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_a_published_checkpoint_converts_and_equals_diffusers(checkpoint, tmp_path):
    bundle = tmp_path / "audioldm2"
    convert_checkpoint(checkpoint, bundle, cache_dir=tmp_path, local_files_only=True)
    for name in NETWORKS:
        load_component(bundle, name)
    for name in TOWERS:
        load_tower(bundle, name)
    tensors = torch.load(checkpoint, mmap=True, weights_only=True)["state_dict"]
    with torch.device("meta"):
        theirs = AudioLDM2UNet2DConditionModel(**UNET | FULL_UNET)
    state = {key: tensors[name] for key, name in unet_names(theirs).items()}
    theirs.load_state_dict(state, assign=True)
    network = load_component(bundle, "unet")
    compare_unets(theirs.eval(), network, batch=2, length=16, rows=16, tokens=9)
