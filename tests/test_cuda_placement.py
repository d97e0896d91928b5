"""The CUDA path without a GPU: tensors that have a device and a shape, but no memory.

Under `FakeTensorMode` an operation whose tensors are on different devices is an error, and so is
everything that would wait for the GPU to read a value of it (`.item()`, a condition, a shape that
depends on data). It needs a CUDA build of PyTorch, and no GPU.
"""

import pytest
import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from audiolitefocus.checkpoints.bundle import TOWERS, cast, load_config
from audiolitefocus.checkpoints.towers import load_tokenizer, tower_class, transformers_config
from audiolitefocus.codec.decode import decode_mel, vocode
from audiolitefocus.config import demo_folder
from audiolitefocus.diffusion.denoise import denoise
from audiolitefocus.diffusion.inpaint import KnownLatents
from audiolitefocus.diffusion.network import Network
from audiolitefocus.diffusion.noise import ClipNoise
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.text_encoder import Projection, TextEncoder
from audiolitefocus.models.unet import UNet
from audiolitefocus.models.vae import VAE
from audiolitefocus.models.vocoder import HiFiGAN
from audiolitefocus.options import GenerationOptions
from audiolitefocus.parallel.strategies import strategy
from audiolitefocus.validation import read_json

pytestmark = pytest.mark.cuda_build

CONFIG = load_config(demo_folder())
CLIPS, FRAMES, ROWS, TOKENS = 2, 64, 16, 5
ATTENTIONS = (
    *("dense", "tome", "litefocus", "litefocus:0", "cross-frequency:0.2"),
    *("litefocus:0.1:uniform=true", "litefocus:0.1:duplicates=true", "litefocus:0.1:levels=1-3"),
)
OTHER_DTYPES = (torch.float32, torch.float16)


@pytest.fixture
def fake(monkeypatch):
    # The mode computes with tensors of one number, whose value it knows: without a GPU it cannot.
    monkeypatch.setattr(fake_tensor, "CONSTANT_NUMEL_LIMIT", 0)
    with FakeTensorMode() as mode, torch.inference_mode():
        yield mode


def on_cuda(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network as `load_component` places it."""
    return cast(network, dtype, "cuda")


def condition() -> Condition:
    widths = CONFIG.projection
    loa = torch.empty(CLIPS, 8, widths.loa_dim, device="cuda")
    t5 = torch.empty(CLIPS, TOKENS, widths.t5_dim, device="cuda")
    return Condition(loa, t5, torch.ones(CLIPS, TOKENS, device="cuda"))


def recording(kept: bool) -> KnownLatents:
    """As `Recording.encode` returns it: latents of the VAE's device, a mask of the CPU."""
    latents = torch.empty(1, 8, FRAMES, ROWS, device="cuda")
    return KnownLatents(latents, torch.ones(FRAMES, dtype=torch.bool) if kept else None)


def test_the_mode_refuses_what_a_gpu_would_refuse_or_wait_for(fake):
    there = torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="device"):
        there + torch.ones(3)
    with pytest.raises(DataDependentOutputException):
        there.sum().item()
    with pytest.raises(DataDependentOutputException):
        bool(there.all())


@pytest.fixture(scope="module")
def noise() -> ClipNoise:
    """Made outside of the mode, in which seeds could not be drawn."""
    return ClipNoise(None, CLIPS)


@pytest.mark.parametrize(
    "attention, dtype",
    [(attention, torch.bfloat16) for attention in ATTENTIONS]
    + [(attention, dtype) for attention in ("dense", "litefocus") for dtype in OTHER_DTYPES],
)
@pytest.mark.parametrize("known", ["nothing", "a variation", "a part"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "lcm"])
def test_denoising_stays_on_the_device(noise, fake, attention, sampler, known, dtype):
    unet = on_cuda(UNet(CONFIG.unet), dtype)
    options = {"num_inference_steps": 3, "sampler": sampler, "attention": attention}
    if known != "nothing":
        options |= {"init_audio": "a.wav", "strength": 0.7}
    latents = torch.empty(CLIPS, 8, FRAMES, ROWS)
    steps = denoise(
        unet,
        latents,
        condition(),
        condition(),
        GenerationOptions(**options),
        CONFIG.schedule,
        attention=attention,
        fresh=noise,
        known=None if known == "nothing" else recording(known == "a part"),
    )
    seen = [(made.device.type, made.dtype, made.shape) for made in steps]
    assert seen == [("cuda", torch.float32, latents.shape)] * (3 if known == "nothing" else 2)


def test_reuse_and_steps_without_guidance_stay_on_the_device(noise, fake):
    unet = on_cuda(UNet(CONFIG.unet), torch.bfloat16)
    options = GenerationOptions(
        num_inference_steps=8, reuse="deepcache:2:start=0:order=1", guidance_interval=(0.2, 0.7)
    )
    latents = torch.empty(CLIPS, 8, FRAMES, ROWS)
    arguments = latents, condition(), condition(), options, CONFIG.schedule
    seen = [made.device.type for made in denoise(unet, *arguments, fresh=noise)]
    assert seen == ["cuda"] * 8


@pytest.mark.parametrize("attention", ["dense", "tome", "litefocus:0.1:levels=1-2:weight=1"])
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize(
    "parallel", ["guidance", "batch", "asyncdiff:2:warmup=1", "asyncdiff:2:warmup=1:stride=2"]
)
def test_several_devices_exchange_and_never_wait(noise, fake, parallel, sampler, attention):
    """Each tensor meets those of its own device alone, and the one thread reads no value."""
    devices = ("cuda:0", "cuda:1", "cuda:2")
    unets = [cast(UNet(CONFIG.unet), torch.bfloat16, device) for device in devices]
    networks = [Network(unet, unet.evaluate) for unet in unets]
    options = GenerationOptions(
        num_inference_steps=8,
        sampler=sampler,
        parallel=parallel,
        guidance_interval=(0.0, 0.8),
        init_audio="a.wav",
        strength=1.0,
    )
    latents = torch.empty(CLIPS, 8, FRAMES, ROWS)
    steps = strategy(options.parallel)(
        networks,
        latents,
        condition(),
        condition(),
        options,
        CONFIG.schedule,
        attention=attention,
        fresh=noise,
        known=recording(kept=True),
    )
    seen = [(str(made.device), made.dtype, made.shape) for made in steps]
    assert seen == [("cuda:0", torch.float32, latents.shape)] * 8


@pytest.mark.parametrize("decode", ["whole", "tiled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, *OTHER_DTYPES])
def test_decoding_stays_on_the_device(fake, dtype, decode):
    vae, vocoder = on_cuda(VAE(CONFIG.vae), dtype), on_cuda(HiFiGAN(CONFIG.vocoder), dtype)
    latents = torch.empty(CLIPS, 8, 400, ROWS, device="cuda")
    blocks = list(vocode(vocoder, decode_mel(vae, latents, decode=decode)))
    assert {(block.device.type, block.dtype) for block in blocks} == {("cuda", torch.float32)}
    hop = CONFIG.vocoder.hop_length * CONFIG.vae.downsampling
    assert sum(block.shape[1] for block in blocks) >= latents.shape[2] * hop


def test_encoding_a_recording_stays_on_the_device(fake):
    vae = on_cuda(VAE(CONFIG.vae), torch.bfloat16)
    mean, log_variance = vae.encode(torch.empty(1, 4 * FRAMES, 64, device="cuda"))
    assert mean.device.type == log_variance.device.type == "cuda"
    assert mean.dtype == torch.float32


@pytest.fixture
def text() -> TextEncoder:
    """Built outside of the mode: CLAP's constructor reads values of tensors."""
    folder = demo_folder()
    configs = {
        name: transformers_config(name, read_json(folder / name / "config.json"), 10**6)
        for name in TOWERS
    }
    return TextEncoder(
        **{name: tower_class(name)(configs[name]).eval() for name in TOWERS},
        projection=Projection(CONFIG.projection),
        limits=CONFIG.text,
        load_tokenizer=lambda name: load_tokenizer(folder, name),
        load_feature_extractor=lambda: None,
    )


@pytest.mark.parametrize("together", [False, True])
def test_text_is_encoded_on_the_device(text, fake, together):
    for module in text.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                tensors[name] = None if tensor is None else fake.from_tensor(tensor).to("cuda")
    made = text.encode(["rain", "a bell over rain"], pad_together=together)
    for mode in ("trained", "empty_prompt"):
        negative = text.negative(None, made, mode)
        tensors = (made.loa, made.t5, made.t5_mask, negative.loa, negative.t5, negative.t5_mask)
        assert {tensor.device.type for tensor in tensors} == {"cuda"}
