"""The checkpoints that AudioLDM2's authors released: one .pth or .ckpt with everything in it.

Configs are not in the file; what shapes do not tell (head width, vocoder rates) is the authors'
code's. Its sampling reads the raw weights and never the moving averages, so those are dropped.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from audiolitefocus.checkpoints.convert.mapping import Edit, Part, Source, compose
from audiolitefocus.checkpoints.convert.original_config import Shapes, bundle_config
from audiolitefocus.checkpoints.convert.original_towers import (
    CLAP_EDITS,
    clap_modules,
    tower_settings,
)
from audiolitefocus.checkpoints.convert.read import read_tensors
from audiolitefocus.checkpoints.convert.shared_keys import (
    fold_weight_norm,
    linear,
    network_part,
    row,
    transformer,
    vocoder_modules,
)
from audiolitefocus.checkpoints.convert.towers import (
    FEATURE_EXTRACTOR,
    check_widths,
    to_json,
    tower_config,
    tower_part,
)
from audiolitefocus.checkpoints.towers import TOWERS
from audiolitefocus.config import BundleConfig, UNetConfig, VAEConfig

# Where each of our files lies in the checkpoint. The longest prefix counts.
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "vocoder": "first_stage_model.vocoder.",
    "projection": "cond_stage_models.0.",
    "gpt2": "cond_stage_models.0.model.",
    "t5": "cond_stage_models.1.model.",
    "clap": "clap.model.",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_RESNET = {
    **{name: name for name in ("norm1", "conv1", "norm2", "conv2")},
    "conv_shortcut": "nin_shortcut",
}
VAE_SIDE = {
    "conv_in": "conv_in",
    "middle.attention.norm": "mid.attn_1.norm",
    "middle.attention.to_q": "mid.attn_1.q",
    "middle.attention.to_k": "mid.attn_1.k",
    "middle.attention.to_v": "mid.attn_1.v",
    "middle.attention.to_out": "mid.attn_1.proj_out",
    "norm_out": "norm_out",
    "conv_out": "conv_out",
}
PROJECTION = {
    "clap": "input_sequence_embed_linear.0",
    "t5": "input_sequence_embed_linear.1",
    "clap_start": "start_of_sequence_tokens.weight",
    "clap_end": "end_of_sequence_tokens.weight",
    "t5_start": "start_of_sequence_tokens.weight",
    "t5_end": "end_of_sequence_tokens.weight",
}
EDITS: dict[str, dict[str, Edit]] = {
    "unet": {"*.proj_in.weight": linear, "*.proj_out.weight": linear},
    "vae": {"*.attention.to_*.weight": linear},
    "projection": {"clap_start": row(0), "clap_end": row(0), "t5_start": row(1), "t5_end": row(1)},
    "clap": CLAP_EDITS,
}
SCHEDULE = "the noise schedule, which the sampler computes"
DROPPED = {  # outside of all prefixes
    "model_ema.*": "moving averages, which the authors' sampling does not use",
    "betas": SCHEDULE,
    "*alphas_cumprod*": SCHEDULE,
    "posterior_*": SCHEDULE,
    "lvlb_weights": SCHEDULE,
    "logvar": "weighs the loss of training",
    "scale_factor": "read into the config",
    "clap.mel_transform.*": "spectrograms, which the feature extractor computes",
}
DROPPED_BELOW = {
    "vae": {"loss.*": "judges the autoencoder in training"},
    "projection": {
        "cond_stage_models.*": "second copies of CLAP and T5; the AudioMAE that set the targets"
    },
    "clap": {
        "text_transform.*": "a head of CLAP's own training",
        "audio_transform.*": "a head of CLAP's own training",
        "audio_branch.tscam_conv.*": "classifies sounds",
        "audio_branch.head.*": "classifies sounds",
        "audio_branch.spectrogram_extractor.*": "spectrograms, by the feature extractor",
        "audio_branch.logmel_extractor.*": "spectrograms, by the feature extractor",
        "audio_branch.layers.*.attn_mask": "follows from the window size",
        "attn_mask": "of a text encoder that is not used",
    },
}


def unet_modules(config: UNetConfig) -> dict[str, str]:
    """Our modules -> the original's, which numbers the blocks of all levels through."""
    width, leaves = len(config.contexts), transformer(config.depth)
    deepest = len(config.channels) - 1
    blocks = [("", "", UNET)]

    def stage(ours: str, theirs: str) -> None:
        blocks.append((f"{ours}.resnet", f"{theirs}.0", RESNET))
        blocks.extend(
            (f"{ours}.transformers.{j}", f"{theirs}.{1 + j}", leaves) for j in range(width)
        )

    number = 1
    for level in range(deepest + 1):
        for i in range(config.resnets):
            stage(f"down.{level}.stages.{i}", f"input_blocks.{number + i}")
        number += config.resnets
        blocks.append((f"down.{level}.resample", f"input_blocks.{number}.0", {"conv": "op"}))
        number += 1
    stage("middle.stage", "middle_block")
    blocks.append(("middle.resnet", f"middle_block.{1 + width}", RESNET))
    for index, level in enumerate(reversed(range(deepest + 1))):
        first = index * (config.resnets + 1)
        for i in range(config.resnets + 1):
            stage(f"up.{index}.stages.{i}", f"output_blocks.{first + i}")
        last = 1 + width * (level in config.attention_levels)
        step = f"output_blocks.{first + config.resnets}.{last}"
        blocks.append((f"up.{index}.resample", step, {"conv": "conv"}))
    return compose(*blocks)


def vae_modules(config: VAEConfig) -> dict[str, str]:
    """Our modules -> the original's, whose decoder counts levels from the top resolution."""
    blocks = [("", "", {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"})]
    deepest = len(config.channels) - 1
    for side, theirs, resnets in (
        ("encoder", "down", config.resnets),
        ("decoder", "up", config.resnets + 1),
    ):
        blocks.append((side, side, VAE_SIDE))
        blocks.append((f"{side}.middle.resnet_1", f"{side}.mid.block_1", VAE_RESNET))
        blocks.append((f"{side}.middle.resnet_2", f"{side}.mid.block_2", VAE_RESNET))
        for level in range(deepest + 1):
            number = level if side == "encoder" else deepest - level
            here, there = f"{side}.levels.{level}", f"{side}.{theirs}.{number}"
            blocks.append((f"{here}.resample", f"{there}.{theirs}sample", {"conv": "conv"}))
            blocks += [
                (f"{here}.resnets.{i}", f"{there}.block.{i}", VAE_RESNET) for i in range(resnets)
            ]
    return compose(*blocks)


MODULES: dict[str, Callable[..., dict[str, str]]] = {
    "unet": unet_modules,
    "vae": vae_modules,
    "vocoder": lambda config: vocoder_modules(config, "ups"),
    "projection": lambda config: PROJECTION,
}


def read(path: Path, *, heads: str) -> Source:
    """Understand a checkpoint: every config, and which tensor goes where.

    Raises:
        ValueError: a file that is damaged, holds code, or is no AudioLDM2 with T5; or
            `heads="config"`, for there is no config.
    """
    if heads != "trained":
        raise ValueError(f'heads {heads!r}: {path} has no unet/config.json; use "trained"')
    sections, unused = _split(read_tensors(path), path)
    sections["vocoder"] = fold_weight_norm(sections["vocoder"])
    shapes = {name: Shapes(f"{path}: {PREFIXES[name]}", part) for name, part in sections.items()}
    towers = {name: tower_config(name, tower_settings(name, shapes[name])) for name in TOWERS}
    config, why = bundle_config(shapes, towers["clap"], unused, path)
    check_widths(config, towers)
    documents = {f"{name}/config.json": to_json(tower) for name, tower in towers.items()}
    documents["clap/preprocessor_config.json"] = to_json(FEATURE_EXTRACTOR)
    return Source(
        name=str(path),
        kind="original",
        config=config,
        parts=[_part(name, tensors, config, towers) for name, tensors in sections.items()],
        documents=documents,
        copies={},
        tokenizers={"clap": {}, "t5": {}},
        files={path.name: path},
        heads=why,
        unused=unused,
        dropped=DROPPED,
    )


def _part(
    name: str, tensors: Mapping[str, Tensor], config: BundleConfig, towers: Mapping[str, dict]
) -> Part:
    """One weights file, of a network or of a tower."""
    origin, edits, dropped = PREFIXES[name], EDITS.get(name), DROPPED_BELOW.get(name)
    if name in MODULES:
        table = MODULES[name](getattr(config, name))
        return network_part(name, origin, tensors, config, table, edits=edits, dropped=dropped)
    modules = clap_modules(towers[name]) if name == "clap" else None
    return tower_part(
        name, origin, tensors, towers[name], modules=modules, edits=edits, dropped=dropped
    )


def _split(
    tensors: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors of each of our files, without their prefix; and those of none."""
    sections: dict[str, dict[str, Tensor]] = {name: {} for name in PREFIXES}
    unused = {}
    for key, tensor in tensors.items():
        owners = [name for name, prefix in PREFIXES.items() if key.startswith(prefix)]
        if owners:
            name = max(owners, key=lambda name: len(PREFIXES[name]))
            sections[name][key.removeprefix(PREFIXES[name])] = tensor
        else:
            unused[key] = tensor
    if any(".learnable_positional_embedding" in key for key in tensors):
        raise ValueError(
            f"{path} is a speech checkpoint: it reads phonemes in place of T5's tokens, which is "
            f"not supported"
        )
    if empty := [PREFIXES[name] for name, part in sections.items() if not part]:
        raise ValueError(f"{path} is no AudioLDM2 checkpoint: nothing under {', '.join(empty)}")
    return sections, unused
