"""What both layouts share: key tables, edits of tensors, attention heads, token limits."""

from collections.abc import Collection, Mapping

from torch import Tensor

from audiolitefocus.checkpoints.bundle import build
from audiolitefocus.checkpoints.convert.mapping import Edit, TargetFile, compose, table_for
from audiolitefocus.config import BundleConfig, TextConfig, VocoderConfig

HEAD_WIDTH = 32  # channels of an attention head in every AudioLDM2 checkpoint, as trained

# Our module -> the source's module, in both layouts.
TRANSFORMER_BLOCK = {
    **{name: name for name in ("norm1", "norm2", "norm3")},
    **{f"{a}.{p}": f"{a}.{p}" for a in ("attn1", "attn2") for p in ("to_q", "to_k", "to_v")},
    "attn1.to_out": "attn1.to_out.0",
    "attn2.to_out": "attn2.to_out.0",
    "ff.proj_in": "ff.net.0.proj",
    "ff.proj_out": "ff.net.2",
}
# What PyTorch makes of a parameter "weight" under weight norm: magnitude and direction.
WEIGHT_NORM = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
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
            convs = [f"{name}.{i}" for name in ("convs1", "convs2") for i in range(len(dilations))]
            flat = f"resblocks.{level * kernels + k}"
            blocks.append((f"resblocks.{level}.{k}", flat, {conv: conv for conv in convs}))
    return compose(*blocks)


def conv1x1_to_linear(weight: Tensor) -> Tensor:
    """The weight of a 1x1 convolution as that of a linear layer, which itself stays as it is."""
    return weight.flatten(1) if weight.ndim > 1 else weight


def take_third(index: int) -> Edit:
    """One of the query, key and value that are stacked along the first axis."""
    return lambda tensor: tensor.tensor_split(3)[index]


def take_row(index: int) -> Edit:
    """One entry of an embedding table."""
    return lambda tensor: tensor[index]


def fold_weight_norm(magnitude: Tensor, direction: Tensor) -> Tensor:
    """g * v / |v| (Salimans and Kingma 2016), where |v| is over all axes but the first."""
    v = direction.float()
    norm = v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.ndim - 1))
    return (v * (magnitude.float() / norm)).to(direction.dtype)


def weight_norm_pair(key: str, tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The names of a weight's magnitude and direction, if the source has those instead of it."""
    if key in tensors or not key.endswith("weight"):
        return None
    stem = key.removesuffix("weight")
    pairs = [(stem + magnitude, stem + direction) for magnitude, direction in WEIGHT_NORM]
    return next((pair for pair in pairs if tensors.keys() >= set(pair)), None)


def network_file(
    name: str,
    origin: str,
    tensors: Mapping[str, Tensor],
    config: BundleConfig,
    modules: Mapping[str, str],
    *,
    edits: Mapping[str, Edit] | None = None,
    dropped: Mapping[str, str] | None = None,
) -> TargetFile:
    """The weights file of one of our own networks; `modules` is its table."""
    shapes = {key: tuple(value.shape) for key, value in build(name, config).state_dict().items()}
    table = table_for(shapes, modules)
    # The vocoder of some checkpoints still has the weight norm of its training.
    pairs = {target: weight_norm_pair(key, tensors) for target, key in table.items()}
    folded = {target: pair for target, pair in pairs.items() if pair}
    return TargetFile(
        name=f"{name}.safetensors",
        origin=origin,
        tensors=tensors,
        shapes=shapes,
        table={**table, **folded},
        edits={**dict.fromkeys(folded, fold_weight_norm), **(edits or {})},
        dropped=dropped or {},
    )


def choose_heads(
    heads: str, channels: list[int], attending: Collection[int], configured: list[int] | None
) -> tuple[list[int], str]:
    """The number of heads on every level, and the reason in words.

    Args:
        heads: "trained" or "config", as in `convert_checkpoint`.
        attending: levels with attention.
        configured: attention_head_dim of unet/config.json, if there is one. By a slip in diffusers'
            naming it is the number of heads; the conversion that made the public repositories left
            it at the default of 8.
    """
    trained = [c // HEAD_WIDTH if c % HEAD_WIDTH == 0 else 1 for c in channels]
    odd = sorted({channels[level] for level in attending if channels[level] % HEAD_WIDTH})

    def attended(numbers: list[int]) -> list[int]:
        return [numbers[level] for level in attending]

    if configured is None or (heads == "trained" and not odd):
        line = f"heads of {HEAD_WIDTH} channels, {attended(trained)} on the attending levels, "
        line += "as trained"
        if configured is not None and attended(configured) != attended(trained):
            line += f"; unet/config.json says {attended(configured)}, a default never set"
        return trained, line
    asked = f": {odd} channels make no heads of {HEAD_WIDTH}"
    asked = " and as asked" if heads == "config" else asked
    line = f"heads {attended(configured)} on the attending levels, as unet/config.json says{asked}"
    # A level that does not attend has no heads: 1 stands for none.
    return [n if level in attending else 1 for level, n in enumerate(configured)], line


def text_limits(clap: Mapping, t5: Mapping, gpt2: Mapping, positions: int) -> TextConfig:
    """Token limits from the settings of both tokenizers and GPT-2, else those of training.

    `positions` is the number of tokens that CLAP's position table can hold.
    """
    limits = TextConfig()
    return TextConfig(
        clap_max_tokens=min(_sane(clap.get("model_max_length"), limits.clap_max_tokens), positions),
        t5_max_tokens=_sane(t5.get("model_max_length"), limits.t5_max_tokens),
        loa_tokens=_sane(gpt2.get("max_new_tokens"), limits.loa_tokens),
    )


def _sane(value: object, default: int) -> int:
    """A count, or the default: the limit of tokenizers without one is 1e30."""
    return value if type(value) is int and 1 <= value <= 2**14 else default
