"""Who is timed: one guided evaluation of audioldm2-full's UNet, random weights, one clip.

What is constant over a denoising loop is prepared before, where the contender can: for ours, the
keys and values of the text and the time embeddings. Drawing fresh indices is part of every
evaluation. The others are given the clip's latents twice, as their own loops do."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor

from audiolitefocus.attention.modules import SelfAttention
from audiolitefocus.attention.plan import Attend
from audiolitefocus.attention.settings import Attention, LiteFocus, parse_attention
from audiolitefocus.config import UNetConfig
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.layers import StepInputs, to_channels_last
from audiolitefocus.models.unet import UNet
from scripts.benchmark.operations import operations
from scripts.benchmark.written_out import authors_attention, naive_attention

TRAINED_SECONDS = 10.24
BATCH, T5_TOKENS, STEP = 2, 16, 500
OTHERS = ("diffusers", "diffusers-compiled", "authors", "naive")  # all else is ours
CONTENDERS = ("diffusers", "dense", "litefocus", "auto", "tome", *OTHERS[1:])
DIFFUSERS = {  # audioldm2-full as trained; everything else is the class's default
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": (128, 256, 384, 640),
    "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
    "up_block_types": (*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
    "cross_attention_dim": [[None, 768, 1024]] * 4,
    "attention_head_dim": (4, 8, 12, 20),
}


def latent_frames(seconds: float) -> int:
    """25 a second, rounded up to a multiple of 8."""
    return -(-round(25 * seconds) // 8) * 8


def attention_of(name: str, seconds: float) -> Attention:
    """How a contender of ours attends: as on the command line, "litefocus:0:levels=1-2" say."""
    if name == "auto":
        return "dense" if seconds <= TRAINED_SECONDS else LiteFocus.for_duration(seconds)
    if name == "authors":
        return LiteFocus(sparse_ratio=0.1, uniform=True, duplicates=True)
    return "dense" if name in OTHERS else parse_attention(name)


def clips(name: str) -> int:
    """How many latents a contender is given: the clip's, or those of both halves of the batch."""
    return BATCH if name.startswith(OTHERS) else 1


def weights_bytes(name: str, seconds: float, itemsize: int) -> int:
    """What the written-out attention weights of a contender take: scores and their softmax."""
    tokens = latent_frames(seconds) // 2 * 8
    if name == "naive":
        return 2 * itemsize * BATCH * 8 * tokens**2
    if name == "authors":  # level 2, dense, or level 1, row and sample
        level_1, level_2 = 8 * tokens * (tokens // 8 + tokens // 10), 12 * (tokens // 4) ** 2
        return 3 * itemsize * BATCH * max(level_1, level_2)
    return 0


class Models:
    """The networks of one dtype, and contenders' evaluations made from them."""

    def __init__(self, device: str, dtype: torch.dtype, mode: str):
        self.device, self.dtype, self.mode = device, dtype, mode

    @cached_property
    def unet(self) -> UNet:
        torch.manual_seed(0)
        unet = UNet(UNetConfig()).eval().to(self.device, self.dtype)
        to_channels_last(unet)
        return unet

    @cached_property
    def diffusers(self) -> torch.nn.Module:
        """Raises ImportError where diffusers is not installed."""
        from diffusers import AudioLDM2UNet2DConditionModel

        torch.manual_seed(0)
        unet: Any = AudioLDM2UNet2DConditionModel(**DIFFUSERS)
        return unet.eval().to(self.device, self.dtype)

    def inputs(self, seconds: float) -> tuple[Tensor, Condition]:
        generator = torch.Generator().manual_seed(0)
        shapes = (1, 8, latent_frames(seconds), 16), (BATCH, 8, 768), (BATCH, T5_TOKENS, 1024)
        latents, loa, t5 = (
            torch.randn(shape, generator=generator).to(self.device, self.dtype) for shape in shapes
        )
        return latents, Condition(loa, t5, torch.ones(BATCH, T5_TOKENS, device=self.device))

    def evaluation(self, name: str, seconds: float) -> Callable[[], Tensor]:
        """One denoising step's evaluation by a contender of `CONTENDERS`, or "NAME-compiled"."""
        if name.startswith("diffusers"):
            return self._theirs(seconds, compiled=name.endswith("-compiled"))
        return self._ours(name.removesuffix("-compiled"), seconds, name.endswith("-compiled"))

    def _ours(self, name: str, seconds: float, compiled: bool) -> Callable[[], Tensor]:
        unet, attention = self.unet, attention_of(name, seconds)
        latents, condition = self.inputs(seconds)
        latents = latents.repeat(clips(name), 1, 1, 1)
        with torch.inference_mode():
            cross_kv, mask = unet.cross_kv(condition)
            time_biases = unet.time_biases(torch.tensor(STEP))
        evaluate = self._compiled(unet.evaluate) if compiled else unet.evaluate
        generator = torch.Generator().manual_seed(0)

        def step() -> Tensor:
            attend = unet.plan(attention, latents, generator)
            if name in ("authors", "naive"):
                attend = written_out(unet, attend)
            return evaluate(latents, StepInputs(time_biases, cross_kv, mask, attend))

        return step

    def _theirs(self, seconds: float, compiled: bool) -> Callable[[], Tensor]:
        unet = self._compiled(self.diffusers) if compiled else self.diffusers
        latents, condition = self.inputs(seconds)
        latents = latents.repeat(BATCH, 1, 1, 1)
        timestep = torch.tensor(STEP, device=self.device)
        return lambda: unet(
            latents,
            timestep,
            encoder_hidden_states=condition.loa,
            encoder_hidden_states_1=condition.t5,
            encoder_attention_mask_1=condition.t5_mask,
            return_dict=False,
        )[0]

    def _compiled(self, function: Callable) -> Callable:
        torch.compiler.allow_in_graph(rearrange)
        return torch.compile(function, dynamic=False, mode=self.mode)


def written_out(unet: UNet, plan: dict[SelfAttention, Attend]) -> dict[SelfAttention, Attend]:
    """The same plan with weights written out: the authors' LiteFocus for it, naive elsewhere."""
    modules = [module for module in unet.modules() if isinstance(module, SelfAttention)]
    return {
        module: partial(
            authors_attention, sampled=cast(partial, plan[module]).keywords["compensation"]
        )
        if module in plan
        else naive_attention
        for module in modules
    }


def flops(name: str, seconds: float, device: str = "cpu") -> int:
    """Floating-point operations of one evaluation in a loop."""
    # Ours upsamples by fewer products on CPUs; "meta" stands for all else.
    plain = device != "cpu" or name.startswith("diffusers")
    return operations(
        UNetConfig(),
        (clips(name), 8, latent_frames(seconds), 16),
        attention_of(name.removesuffix("-compiled"), seconds),
        branches=BATCH // clips(name),
        t5_tokens=T5_TOKENS,
        device="meta" if plain else "cpu",
    ).total
