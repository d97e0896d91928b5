"""What both layouts share: leaf tables, the vocoder's table, edits of tensors, and a network's
`Part`.
"""

from collections.abc import Mapping

from torch import Tensor

from audiolitefocus.checkpoints.bundle import build
from audiolitefocus.checkpoints.convert.mapping import Edit, Part, compose, table_for
from audiolitefocus.config import BundleConfig, VocoderConfig

# Leaf tables that both layouts share: our module -> the source's module.
TRANSFORMER_BLOCK = {
    **{name: name for name in ("norm1", "norm2", "norm3")},
    **{f"{a}.{p}": f"{a}.{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v")},
    "attn1.to_out": "attn1.to_out.0",
    "attn2.to_out": "attn2.to_out.0",
    "ff.proj_in": "ff.net.0.proj",
    "ff.proj_out": "ff.net.2",
}

WEIGHT_NORM = (  # magnitude and direction, in PyTorch's two spellings
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


def transformer(depth: int) -> dict[str, str]:
    """The leaf table of a `Transformer2D`."""
    blocks = [(f"blocks.{i}", f"transformer_blocks.{i}", TRANSFORMER_BLOCK) for i in range(depth)]
    return {"norm": "norm", "proj_in": "proj_in", "proj_out": "proj_out", **compose(*blocks)}


def vocoder_modules(config: VocoderConfig, upsampler: str) -> dict[str, str]:
    """Our modules -> the source's, whose residual blocks stand in one flat list."""
    kernels = len(config.resblock_kernels)
    blocks = [("", "", {"conv_pre": "conv_pre", "conv_post": "conv_post"})]
    for level in range(len(config.upsample_rates)):
        blocks.append(("", "", {f"upsampler.{level}": f"{upsampler}.{level}"}))
        for k, dilations in enumerate(config.resblock_dilations):
            pairs = [
                f"{convs}.{i}" for convs in ("convs1", "convs2") for i in range(len(dilations))
            ]
            flat = f"resblocks.{level * kernels + k}"
            blocks.append((f"resblocks.{level}.{k}", flat, {pair: pair for pair in pairs}))
    return compose(*blocks)


def linear(weight: Tensor) -> Tensor:
    """A 1x1 convolution is a linear layer; a linear layer's weight stays as it is."""
    return weight.flatten(1) if weight.ndim > 1 else weight


def third(index: int) -> Edit:
    """One of the query, key and value that are stacked along the first axis."""
    return lambda tensor: tensor.tensor_split(3)[index]


def row(index: int) -> Edit:
    """One entry of an embedding table."""
    return lambda tensor: tensor[index]


def fold_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace the pairs of weight norm by the weight itself, g * v / |v| (Salimans and Kingma,
    2016).

    The norm is over all axes but the first.
    """
    folded = dict(tensors)
    for magnitude, direction in WEIGHT_NORM:
        for key in [key for key in tensors if key.endswith(direction)]:
            stem = key.removesuffix(direction)
            if stem + magnitude in folded:
                v, g = folded.pop(key), folded.pop(stem + magnitude)
                norm = v.float().flatten(1).norm(dim=1).reshape(-1, *[1] * (v.ndim - 1))
                folded[f"{stem}.weight"] = (v.float() * (g.float() / norm)).to(v.dtype)
    return folded


def network_part(
    name: str,
    origin: str,
    tensors: Mapping[str, Tensor],
    config: BundleConfig,
    modules: Mapping[str, str],
    *,
    edits: Mapping[str, Edit] | None = None,
    dropped: Mapping[str, str] | None = None,
) -> Part:
    """The weights file of one of our own networks; `modules` is its table."""
    shapes = {key: tuple(value.shape) for key, value in build(name, config).state_dict().items()}
    return Part(
        file=f"{name}.safetensors",
        origin=origin,
        tensors=tensors,
        shapes=shapes,
        table=table_for(shapes, modules),
        edits=edits or {},
        dropped=dropped or {},
    )
