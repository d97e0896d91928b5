"""The AudioLDM2 denoiser: a UNet with several transformers after every residual block."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolitefocus.attention.modules import CrossAttention, SelfAttention
from audiolitefocus.attention.plan import Attend, plan_attention, sample_indices
from audiolitefocus.attention.settings import Attention, parse_attention
from audiolitefocus.config import UNetConfig
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.layers import (
    Conv2d,
    Downsample,
    ResnetBlock,
    StepInputs,
    TimeEmbedding,
    Transformer2D,
    Upsample,
    repeat_for_guidance,
)


class Absent(nn.Module):
    """Stands for a transformer that was pruned, so that those after it keep their names."""

    def forward(self, x: Tensor, inputs: StepInputs) -> Tensor:
        return x


class Stage(nn.Module):
    """One residual block and, on an attending level, one transformer for each context.

    `name` is that of the stage in the UNet, by which `UNetConfig.absent` knows its transformers.
    """

    def __init__(self, name: str, in_channels: int, level: int, config: UNetConfig):
        super().__init__()
        channels, groups = config.channels[level], config.norm_groups
        widths = {"self": None, "loa": config.loa_dim, "t5": config.t5_dim}
        contexts = config.contexts if level in config.attention_levels else ()
        self.resnet = ResnetBlock(
            in_channels, channels, groups, time_channels=4 * config.channels[0]
        )
        self.transformers = nn.ModuleList(
            Absent()
            if f"{name}.transformers.{number}" in config.absent
            else Transformer2D(
                channels, config.heads[level], groups, config.depth, context, widths[context]
            )
            for number, context in enumerate(contexts)
        )

    def forward(self, x: Tensor, inputs: StepInputs, skip: Tensor | None = None) -> Tensor:
        return inputs.output_of(self, lambda: self.compute(x, inputs, skip))

    def compute(self, x: Tensor, inputs: StepInputs, skip: Tensor | None) -> Tensor:
        """The output; going up, with the skip connection beside the input."""
        if skip is not None:
            # skips from before the text have the batch once
            x = torch.cat([x, repeat_for_guidance(skip, len(x))], dim=1)
        x = residual(self.resnet, x, inputs)
        for transformer in self.transformers:
            x = transformer(x, inputs)
        return x


class Level(nn.Module):
    """The stages at one resolution, and the step to the next one (if any)."""

    stages: Any  # mypy does not know what a ModuleList holds

    def __init__(self, stages: list[Stage], resample: Downsample | Upsample | None):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.resample = resample


class Middle(nn.Module):
    """The bottom: a stage and one more residual block."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        level, channels = len(config.channels) - 1, config.channels[-1]
        self.stage = Stage("middle.stage", channels, level, config)
        self.resnet = ResnetBlock(
            channels, channels, config.norm_groups, time_channels=4 * config.channels[0]
        )

    def forward(self, x: Tensor, inputs: StepInputs) -> Tensor:
        return inputs.output_of(self, lambda: self.compute(x, inputs))

    def compute(self, x: Tensor, inputs: StepInputs) -> Tensor:
        """The output."""
        return residual(self.resnet, self.stage(x, inputs), inputs)


def residual(resnet: ResnetBlock, x: Tensor, inputs: StepInputs) -> Tensor:
    """A residual block in one evaluation of the UNet."""
    bias, frames = inputs.time_biases[resnet], inputs.frames
    h = inputs.output_of(resnet, lambda: resnet.branch(x, bias, frames))
    return resnet.conv_shortcut(x) + h


def down_level(level: int, config: UNetConfig) -> Level:
    """`resnets` stages, then halve both axes unless this is the deepest level."""
    channels = config.channels[level]
    inputs = [config.channels[max(level - 1, 0)]] + [channels] * (config.resnets - 1)
    deepest = level == len(config.channels) - 1
    stages = [Stage(f"down.{level}.stages.{i}", c, level, config) for i, c in enumerate(inputs)]
    return Level(stages, None if deepest else Downsample(channels))


def up_level(level: int, config: UNetConfig) -> Level:
    """`resnets` + 1 stages, each given a skip connection, then double both axes below the top."""
    channels = config.channels[level]
    below = config.channels[min(level + 1, len(config.channels) - 1)]
    skips = [channels] * config.resnets + [config.channels[max(level - 1, 0)]]
    inputs = [below] + [channels] * config.resnets
    here = f"up.{len(config.channels) - 1 - level}"
    stages = [
        Stage(f"{here}.stages.{i}", c + skip, level, config)
        for i, (c, skip) in enumerate(zip(inputs, skips, strict=True))
    ]
    return Level(stages, Upsample(channels) if level else None)


class UNet(nn.Module):
    """Predicts the noise in latents. `UNet(UNetConfig())` is audioldm2-full: 346,943,496 numbers.

    It holds weights and nothing else: threads, variants and compiled graphs may share one.
    """

    down: Any
    up: Any

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        levels = range(len(config.channels))
        self.conv_in = Conv2d(config.in_channels, config.channels[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(config.channels[0])
        self.down = nn.ModuleList(down_level(level, config) for level in levels)
        self.middle = Middle(config)
        self.up = nn.ModuleList(up_level(level, config) for level in reversed(levels))
        self.norm_out = nn.GroupNorm(config.norm_groups, config.channels[0], eps=1e-5)
        self.conv_out = Conv2d(config.channels[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        condition: Condition,
        *,
        attention: Attention = "dense",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The noise in `latents`, under one condition or, as guidance needs it, under n.

        Args:
            latents: (b, 8, t, 16). Any t; levels halve exactly for multiples of 8.
            timestep: (), or with one condition (b,), 0 to 999.
            condition: see `Condition`; n b entries, all clips under the first, then under the
                second. What is done before the text is first attended to is done once for all n.
            attention: "dense", settings, or their text (`attention.settings`).
            generator: of sampled indices, on the CPU; default: one seeded by the settings.

        Returns:
            (n b, 8, t, 16) in the dtype of `latents`, computed in the dtype of the weights.

        Raises:
            ValueError: batches that do not go together, or attention that this UNet cannot run.
        """
        clips, entries = len(latents), len(condition)
        if entries % clips or (timestep.numel() > 1 and entries != clips):
            raise ValueError(
                f"{clips} latents, {timestep.numel()} timesteps, {entries} conditions: give as "
                f"many conditions as latents, or with one timestep a multiple"
            )
        attend = self.plan(attention, latents, generator)
        inputs = StepInputs(self.time_biases(timestep), *self.cross_kv(condition), attend)
        return self.evaluate(latents, inputs)

    def evaluate(self, latents: Tensor, inputs: StepInputs) -> Tensor:
        """`forward` for a loop, which has prepared `inputs`: what is constant is computed once."""
        x = inputs.output_of(self.conv_in, lambda: self._enter(latents, inputs))
        x = self._level(0, x, inputs)
        return inputs.output_of(self.conv_out, lambda: self._leave(x, inputs).to(latents.dtype))

    def _enter(self, latents: Tensor, inputs: StepInputs) -> Tensor:
        """b c t f -> b c f t"""
        dtype = self.conv_in.weight.dtype
        x = latents.mT.to(dtype, memory_format=torch.channels_last)
        return inputs.frames.conv(self.conv_in, x)

    def _leave(self, x: Tensor, inputs: StepInputs) -> Tensor:
        """b c f t -> b c t f"""
        x = F.silu(inputs.frames.norm(self.norm_out, x))
        return inputs.frames.conv(self.conv_out, x).mT

    def _level(self, level: int, x: Tensor, inputs: StepInputs) -> Tensor:
        """Down one level, through everything below it, and up again."""
        down, up = self.down[level], self.up[-1 - level]
        skips = [x]
        for stage in down.stages:
            x = stage(x, inputs)
            skips.append(x)
        if down.resample is None:
            x = self.middle(x, inputs)
        else:
            below = inputs.output_of(
                self.down[level + 1], lambda: self._below(level + 1, x, inputs)
            )
            upsample = self.up[-2 - level].resample
            x = inputs.output_of(
                upsample, lambda: inputs.frames.upsample(upsample, below, skips[-1].shape[-2:])
            )
        for stage in up.stages:
            x = stage(x, inputs, skips.pop())
        return x

    def _below(self, level: int, x: Tensor, inputs: StepInputs) -> Tensor:
        """Into a level from the one above it, and what `_level` does."""
        downsample = self.down[level - 1].resample
        x = inputs.output_of(downsample, lambda: downsample(x, inputs.frames))
        return self._level(level, x, inputs)

    def units(self) -> dict[str, nn.Module]:
        """What a step may take from an earlier one (`StepInputs.reused`), by name.

        "down.1", "down.2", ...: a level and all below it, on the way down and up, as far as the
        output of its last stage; and of every residual block and every transformer its branch,
        which is added to its input.
        """
        kinds = (ResnetBlock, Transformer2D)
        below = [f"down.{level}" for level in range(1, len(self.config.channels))]
        modules = dict(self.named_modules())
        branches = {name: module for name, module in modules.items() if isinstance(module, kinds)}
        return {name: modules[name] for name in below} | branches

    def pieces(self) -> dict[nn.Module, tuple[nn.Module, ...]]:
        """The modules that `evaluate` runs one after another, each with those it takes outputs of.

        The output of every piece goes through `StepInputs.output_of`, so that one evaluation may
        be cut between any two of them.
        """
        takes: dict[nn.Module, tuple[nn.Module, ...]] = {self.conv_in: ()}

        def follow(piece: nn.Module, *skips: nn.Module) -> None:
            takes[piece] = (next(reversed(takes)), *skips)

        for down in self.down:
            for piece in [*down.stages] + [down.resample] * (down.resample is not None):
                follow(piece)
        waiting = list(takes)  # to be taken on the way up, last first
        follow(self.middle)
        for up in self.up:
            for stage in up.stages:
                follow(stage, waiting.pop())
            if up.resample is not None:
                follow(up.resample, waiting[-1])  # whose size it meets
        follow(self.conv_out)
        return takes

    def time_biases(self, timesteps: Tensor) -> dict[ResnetBlock, Tensor]:
        """() or (n,) timesteps -> the time bias (n, c, 1, 1) of every residual block."""
        time_emb = self.time_embedding(timesteps.reshape(-1).to(self.conv_in.weight.device))
        return {resnet: resnet.time_bias(time_emb) for resnet in self._all(ResnetBlock)}

    def cross_kv(
        self, condition: Condition
    ) -> tuple[dict[CrossAttention, tuple[Tensor, Tensor]], Tensor | None]:
        """Keys and values of every cross-attention, and the mask over T5's tokens (b, 1, 1, s)."""
        weight = self.conv_in.weight
        tokens = {"loa": condition.loa, "t5": condition.t5}
        keys_values = {}
        for transformer in self._all(Transformer2D):
            if transformer.context == "self":
                continue
            context = tokens[transformer.context]
            if context is None:
                raise ValueError(
                    f"this UNet attends to {transformer.context}: the condition lacks it"
                )
            for block in transformer.blocks:
                keys_values[block.attn2] = block.attn2.keys_values(context.to(weight))
        mask = condition.t5_mask
        if mask is not None:
            mask = mask.to(weight.device).bool()[:, None, None]
        return keys_values, mask

    def check_attention(self, attention: Attention) -> Attention:
        """Settings from their text, or "dense".

        Raises:
            ValueError: text that is not in the grammar, "auto", which depends on the clip's length,
                or levels on which this UNet has no attention.
        """
        settings = parse_attention(attention)
        if settings == "auto":
            raise ValueError('attention "auto" is a choice by length: give LiteFocus.for_duration')
        levels = () if isinstance(settings, str) else settings.levels
        if absent := sorted(set(levels) - set(self.config.attention_levels)):
            raise ValueError(
                f"attention levels {absent}: this UNet has attention on levels "
                f"{', '.join(map(str, self.config.attention_levels))} alone"
            )
        return settings

    def plan(
        self, attention: Attention, latents: Tensor, generator: torch.Generator | None = None
    ) -> dict[SelfAttention, Attend]:
        """The functions of one evaluation's sparse self-attentions, with fresh indices.

        Args:
            attention: as in `forward`.
            latents: (b, 8, t, 16), of which the shape matters.
            generator: as in `forward`; the loop hands the same one down at every step.
        """
        generator = generator or self.sampling_generator(attention)
        return self.place(attention, self.draw(attention, latents, generator))

    def draw(
        self, attention: Attention, latents: Tensor, generator: torch.Generator
    ) -> list[Tensor | None]:
        """Fresh indices for the self-attentions of every level, on the CPU. Args as in `plan`."""
        attention = self.check_attention(attention)
        if isinstance(attention, str):
            return []
        drawn: list[Tensor | None] = []
        # level by level, in the order in which the generator is drawn from
        length, rows = latents.shape[-2:]
        for level in range(len(self.config.channels)):
            calls, sampled = len(self._self_attentions(level)), None
            if level in attention.levels and calls:
                sampled = sample_indices(attention, rows, length, calls, generator)
            drawn.append(sampled)
            length, rows = -(-length // 2), -(-rows // 2)  # as a strided convolution rounds
        return drawn

    def place(
        self, attention: Attention, drawn: list[Tensor | None]
    ) -> dict[SelfAttention, Attend]:
        """The functions of sparse self-attentions with indices that `draw` has drawn."""
        device, functions = self.conv_in.weight.device, dict[SelfAttention, Attend]()
        attention = self.check_attention(attention)
        if isinstance(attention, str):
            return functions
        for level in sorted(set(attention.levels)):
            if modules := self._self_attentions(level):
                attend = plan_attention(attention, drawn[level], len(modules), device)
                functions.update(zip(modules, attend, strict=True))
        return functions

    def sampling_generator(self, attention: Attention) -> torch.Generator:
        """A generator of sampled indices, on the CPU, seeded by the settings."""
        settings = self.check_attention(attention)
        return torch.Generator().manual_seed(0 if isinstance(settings, str) else settings.seed)

    def _all(self, kind: type) -> list[Any]:
        """Every submodule of a kind, in the order in which it runs."""
        parts = [self.down, self.middle, self.up]
        return [m for part in parts for m in part.modules() if isinstance(m, kind)]

    def _self_attentions(self, level: int) -> list[SelfAttention]:
        """Those of one level, going down and up; the middle goes with the deepest level."""
        depth = len(self.config.channels) - 1
        parts = [self.down[level], self.up[depth - level]] + [self.middle] * (level == depth)
        return [m for part in parts for m in part.modules() if isinstance(m, SelfAttention)]
