"""The config.json files of a folder in diffusers layout, turned into ours. Settings that our
networks do not implement are refused by name. The UNet's are in unet_settings.py.
"""

from collections.abc import Collection, Mapping

from audiolitefocus.config import (
    ProjectionConfig,
    ScheduleConfig,
    TextConfig,
    VAEConfig,
    VocoderConfig,
)
from audiolitefocus.validation import from_dict, shown

# What our networks implement: setting -> the values that mean it; None: any value, read below or
# without effect on the result. A setting that stands in no table must be off.
VAE = {
    "act_fn": ("silu", "swish"),
    "mid_block_add_attention": (True,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
    **dict.fromkeys(
        "in_channels out_channels block_out_channels down_block_types up_block_types "
        "layers_per_block latent_channels norm_num_groups scaling_factor sample_size "
        "force_upcast".split()
    ),
}
VOCODER = {"normalize_before": (False,)}
PROJECTION = {
    "clap_dim": "text_encoder_dim",
    "t5_dim": "text_encoder_1_dim",
    "loa_dim": "langauge_model_dim",  # so spelt
}
SCHEDULE = {  # of training; how a scheduler samples is the call's choice, not the checkpoint's
    "beta_schedule": ("scaled_linear",),
    "prediction_type": ("epsilon",),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
}


def refuse(settings: Mapping, accepted: Mapping, where: str, *, strict: bool = True) -> None:
    """Raise ValueError that lists the settings which our networks do not implement.

    With `strict`, a setting of which `accepted` knows nothing must be off: null, false or zero.
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


def vae_config(settings: Mapping, where: str) -> VAEConfig:
    refuse(settings, VAE, where)
    levels = len(a_list(settings, "block_out_channels", int, where))
    for side, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        if (found := settings.get(f"{side}_block_types")) != [kind] * levels:
            raise ValueError(f"{where}: {side}_block_types {found} must be {levels} of {kind}")
    if settings.get("in_channels") != settings.get("out_channels"):
        raise ValueError(f"{where}: in_channels and out_channels differ")
    names = {
        "in_channels": "in_channels",
        "latent_channels": "latent_channels",
        "channels": "block_out_channels",
        "resnets": "layers_per_block",
        "norm_groups": "norm_num_groups",
        "scale_factor": "scaling_factor",
    }
    return from_dict(VAEConfig, _renamed(settings, names), where)


def vocoder_config(settings: Mapping, where: str) -> VocoderConfig:
    refuse({"normalize_before": True, **settings}, VOCODER, where, strict=False)
    names = {
        "mel_bins": "model_in_dim",
        "sampling_rate": "sampling_rate",
        "initial_channels": "upsample_initial_channel",
        "upsample_rates": "upsample_rates",
        "upsample_kernels": "upsample_kernel_sizes",
        "resblock_kernels": "resblock_kernel_sizes",
        "resblock_dilations": "resblock_dilation_sizes",
        "slope": "leaky_relu_slope",
    }
    return from_dict(VocoderConfig, _renamed(settings, names), where)


def projection_config(settings: Mapping, where: str) -> ProjectionConfig:
    refuse(settings, dict.fromkeys(PROJECTION.values()), where)
    return from_dict(ProjectionConfig, _renamed(settings, PROJECTION), where)


def schedule_config(settings: Mapping, where: str) -> ScheduleConfig:
    given = {"beta_schedule": "linear", **settings}  # diffusers' default
    refuse(given, SCHEDULE, where, strict=False)
    names = {
        "train_steps": "num_train_timesteps",
        "beta_start": "beta_start",
        "beta_end": "beta_end",
    }
    return from_dict(ScheduleConfig, _renamed(settings, names), where)


def text_config(clap: Mapping, t5: Mapping, gpt2: Mapping, positions: int) -> TextConfig:
    """Token limits from the two tokenizers' settings where they are sane, else those of training.

    `positions` is how many tokens CLAP's position table can hold.
    """
    limits = TextConfig()
    return TextConfig(
        clap_max_tokens=min(_sane(clap.get("model_max_length"), limits.clap_max_tokens), positions),
        t5_max_tokens=_sane(t5.get("model_max_length"), limits.t5_max_tokens),
        loa_tokens=_sane(gpt2.get("max_new_tokens"), limits.loa_tokens),
    )


def _sane(value: object, default: int) -> int:
    """A count; tokenizers without a limit say 1e30."""
    return value if type(value) is int and 1 <= value <= 2**14 else default


def _renamed(settings: Mapping, names: Mapping[str, str]) -> dict:
    """Our names for the settings that are there; `from_dict` reports those that are not."""
    return {ours: settings[theirs] for ours, theirs in names.items() if theirs in settings}


def a_list(settings: Mapping, name: str, kind: type, where: str) -> list:
    value = settings.get(name)
    if not isinstance(value, list) or not value or any(type(entry) is not kind for entry in value):
        raise ValueError(f"{where}: {name} = {shown(value)} must be a list of {kind.__name__}")
    return value


def per_level(settings: Mapping, name: str, levels: int, where: str, default) -> list:
    """A setting for every level; one value holds for all."""
    value = settings.get(name, default)
    if not isinstance(value, list):
        return [value] * levels
    if len(value) != levels:
        raise ValueError(f"{where}: {name} = {shown(value)} must have {levels} entries")
    return value


def same(
    settings: Mapping, name: str, among: Collection[int], levels: int, where: str, default: int
) -> int:
    """A setting that must not differ between the levels `among`."""
    values = per_level(settings, name, levels, where, default)
    if any(values[level] != values[-1] for level in among):
        raise ValueError(f"{where}: {name} = {values!r} differs between levels")
    return values[-1]
