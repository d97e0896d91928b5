"""The configs of an original checkpoint, inferred from the shapes of its tensors."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from audiolitefocus.checkpoints.convert.shared import WEIGHT_NORM, choose_heads, text_limits
from audiolitefocus.config import (
    BundleConfig,
    ProjectionConfig,
    UNetConfig,
    VAEConfig,
    VocoderConfig,
)


class Shapes(dict[str, tuple[int, ...]]):
    """Shape by name, of one section of a checkpoint. A missing name raises ValueError."""

    def __init__(self, origin: str, tensors: Mapping[str, Tensor]):
        super().__init__({key: tuple(tensor.shape) for key, tensor in tensors.items()})
        self.origin = origin

    def __missing__(self, key: str) -> tuple[int, ...]:
        stem = key.removesuffix("weight")
        for _, direction in WEIGHT_NORM if key.endswith("weight") else ():
            if stem + direction in self:  # shaped as the weight
                return self[stem + direction]
        raise ValueError(f"{self.origin}{key} is missing: no original AudioLDM2 checkpoint")

    def size(self, key: str, axis: int) -> int:
        shape = self[key]
        if axis >= len(shape):
            raise ValueError(f"{self.origin}{key} is {list(shape)}: too few axes")
        return shape[axis]

    def count(self, name: str, first: int = 0) -> int:
        """The number of name.format(first), name.format(first + 1), … in a row."""
        number = first
        while name.format(number) in self:
            number += 1
        return number - first


def config_from_shapes(
    shapes: Mapping[str, Shapes], positions: int, unused: Mapping[str, Tensor], path: Path
) -> tuple[BundleConfig, str]:
    """The bundle's config, and the line that says which heads it has.

    `positions` is the number of tokens that CLAP's position table can hold.
    """
    scale = unused.get("scale_factor")
    if scale is None or scale.numel() != 1:
        raise ValueError(f"{path} has no scale_factor, by which its latents are scaled")
    unet, heads = unet_from_shapes(shapes["unet"])
    config = BundleConfig(
        unet=unet,
        vae=vae_from_shapes(shapes["vae"], float(scale)),
        vocoder=vocoder_from_shapes(shapes["vocoder"]),
        projection=projection_from_shapes(shapes["projection"]),
        text=text_limits({}, {}, {}, positions),
    )
    return config, heads


def unet_from_shapes(shapes: Shapes) -> tuple[UNetConfig, str]:
    """The UNet's config, and the line that says which heads it has."""
    # 1. Levels: blocks are numbered through, those of a level and then the step to the next one
    levels: list[list[int]] = [[]]  # numbers of the residual blocks
    number = 1
    while True:
        if f"input_blocks.{number}.0.in_layers.0.weight" in shapes:
            levels[-1].append(number)
        elif f"input_blocks.{number}.0.op.weight" in shapes:
            levels.append([])
        else:
            break
        number += 1
    if len({len(level) for level in levels}) != 1 or not levels[0]:
        raise ValueError(f"{shapes.origin}input_blocks: levels differ in their residual blocks")
    # 2. What is in a level
    channels = [shapes.size(f"input_blocks.{n}.0.out_layers.3.weight", 0) for n, *_ in levels]
    attending = [
        level for level, (n, *_) in enumerate(levels) if f"input_blocks.{n}.1.norm.weight" in shapes
    ]
    if not attending:
        raise ValueError(f"{shapes.origin}input_blocks has no transformers")
    first = f"input_blocks.{levels[attending[0]][0]}"
    contexts, widths = _contexts_from_shapes(shapes, levels, channels, attending)
    heads, why = choose_heads("trained", channels, attending, None)
    config = UNetConfig(
        in_channels=shapes.size("input_blocks.0.0.weight", 1),
        out_channels=shapes.size("out.2.weight", 0),
        channels=tuple(channels),
        heads=tuple(heads),
        attention_levels=tuple(attending),
        resnets=len(levels[0]),
        contexts=contexts,
        depth=max(shapes.count(first + ".1.transformer_blocks.{}.norm1.weight"), 1),
        absent=(),
        **widths,
    )
    return config, why


def _contexts_from_shapes(
    shapes: Shapes, levels: list[list[int]], channels: list[int], attending: list[int]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The transformers after a residual block, and the widths of their contexts."""
    names: list[str] = []
    widths: dict[str, int] = {}
    slots = shapes.count(f"input_blocks.{levels[attending[0]][0]}.{{}}.norm.weight", 1)
    for slot in range(1, slots + 1):
        leaf = f"{slot}.transformer_blocks.0.attn2.to_k.weight"
        dims = [shapes.size(f"input_blocks.{levels[i][0]}.{leaf}", 1) for i in attending]
        # Keys as wide as the level itself, on every level, are of self-attention. The others are of
        # GPT-2's tokens and then T5's.
        if dims == [channels[level] for level in attending]:
            names.append("self")
            continue
        name = "loa" if "loa" not in names else "t5"
        if len(set(dims)) != 1 or name in names:
            raise ValueError(f"{shapes.origin}input_blocks: no context is {dims} wide")
        names.append(name)
        widths[f"{name}_dim"] = dims[0]
    return tuple(names), widths


def vae_from_shapes(shapes: Shapes, scale_factor: float) -> VAEConfig:
    levels = max(shapes.count("encoder.down.{}.block.0.conv1.weight"), 1)
    return VAEConfig(
        in_channels=shapes.size("encoder.conv_in.weight", 1),
        latent_channels=shapes.size("post_quant_conv.weight", 0),
        channels=tuple(
            shapes.size(f"encoder.down.{level}.block.0.conv1.weight", 0) for level in range(levels)
        ),
        resnets=max(shapes.count("encoder.down.0.block.{}.conv1.weight"), 1),
        scale_factor=scale_factor,
    )


def vocoder_from_shapes(shapes: Shapes) -> VocoderConfig:
    """The vocoder's config, of which shapes tell the widths alone."""
    # The rest is that of the 16 kHz checkpoints; a vocoder with other kernels does not fit.
    return replace(
        VocoderConfig(),
        mel_bins=shapes.size("conv_pre.weight", 1),
        initial_channels=shapes.size("conv_pre.weight", 0),
    )


def projection_from_shapes(shapes: Shapes) -> ProjectionConfig:
    return ProjectionConfig(
        clap_dim=shapes.size("input_sequence_embed_linear.0.weight", 1),
        t5_dim=shapes.size("input_sequence_embed_linear.1.weight", 1),
        loa_dim=shapes.size("input_sequence_embed_linear.0.weight", 0),
    )
