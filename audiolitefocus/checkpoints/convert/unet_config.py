"""unet/config.json of a folder in diffusers layout, turned into a `UNetConfig`; and the choice of
attention heads.
"""

from collections.abc import Collection, Mapping

from audiolitefocus.checkpoints.convert.diffusers_config import a_list, per_level, refuse, same
from audiolitefocus.config import CONTEXTS, ProjectionConfig, UNetConfig
from audiolitefocus.validation import from_dict

HEAD_WIDTH = 32  # channels of an attention head in every AudioLDM2 checkpoint, as trained

# As in `settings`: the values that our UNet implements.
UNET = {
    "act_fn": ("silu", "swish"),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (1,),
    "flip_sin_to_cos": (True,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    **dict.fromkeys(  # None: any value, read below or without effect on the result
        "in_channels out_channels block_out_channels down_block_types up_block_types "
        "layers_per_block cross_attention_dim transformer_layers_per_block attention_head_dim "
        "norm_num_groups sample_size upcast_attention use_linear_projection".split()
    ),
}


def unet_config(
    settings: Mapping, projection: ProjectionConfig, heads: str, where: str
) -> tuple[UNetConfig, str]:
    """The UNet's config, and the line that says which heads were taken and why."""
    refuse(settings, UNET, where)
    channels = a_list(settings, "block_out_channels", int, where)
    levels = len(channels)
    attending = _attending(settings, levels, where)
    contexts, widths = _contexts(settings, levels, attending, where)
    said = per_level(settings, "attention_head_dim", levels, where, 8)
    chosen, why = choose_heads(heads, channels, attending, said)
    fields = {
        "in_channels": settings.get("in_channels", 4),
        "out_channels": settings.get("out_channels", 4),
        "channels": channels,
        "heads": chosen,
        "attention_levels": attending,
        "resnets": same(settings, "layers_per_block", range(levels), levels, where, 2),
        "contexts": contexts,
        "depth": same(settings, "transformer_layers_per_block", attending, levels, where, 1),
        "loa_dim": widths.get("loa", projection.loa_dim),
        "t5_dim": widths.get("t5", projection.t5_dim),
        "norm_groups": settings.get("norm_num_groups", 32),
    }
    return from_dict(UNetConfig, fields, where), why


def choose_heads(
    heads: str, channels: list[int], attending: Collection[int], said: list[int] | None
) -> tuple[list[int], str]:
    """The number of heads on every level, and why.

    `said` is unet/config.json's attention_head_dim, which by a slip in diffusers' naming is the
    number of heads; the conversion that made the public repositories never set it, so it stands at
    the default of 8.
    """
    trained = [c // HEAD_WIDTH if c % HEAD_WIDTH == 0 else 1 for c in channels]
    odd = sorted({channels[level] for level in attending if channels[level] % HEAD_WIDTH})
    numbers = [trained[level] for level in attending]
    if said is None or (heads == "trained" and not odd):
        line = f"heads of {HEAD_WIDTH} channels, {numbers} on the attending levels, as trained"
        if said is not None and (other := [said[level] for level in attending]) != numbers:
            line += f"; unet/config.json says {other}, a default that its conversion never set"
        return trained, line
    # A level that does not attend has no heads: 1 stands for none.
    taken = [n if level in attending else 1 for level, n in enumerate(said)]
    line = f"heads {[said[level] for level in attending]} on the attending levels, "
    line += (
        "as unet/config.json says and as asked"
        if heads == "config"
        else f"as unet/config.json says: {odd} channels make no heads of {HEAD_WIDTH}"
    )
    return taken, line


def _attending(settings: Mapping, levels: int, where: str) -> list[int]:
    """The levels with attention, from the names of the blocks."""
    down = a_list(settings, "down_block_types", str, where)
    up = a_list(settings, "up_block_types", str, where)
    attending = [level for level, name in enumerate(down) if name == "CrossAttnDownBlock2D"]
    mirrored = ["CrossAttnUpBlock2D" if i in attending else "UpBlock2D" for i in range(levels)]
    known = all(name in ("DownBlock2D", "CrossAttnDownBlock2D") for name in down)
    if len(down) != levels or not known or up != mirrored[::-1]:
        raise ValueError(
            f"{where}: down_block_types {down} and up_block_types {up} must be one a level, "
            f"mirror each other, and be DownBlock2D or CrossAttnDownBlock2D and their kin"
        )
    return attending


def _contexts(
    settings: Mapping, levels: int, attending: list[int], where: str
) -> tuple[list[str], dict[str, int]]:
    """The names of the transformers after a residual block, and the widths of their contexts.

    diffusers gives GPT-2's tokens to the first two transformers and T5's to those after them.
    """
    dims = per_level(settings, "cross_attention_dim", levels, where, None)
    slots = [dims[level] if isinstance(dims[level], list) else [dims[level]] for level in attending]
    if not slots or any(slot != slots[0] for slot in slots):
        raise ValueError(f"{where}: cross_attention_dim {dims} must be the same on every level")
    names: list[str] = []
    widths: dict[str, int] = {}
    for slot, dim in enumerate(slots[0]):
        name = CONTEXTS[0] if dim is None else CONTEXTS[1 if slot <= 1 else 2]
        names.append(name)
        if dim is not None and widths.setdefault(name, dim) != dim:
            raise ValueError(f"{where}: cross_attention_dim {dims} has two widths for {name}")
    return names, widths
