"""The AudioLDM2 denoiser: a UNet whose attending levels follow every residual block with several
transformers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolitefocus.attention.litefocus import (
    CrossAttention,
    LiteFocus,
    SelfAttention,
    dense_attention,
)
from audiolitefocus.attention.token_merging import TokenMerging
from audiolitefocus.config import UNetConfig
from audiolitefocus.models.condition import Condition
from audiolitefocus.models.layers import (
    Conv2d,
    Downsample,
    ResnetBlock,
    Signals,
    TimeEmbedding,
    Transformer2D,
    Upsample,
    spread,
)


class Stage(nn.Module):
    """One residual block and, on an attending level, one transformer for each context."""

    def __init__(self, in_channels: int, level: int, config: UNetConfig):
        super().__init__()
        channels, groups = config.channels[level], config.norm_groups
        widths = {"self": None, "loa": config.loa_dim, "t5": config.t5_dim}
        contexts = config.contexts if level in config.attention_levels else ()
        self.resnet = ResnetBlock(
            in_channels, channels, groups, time_channels=4 * config.channels[0]
        )
        self.transformers = nn.ModuleList(
            Transformer2D(
                channels, config.heads[level], groups, config.depth, context, widths[context]
            )
            for context in contexts
        )

    def forward(self, x: Tensor, signals: Signals) -> Tensor:
        x = self.resnet(x, signals.time[self.resnet.index])
        for transformer in self.transformers:
            x = transformer(x, signals)
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
        self.stage = Stage(channels, level, config)
        self.resnet = ResnetBlock(
            channels, channels, config.norm_groups, time_channels=4 * config.channels[0]
        )

    def forward(self, x: Tensor, signals: Signals) -> Tensor:
        return self.resnet(self.stage(x, signals), signals.time[self.resnet.index])


def down_level(level: int, config: UNetConfig) -> Level:
    """`resnets` stages, then halve both axes unless this is the deepest level."""
    channels = config.channels[level]
    inputs = [config.channels[max(level - 1, 0)]] + [channels] * (config.resnets - 1)
    deepest = level == len(config.channels) - 1
    return Level(
        [Stage(c, level, config) for c in inputs], None if deepest else Downsample(channels)
    )


def up_level(level: int, config: UNetConfig) -> Level:
    """`resnets` + 1 stages, each fed a skip connection too, then double both axes unless this is
    the top level.
    """
    channels = config.channels[level]
    below = config.channels[min(level + 1, len(config.channels) - 1)]
    skips = [channels] * config.resnets + [config.channels[max(level - 1, 0)]]
    inputs = [below] + [channels] * config.resnets
    stages = [Stage(c + skip, level, config) for c, skip in zip(inputs, skips, strict=True)]
    return Level(stages, Upsample(channels) if level else None)


class UNet(nn.Module):
    """Predicts the noise in latents. `UNet(UNetConfig())` is audioldm2-full, 346,943,496
    parameters.
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
        for kind in (ResnetBlock, CrossAttention, SelfAttention):
            for index, module in enumerate(self._all(kind)):
                module.index = index
        self._resnets: list[ResnetBlock] = self._all(ResnetBlock)
        self._transformers = [m for m in self._all(Transformer2D) if m.context != "self"]
        self._self_attentions = [self._self_attentions_of(level) for level in levels]
        self.use_attention("dense")

    def forward(self, latents: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """The noise in `latents`, under one condition or, as guidance needs it, under n.

        Args:
            latents: (b, 8, t, 16). Any t; levels halve exactly for multiples of 8.
            timestep: (), or with one condition (b,), 0 to 999.
            condition: see `Condition`; n b entries, all clips under the first, then under the
                second. What is done before the text is first attended to is done once for all n.

        Returns:
            (n b, 8, t, 16) in the dtype of `latents`, computed in the dtype of the weights.

        Raises:
            ValueError: batches that do not go together.
        """
        clips, entries = len(latents), len(condition)
        if entries % clips or (timestep.numel() > 1 and entries != clips):
            raise ValueError(
                f"{clips} latents, {timestep.numel()} timesteps, {entries} conditions: give as "
                f"many conditions as latents, or with one timestep a multiple"
            )
        keys_values, mask = self.keys_values(condition)
        time, sampled = self.time_biases(timestep), self.draw(latents)
        return self.denoise(latents, Signals(time, keys_values, mask, sampled))

    def denoise(self, latents: Tensor, signals: Signals) -> Tensor:
        """`forward` for a caller who has prepared `signals`: what is constant in a loop is then
        computed once.
        """
        # embed
        weight = self.conv_in.weight
        x = self.conv_in(latents.mT.to(weight.dtype, memory_format=torch.channels_last))
        skips = [x]
        # down
        for level in self.down:
            for stage in level.stages:
                x = stage(x, signals)
                skips.append(x)
            if level.resample is not None:
                x = level.resample(x)
                skips.append(x)
        # middle
        x = self.middle(x, signals)
        # up
        for level in self.up:
            for stage in level.stages:
                x = stage(torch.cat([x, spread(skips.pop(), len(x))], dim=1), signals)
            if level.resample is not None:
                x = level.resample(x, skips[-1].shape[-2:])
        return self.conv_out(F.silu(self.norm_out(x))).mT.to(latents.dtype)

    def time_biases(self, timesteps: Tensor) -> list[Tensor]:
        """() or (n,) timesteps -> for every residual block, its time bias (n, c, 1, 1)."""
        time_emb = self.time_embedding(timesteps.reshape(-1).to(self.conv_in.weight.device))
        return [resnet.time_bias(time_emb) for resnet in self._resnets]

    def keys_values(
        self, condition: Condition
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
        """For every cross-attention its keys and values, and the mask over T5 tokens (b, 1, 1,
        s).
        """
        weight = self.conv_in.weight
        tokens = {"loa": condition.loa, "t5": condition.t5}
        keys_values = []
        for transformer in self._transformers:
            context = tokens[transformer.context]
            if context is None:
                raise ValueError(
                    f"this UNet attends to {transformer.context}: the condition lacks it"
                )
            for block in transformer.blocks:
                keys_values.append(block.attn2.keys_values(context.to(weight)))
        mask = condition.t5_mask
        if mask is not None:
            mask = mask.to(weight.device).bool()[:, None, None]
        return keys_values, mask

    def use_attention(self, attention: "str | LiteFocus | TokenMerging") -> None:
        """Choose how self-attention runs: "dense", "tome", or LiteFocus settings. Restarts the
        sampling from its seed.

        Raises:
            ValueError: an unknown name, or levels on which this UNet has no attention.
        """
        settings: LiteFocus | TokenMerging | None
        if isinstance(attention, (LiteFocus, TokenMerging)):
            settings = attention
        elif attention in ("dense", "tome"):
            settings = TokenMerging() if attention == "tome" else None
        else:
            raise ValueError(f'attention {attention!r}: give "dense", "tome" or LiteFocus(...)')
        levels = settings.levels if settings else ()
        if absent := sorted(set(levels) - set(self.config.attention_levels)):
            raise ValueError(
                f"levels {absent}: this UNet attends on {self.config.attention_levels} alone"
            )
        self.attention = settings
        self.generator = torch.Generator().manual_seed(settings.seed if settings else 0)
        for level, modules in enumerate(self._self_attentions):
            for module in modules:
                module.attend = dense_attention
                if settings is not None and level in levels:
                    module.attend = settings.attend

    def draw(self, latents: Tensor) -> list[Tensor | None]:
        """Fresh indices for every self-attention of one evaluation, from this UNet's own
        generator.
        """
        sampled: list[Tensor | None] = [None] * sum(map(len, self._self_attentions))
        length, rows = latents.shape[-2:]
        for level, modules in enumerate(self._self_attentions):
            if self.attention is not None and modules and level in self.attention.levels:
                drawn = self.attention.draw(rows, length, len(modules), self.generator)
                if drawn is not None:
                    on_device = drawn.to(latents.device, non_blocking=True)
                    for module, indices in zip(modules, on_device, strict=True):
                        sampled[module.index] = indices
            length, rows = -(-length // 2), -(-rows // 2)
        return sampled

    def _all(self, kind: type) -> list:
        """Every submodule of a kind, in the order in which it runs."""
        parts = [self.down, self.middle, self.up]
        return [m for part in parts for m in part.modules() if isinstance(m, kind)]

    def _self_attentions_of(self, level: int) -> list[SelfAttention]:
        """Those of one level, going down and up; the middle goes with the deepest level."""
        depth = len(self.config.channels) - 1
        parts = [self.down[level], self.up[depth - level]] + [self.middle] * (level == depth)
        return [m for part in parts for m in part.modules() if isinstance(m, SelfAttention)]
