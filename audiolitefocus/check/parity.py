"""One evaluation of the UNet, against diffusers' with the same weights."""

import copy
import importlib.metadata
import importlib.util

import torch

from audiolitefocus.check.model import TIMESTEP, Stages
from audiolitefocus.check.report import Row, Section, attempt
from audiolitefocus.checkpoints.bundle import cast
from audiolitefocus.checkpoints.export import export_tensors, unet_settings
from audiolitefocus.runtime import check_finite

# Norm of the difference over the norm: sums in another order, and with TF32 where CUDA uses it.
# Other attention heads than trained make 0.01 or more on the demo, and 0.3 on random weights.
TOLERANCE = 1e-3


def check_parity(stages: Stages) -> Section:
    """Compare the UNet with diffusers', if that is installed."""
    if importlib.util.find_spec("diffusers") is None:
        return Section("Parity", [Row("unet", "not compared: pip install diffusers")])
    if stages.pipe.config.unet.absent:
        return Section("Parity", [Row("unet", "not compared: diffusers has no pruned UNets")])
    if stages.condition is None:
        return Section("Parity", [Row("unet", "not compared: it needs the text")])
    return Section("Parity", [attempt("unet", lambda: _compare(stages))])


@torch.inference_mode()
def _compare(stages: Stages) -> Row:
    from diffusers import AudioLDM2UNet2DConditionModel

    pipe, condition = stages.pipe, stages.condition
    assert condition is not None
    device, latents = pipe.device, stages.latents()
    # 1. Ours, in float32: rounding to half precision would hide smaller faults
    unet = cast(copy.deepcopy(pipe.unet), torch.float32, device)
    ours = stages.evaluate(unet, latents)
    # 2. Theirs, of the same weights
    theirs = AudioLDM2UNet2DConditionModel.from_config(unet_settings(pipe.config.unet))
    theirs.load_state_dict(export_tensors("unet", unet, pipe.config, torch.float32))
    theirs = theirs.to(device).eval()
    tokens = (condition.loa, condition.t5, condition.t5_mask)
    loa, t5, mask = (None if given is None else given.to(device) for given in tokens)
    expected = theirs(
        latents,
        torch.tensor(TIMESTEP, device=device),
        encoder_hidden_states=loa,
        encoder_hidden_states_1=t5,
        encoder_attention_mask_1=mask,
    ).sample
    # 3. How far apart
    check_finite("ours or theirs", ours - expected)
    error = float((ours - expected).norm() / expected.norm())
    version = importlib.metadata.version("diffusers")
    text = f"{error:.2g} from diffusers {version}, relative, in float32; {TOLERANCE:g} is allowed"
    return Row("unet", text, ok=error <= TOLERANCE, values={"difference": error})
