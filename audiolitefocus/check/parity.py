"""One evaluation of the UNet, against diffusers' with the same weights."""

import importlib.metadata
import importlib.util

import torch
from torch import nn

from audiolitefocus.check.model import TIMESTEP, Stages
from audiolitefocus.check.report import Row, Section, attempt
from audiolitefocus.checkpoints.export import export_tensors, unet_settings
from audiolitefocus.runtime import check_finite

# Norm of the difference over the norm. Sums in another order, with TF32 where convolutions of CUDA
# use it; in half precision, every layer is rounded by diffusers and not all of them here.
TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def check_parity(stages: Stages) -> Section:
    """Compare the UNet with diffusers', if that is installed."""
    if importlib.util.find_spec("diffusers") is None:
        return Section("Parity", [Row("unet", "not compared: pip install diffusers")])
    if stages.condition is None:
        return Section("Parity", [Row("unet", "not compared: it needs the text")])
    return Section("Parity", [attempt("unet", lambda: _compare(stages))])


@torch.inference_mode()
def _compare(stages: Stages) -> Row:
    from diffusers import AudioLDM2UNet2DConditionModel

    pipe, condition = stages.pipe, stages.condition
    assert condition is not None
    dtype, latents = pipe.unet.conv_in.weight.dtype, stages.latents()
    # 1. Ours
    with pipe.on_device(pipe.unet):
        ours = stages.evaluate(pipe.unet, latents).float()
    # 2. Theirs, of the same weights
    theirs = AudioLDM2UNet2DConditionModel.from_config(unet_settings(pipe.config.unet))
    theirs.load_state_dict(export_tensors("unet", pipe.unet, pipe.config, dtype))
    nn.Module.to(theirs, pipe.device, dtype).eval()  # its own warns of layers that it does not have
    t5 = None if condition.t5 is None else condition.t5.to(pipe.device, dtype)
    mask = None if condition.t5_mask is None else condition.t5_mask.to(pipe.device)
    expected = theirs(
        latents.to(dtype),
        torch.tensor(TIMESTEP, device=pipe.device),
        encoder_hidden_states=condition.loa.to(pipe.device, dtype),
        encoder_hidden_states_1=t5,
        encoder_attention_mask_1=mask,
    ).sample.float()
    # 3. How far apart
    check_finite("ours or theirs", ours - expected)
    error = float((ours - expected).norm() / expected.norm())
    version, allowed = importlib.metadata.version("diffusers"), TOLERANCES[dtype]
    text = f"relative difference {error:.2g} from diffusers {version}, {allowed:g} allowed"
    return Row("unet", text, ok=error <= allowed, values={"difference": error, "allowed": allowed})
