"""Limits of architecture configs that come from files: sizes, and what must go together.

Configs made in Python are not checked. What transformers' towers must fit is in `towers`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from audiolitefocus.config import (
    CONTEXTS,
    AttentionRule,
    BundleConfig,
    Distilled,
    ProjectionConfig,
    ScheduleConfig,
    TextConfig,
    UNetConfig,
    VAEConfig,
    VocoderConfig,
)
from audiolitefocus.validation import MAX_SECONDS, Number, check_rule, from_dict, shown

# The limits lie far beyond any AudioLDM2, and keep a damaged or hostile file from dividing by zero,
# allocating gigabytes or keeping a machine busy for minutes.
WIDTH, RATE, KERNEL, FEW, TOKENS = (
    Number(1, high, whole=True) for high in (2**16, 2**20, 2**10, 64, 2**14)
)
BOUNDS: dict[type, dict[str, Number]] = {
    UNetConfig: {
        **dict.fromkeys(("in_channels", "out_channels", "channels", "heads"), WIDTH),
        **dict.fromkeys(("loa_dim", "t5_dim", "norm_groups"), WIDTH),
        **dict.fromkeys(("resnets", "depth"), FEW),
        "attention_levels": Number(0, 7, whole=True),
    },
    VAEConfig: {
        **dict.fromkeys(("in_channels", "latent_channels", "channels", "norm_groups"), WIDTH),
        **{"resnets": FEW, "scale_factor": Number(1e-6, 1e6)},
    },
    VocoderConfig: {
        **dict.fromkeys(("mel_bins", "initial_channels", "upsample_rates"), RATE),
        "sampling_rate": Number(1000, 384000, whole=True),  # in Hz
        **dict.fromkeys(("upsample_kernels", "resblock_kernels", "resblock_dilations"), KERNEL),
    },
    ProjectionConfig: dict.fromkeys(("clap_dim", "t5_dim", "loa_dim"), WIDTH),
    TextConfig: dict.fromkeys(("clap_max_tokens", "t5_max_tokens", "loa_tokens"), TOKENS),
    ScheduleConfig: {
        "train_steps": Number(1, 10**5, whole=True),
        **dict.fromkeys(("beta_start", "beta_end"), Number(1e-8, 0.999)),
    },
    AttentionRule: {
        **dict.fromkeys(("sparse_ratio", "weight"), Number(0.0, 1.0)),
        "lengths": Number(1.0, 1e6),
    },
    Distilled: {"guidance_scale": Number(1.0, 1000.0)},
    BundleConfig: {"trained_seconds": Number(0.01, MAX_SECONDS)},
}


def make_config(cls: type, data: object, where: str) -> Any:
    """An architecture config made from parsed JSON. Raises ValueError that names the wrong entry.

    Args:
        where: what stands before the names of entries in messages.
    """
    config = from_dict(cls, data, where)
    check_config(config, where)
    return config


def check_config(config: Any, where: str) -> None:
    """Raise ValueError unless networks can be built of a config and its parts."""
    for name, rule in BOUNDS[type(config)].items():
        for entry in _leaves(getattr(config, name)):
            check_rule(f"{where}.{name} =", entry, rule)
    for field in dataclasses.fields(config):
        if type(part := getattr(config, field.name)) in BOUNDS:
            check_config(part, f"{where}.{field.name}")
    for problem in PROBLEMS.get(type(config), lambda config: ())(config):
        raise ValueError(f"{where}: {problem}")  # the first: what comes after it may rely on it


def _leaves(value: object) -> list:
    """The numbers in nested tuples."""
    return sum(map(_leaves, value), []) if isinstance(value, tuple) else [value]


def _unet_problems(unet: UNetConfig) -> Iterator[str]:
    levels, contexts, attending = len(unet.channels), unet.contexts, unet.attention_levels
    if not 1 <= levels == len(unet.heads) <= 8:
        yield f"channels {unet.channels}, heads {unet.heads}: one entry for each of 1 to 8 levels"
    if len(contexts) > 8 or not set(contexts) <= set(CONTEXTS):
        yield f"contexts {shown(contexts)}: at most 8 of {CONTEXTS}"
    if not attending or set(contexts) <= {"self"}:
        yield f"contexts {contexts} on attention_levels {attending}: none attends to text"
    if max(attending) >= levels:
        yield f"attention_levels {attending}: there are {levels} levels, from 0"
    if unet.layers > 1024:  # even without weights, more take minutes to set up
        yield f"{unet.layers} transformer layers: at most 1024"
    groups = unet.norm_groups
    for width, heads in zip(unet.channels, unet.heads, strict=True):
        if width % groups or width % heads:
            yield f"{width} channels: must divide by norm_groups {groups} and heads {heads}"
    whole = dataclasses.replace(unet, absent=()).transformers
    if unknown := sorted(set(unet.absent) - whole.keys()):
        yield f"absent {shown(unknown[0])}: this UNet has no such transformer, absent or not"
    if len(set(unet.absent)) < len(unet.absent):
        yield "absent: names a transformer twice"
    if all(context == "self" for _, context in unet.transformers.values()):
        yield f"absent names {len(unet.absent)} transformers: none of the others attends to text"


def _vae_problems(vae: VAEConfig) -> Iterator[str]:
    if not 1 <= len(vae.channels) <= 8 or any(c % vae.norm_groups for c in vae.channels):
        yield f"channels {vae.channels}: 1 to 8 levels that divide by norm_groups {vae.norm_groups}"


def _vocoder_problems(vocoder: VocoderConfig) -> Iterator[str]:
    rates, kernels = vocoder.upsample_rates, vocoder.upsample_kernels
    blocks, dilations = vocoder.resblock_kernels, vocoder.resblock_dilations
    if not 1 <= len(rates) == len(kernels) <= 16 or any(map(int.__lt__, kernels, rates)):
        yield f"upsample_kernels {kernels}: one for each of 1 to 16 rates {rates}, at least as long"
    if vocoder.hop_length > 2**16 or vocoder.initial_channels % 2 ** len(rates):
        yield (
            f"upsample_rates {rates}: at most 65536 samples together, and each upsampling halves "
            f"initial_channels {vocoder.initial_channels}"
        )
    if not 1 <= len(blocks) == len(dilations) <= 8 or max(map(len, dilations)) > 8:
        yield "resblock_dilations: one list of at most 8 for each of 1 to 8 resblock_kernels"
    if not all(kernel % 2 for kernel in blocks):
        yield f"resblock_kernels {blocks}: must be odd"


def _bundle_problems(config: BundleConfig) -> Iterator[str]:
    unet, vae, projection = config.unet, config.vae, config.projection
    rows, rest = divmod(config.vocoder.mel_bins, vae.downsampling)
    if wrong := mismatches(
        ("GPT-2's tokens for the UNet", projection.loa_dim, unet.loa_dim),
        ("T5's tokens for the UNet", projection.t5_dim, unet.t5_dim),
        ("the VAE's latents", vae.latent_channels, unet.in_channels),
        ("the UNet's output", unet.out_channels, unet.in_channels),
        ("channels of the spectrogram", vae.in_channels, 1),
        ("mel bins left over by the VAE's levels", rest, 0),
        ("latent rows left over by the UNet's levels", rows % unet.time_multiple, 0),
    ):
        yield f"the networks do not fit together: {wrong}"


def _distilled_problems(distilled: Distilled) -> Iterator[str]:
    if distilled.sampler != "lcm":
        yield f"sampler {shown(distilled.sampler)}: must be lcm"


PROBLEMS: dict[type, Callable[[Any], Iterable[str]]] = {
    UNetConfig: _unet_problems,
    VAEConfig: _vae_problems,
    VocoderConfig: _vocoder_problems,
    Distilled: _distilled_problems,
    BundleConfig: _bundle_problems,
}


def mismatches(*joints: tuple[str, object, object]) -> str:
    """The joints (what, found, expected) whose sides differ, in words; empty if all fit."""
    return "; ".join(f"{what}: {one} against {two}" for what, one, two in joints if one != two)
