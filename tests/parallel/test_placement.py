"""Two kinds of device without memory, on any build: tensors of different ones never meet.

Under `FakeTensorMode` an operation on tensors of different devices is an error, and so is one that
reads a value, for which a GPU would be waited for. "meta" stands for the other device; the same for
CUDA is in tests/test_cuda_placement.py.
"""

import pytest
import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from audiolitefocus.checkpoints.bundle import cast
from audiolitefocus.config import ScheduleConfig
from audiolitefocus.diffusion.inpaint import KnownLatents
from audiolitefocus.diffusion.network import Network
from audiolitefocus.diffusion.noise import ClipNoise
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.unet import UNet
from audiolitefocus.options import GenerationOptions
from audiolitefocus.parallel.strategies import strategy
from tests.support.compare import seeded
from tests.support.denoising import CONFIG

CLIPS, FRAMES, STEPS = 2, 16, 4


def test_the_mode_refuses_what_it_is_used_for():
    with FakeTensorMode():
        there = torch.ones(3, device="meta")
        with pytest.raises(RuntimeError, match="device"):
            there + torch.ones(3)
        with pytest.raises(DataDependentOutputException):
            there.sum().item()


@pytest.mark.parametrize(
    "parallel, attention",
    [
        ("guidance", "tome"),
        ("batch", "dense"),
        ("asyncdiff:2:warmup=1:last=0", "dense"),
        ("asyncdiff:2:warmup=1:last=0:stride=2", "litefocus:0.2:levels=1-2:weight=1"),
    ],
)
def test_devices_exchange_what_they_need_and_wait_for_no_value(monkeypatch, parallel, attention):
    monkeypatch.setattr(fake_tensor, "CONSTANT_NUMEL_LIMIT", 0)
    options = GenerationOptions(
        num_inference_steps=STEPS,
        parallel=parallel,
        guidance_interval=(0.0, 0.75),
        init_audio="a.wav",
        strength=1.0,
    )
    fresh = ClipNoise([seeded(seed) for seed in range(CLIPS)], CLIPS)
    with FakeTensorMode(), torch.inference_mode():
        unets = [cast(UNet(CONFIG), torch.float32, device) for device in ("cpu", "meta", "cpu")]
        text = Condition(torch.empty(CLIPS, 8, 16), torch.empty(CLIPS, 3, 8))
        known = KnownLatents(torch.empty(1, 8, FRAMES, 16), torch.ones(FRAMES, dtype=torch.bool))
        steps = strategy(options.parallel)(
            [Network(unet, unet.evaluate) for unet in unets],
            torch.empty(CLIPS, 8, FRAMES, 16),
            text,
            text,
            options,
            ScheduleConfig(),
            attention=attention,
            fresh=fresh,
            known=known,
        )
        seen = [(made.device.type, made.dtype, made.shape) for made in steps]
    assert seen == [("cpu", torch.float32, (CLIPS, 8, FRAMES, 16))] * STEPS
