"""Our configs made from the config.json files of a folder in diffusers layout.

Settings that our networks do not implement are refused by name.
"""

from collections.abc import Collection, Mapping
from typing import Any

from audiolitefocus.checkpoints.convert.shared import choose_heads
from audiolitefocus.checkpoints.limits import make_config
from audiolitefocus.config import (
    CONTEXTS,
    ProjectionConfig,
    ScheduleConfig,
    UNetConfig,
    VAEConfig,
    VocoderConfig,
)
from audiolitefocus.validation import shown

# What our networks implement: setting -> the values that mean it; None: any value, read below or
# without effect on the result. A setting that stands in no table must be off.
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
    **dict.fromkeys(
        "in_channels out_channels block_out_channels down_block_types up_block_types "
        "layers_per_block cross_attention_dim transformer_layers_per_block attention_head_dim "
        "norm_num_groups sample_size upcast_attention use_linear_projection".split()
    ),
}
VAE = {
    "act_fn": ("silu", "swish"),
    "mid_block_add_attention": (True,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    **dict.fromkeys(
        "out_channels down_block_types up_block_types sample_size force_upcast".split()
    ),
}
VOCODER = {"normalize_before": (False,)}
SCHEDULE = {  # of training; how a scheduler samples is the call's choice, not the checkpoint's
    "beta_schedule": ("scaled_linear",),
    "prediction_type": ("epsilon",),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
}
# Our names of the settings that are taken over -> diffusers'.
VAE_NAMES = {
    "in_channels": "in_channels",
    "latent_channels": "latent_channels",
    "channels": "block_out_channels",
    "resnets": "layers_per_block",
    "norm_groups": "norm_num_groups",
    "scale_factor": "scaling_factor",
}
VOCODER_NAMES = {
    "mel_bins": "model_in_dim",
    "sampling_rate": "sampling_rate",
    "initial_channels": "upsample_initial_channel",
    "upsample_rates": "upsample_rates",
    "upsample_kernels": "upsample_kernel_sizes",
    "resblock_kernels": "resblock_kernel_sizes",
    "resblock_dilations": "resblock_dilation_sizes",
    "slope": "leaky_relu_slope",
}
PROJECTION_NAMES = {
    "clap_dim": "text_encoder_dim",
    "t5_dim": "text_encoder_1_dim",
    "loa_dim": "langauge_model_dim",  # so spelt
}
SCHEDULE_NAMES = {
    "train_steps": "num_train_timesteps",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
}


def check_supported(
    settings: Mapping, accepted: Mapping, where: str, *, strict: bool = True
) -> None:
    """Raise ValueError that lists the settings which our networks do not implement.

    With `strict`, a setting that `accepted` does not name must be off: null, false or zero.
    """
    refused = []
    for name, value in settings.items():
        if name.startswith("_"):
            continue
        if name in accepted:
            bad = accepted[name] is not None and value not in accepted[name]
        else:
            bad = strict and (any(value) if isinstance(value, list) else bool(value))
        if bad:
            refused.append(f"{name} = {shown(value)}")
    if refused:
        raise ValueError(f"{where} has settings that are not implemented: {', '.join(refused)}")


def unet_from_settings(
    settings: Mapping, projection: ProjectionConfig, heads: str, where: str
) -> tuple[UNetConfig, str]:
    """The UNet's config, and the line that says which heads were taken and why."""
    check_supported(settings, UNET, where)
    channels = require_list(settings, "block_out_channels", int, where)
    attending = _attending(settings, len(channels), where)
    contexts, widths = _contexts(settings, attending, where)
    numbers = per_level(settings, "attention_head_dim", where, default=8)
    chosen, why = choose_heads(heads, channels, attending, numbers)
    every = range(len(channels))
    # diffusers' defaults, for settings that a config.json leaves out
    fields = {
        "in_channels": settings.get("in_channels", 4),
        "out_channels": settings.get("out_channels", 4),
        "channels": channels,
        "heads": chosen,
        "attention_levels": attending,
        "resnets": uniform_over_levels(settings, "layers_per_block", every, where, default=2),
        "contexts": contexts,
        "depth": uniform_over_levels(
            settings, "transformer_layers_per_block", attending, where, default=1
        ),
        "loa_dim": widths.get("loa", projection.loa_dim),
        "t5_dim": widths.get("t5", projection.t5_dim),
        "norm_groups": settings.get("norm_num_groups", 32),
        "absent": (),
    }
    return make_config(UNetConfig, fields, where), why


def _attending(settings: Mapping, levels: int, where: str) -> list[int]:
    """The levels with attention, from the names of the blocks."""
    down = require_list(settings, "down_block_types", str, where)
    up = require_list(settings, "up_block_types", str, where)
    attending = [level for level, name in enumerate(down) if name == "CrossAttnDownBlock2D"]
    mirrored = ["CrossAttnUpBlock2D" if i in attending else "UpBlock2D" for i in range(levels)]
    known = all(name in ("DownBlock2D", "CrossAttnDownBlock2D") for name in down)
    if len(down) != levels or not known or up != mirrored[::-1]:
        raise ValueError(
            f"{where}: down_block_types {shown(down)} and up_block_types {shown(up)} must be one a "
            f"level, mirror each other, and be DownBlock2D or CrossAttnDownBlock2D and UpBlock2D"
        )
    return attending


def _contexts(
    settings: Mapping, attending: list[int], where: str
) -> tuple[list[str], dict[str, int]]:
    """The names of the transformers after a residual block, and the widths of their contexts."""
    dims = per_level(settings, "cross_attention_dim", where, default=None)
    slots = [dims[level] if isinstance(dims[level], list) else [dims[level]] for level in attending]
    if not slots or any(slot != slots[0] for slot in slots):
        raise ValueError(
            f"{where}: cross_attention_dim {shown(dims)} must be the same on every level"
        )
    names: list[str] = []
    widths: dict[str, int] = {}
    for slot, dim in enumerate(slots[0]):
        # diffusers gives GPT-2's tokens to the first two transformers, T5's to those after them
        name = CONTEXTS[0] if dim is None else CONTEXTS[1 if slot <= 1 else 2]
        names.append(name)
        if dim is not None and widths.setdefault(name, dim) != dim:
            raise ValueError(f"{where}: cross_attention_dim {shown(dims)}: two widths for {name}")
    return names, widths


def vae_from_settings(settings: Mapping, where: str) -> VAEConfig:
    levels = len(require_list(settings, "block_out_channels", int, where))
    for side, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        if (found := settings.get(f"{side}_block_types")) != [kind] * levels:
            raise ValueError(f"{where}: {side}_block_types {shown(found)}: {levels} of {kind}")
    if settings.get("in_channels") != settings.get("out_channels"):
        raise ValueError(f"{where}: in_channels and out_channels differ")
    return _translated(VAEConfig, settings, VAE, VAE_NAMES, where)


def vocoder_from_settings(settings: Mapping, where: str) -> VocoderConfig:
    given = {"normalize_before": True, **settings}  # transformers' default
    return _translated(VocoderConfig, given, VOCODER, VOCODER_NAMES, where, strict=False)


def projection_from_settings(settings: Mapping, where: str) -> ProjectionConfig:
    return _translated(ProjectionConfig, settings, {}, PROJECTION_NAMES, where)


def schedule_from_settings(settings: Mapping, where: str) -> ScheduleConfig:
    given = {"beta_schedule": "linear", **settings}  # diffusers' default
    return _translated(ScheduleConfig, given, SCHEDULE, SCHEDULE_NAMES, where, strict=False)


def _translated(
    cls: type,
    settings: Mapping,
    accepted: Mapping,
    names: Mapping[str, str],
    where: str,
    *,
    strict: bool = True,
) -> Any:
    """Our config of settings under their names, others checked; missing ones are errors."""
    check_supported(settings, {**accepted, **dict.fromkeys(names.values())}, where, strict=strict)
    fields = {ours: settings[theirs] for ours, theirs in names.items() if theirs in settings}
    return make_config(cls, fields, where)


def require_list(settings: Mapping, name: str, kind: type, where: str) -> list:
    """A setting that must be a list of `kind`, and not empty."""
    value = settings.get(name)
    if not isinstance(value, list) or not value or any(type(entry) is not kind for entry in value):
        raise ValueError(f"{where}: {name} = {shown(value)} must be a list of {kind.__name__}")
    return value


def per_level(settings: Mapping, name: str, where: str, *, default: object) -> list:
    """A setting for each level of the UNet; one value holds for all."""
    value, levels = settings.get(name, default), len(settings["block_out_channels"])
    if not isinstance(value, list):
        return [value] * levels
    if len(value) != levels:
        raise ValueError(f"{where}: {name} = {shown(value)} must have {levels} entries")
    return value


def uniform_over_levels(
    settings: Mapping, name: str, among: Collection[int], where: str, *, default: int
) -> int:
    """A setting that must not differ between the levels `among`."""
    values = per_level(settings, name, where, default=default)
    if any(values[level] != values[-1] for level in among):
        raise ValueError(f"{where}: {name} = {shown(values)} differs between levels")
    return values[-1]
