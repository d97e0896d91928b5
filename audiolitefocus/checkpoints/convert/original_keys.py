"""Checkpoints in the layout of AudioLDM2's authors: one .pth or .ckpt with everything in it.

There are no configs in the file: they are inferred from shapes and, where those do not suffice
(head width, vocoder rates), taken from the authors' code. Its sampling uses the raw weights, not
the moving averages, so those are dropped.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from audiolitefocus.checkpoints.bundle import TOWERS
from audiolitefocus.checkpoints.convert.mapping import ConversionPlan, Edit, TargetFile, compose
from audiolitefocus.checkpoints.convert.original_config import Shapes, config_from_shapes
from audiolitefocus.checkpoints.convert.original_towers import (
    CLAP_EDITS,
    clap_modules,
    settings_from_shapes,
)
from audiolitefocus.checkpoints.convert.read import read_tensors
from audiolitefocus.checkpoints.convert.shared import (
    conv1x1_to_linear,
    network_file,
    take_row,
    transformer,
    vocoder_modules,
)
from audiolitefocus.checkpoints.convert.towers import (
    FEATURE_EXTRACTOR,
    to_json,
    tower_config,
    tower_file,
    tower_json,
)
from audiolitefocus.checkpoints.limits import check_config
from audiolitefocus.checkpoints.towers import check_towers, text_positions
from audiolitefocus.config import BundleConfig, UNetConfig, VAEConfig

# Prefix of the keys that each of our files is made from. The longest one counts.
PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "vocoder": "first_stage_model.vocoder.",
    "projection": "cond_stage_models.0.",
    "gpt2": "cond_stage_models.0.model.",
    "t5": "cond_stage_models.1.model.",
    "clap": "clap.model.",
}
# Leaf tables: our module (or parameter) -> the original's, inside a block.
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
PROJECTION = {  # start and end tokens are rows of tables, which EDITS takes
    "clap": "input_sequence_embed_linear.0",
    "t5": "input_sequence_embed_linear.1",
    "clap_start": "start_of_sequence_tokens.weight",
    "clap_end": "end_of_sequence_tokens.weight",
    "t5_start": "start_of_sequence_tokens.weight",
    "t5_end": "end_of_sequence_tokens.weight",
}
EDITS: dict[str, dict[str, Edit]] = {
    "unet": {"*.proj_in.weight": conv1x1_to_linear, "*.proj_out.weight": conv1x1_to_linear},
    "vae": {"*.attention.to_*.weight": conv1x1_to_linear},
    "projection": {
        "clap_start": take_row(0),
        "clap_end": take_row(0),
        "t5_start": take_row(1),
        "t5_end": take_row(1),
    },
    "clap": CLAP_EDITS,
}
SCHEDULE = "the noise schedule, which the sampler computes"
DROPPED = {  # of keys under none of the prefixes
    "model_ema.*": "moving averages, which the authors' sampling does not use",
    "betas": SCHEDULE,
    "*alphas_cumprod*": SCHEDULE,
    "posterior_*": SCHEDULE,
    "lvlb_weights": SCHEDULE,
    "logvar": "weights of the training loss",
    "scale_factor": "read into the config",
    "clap.mel_transform.*": "spectrograms, which the feature extractor computes",
}
DROPPED_UNDER_PREFIX = {
    "vae": {"loss.*": "the discriminator of the autoencoder's training"},
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


def original_unet_modules(config: UNetConfig) -> dict[str, str]:
    """Our modules -> the original's, which numbers the blocks of all levels through."""
    width, leaves = len(config.contexts), transformer(config.depth)
    deepest = len(config.channels) - 1
    blocks = [("", "", UNET)]

    def stage(ours: str, theirs: str) -> None:
        blocks.append((f"{ours}.resnet", f"{theirs}.0", RESNET))
        blocks.extend(
            (f"{ours}.transformers.{j}", f"{theirs}.{1 + j}", leaves) for j in range(width)
        )

    # 1. Down: the first convolution is block 0; a step to the next level is a block of its own
    number = 1
    for level in range(deepest + 1):
        for i in range(config.resnets):
            stage(f"down.{level}.stages.{i}", f"input_blocks.{number + i}")
        number += config.resnets
        blocks.append((f"down.{level}.resample", f"input_blocks.{number}.0", {"conv": "op"}))
        number += 1
    # 2. The middle
    stage("middle.stage", "middle_block")
    blocks.append(("middle.resnet", f"middle_block.{1 + width}", RESNET))
    # 3. Up: a step is the last entry of its level's last block, after the transformers
    for index, level in enumerate(reversed(range(deepest + 1))):
        first = index * (config.resnets + 1)
        for i in range(config.resnets + 1):
            stage(f"up.{index}.stages.{i}", f"output_blocks.{first + i}")
        last = 1 + width * (level in config.attention_levels)
        step = f"output_blocks.{first + config.resnets}.{last}"
        blocks.append((f"up.{index}.resample", step, {"conv": "conv"}))
    return compose(*blocks)


def original_vae_modules(config: VAEConfig) -> dict[str, str]:
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
    "unet": original_unet_modules,
    "vae": original_vae_modules,
    "vocoder": lambda config: vocoder_modules(config, "ups"),
    "projection": lambda config: PROJECTION,
}


def plan_original(path: Path, *, heads: str, variant: str | None = None) -> ConversionPlan:
    """The plan of a checkpoint. Tensors are memory-mapped: but for the scale factor, none is read.

    Raises:
        ValueError: a file that is damaged, holds code, or is no AudioLDM2 with T5; or
            `heads="config"` or a variant, for it has no config and one set of weights.
    """
    if variant is not None:
        raise ValueError(f"variant {variant!r}: {path} has one set of weights; leave it out")
    if heads != "trained":
        raise ValueError(f'heads {heads!r}: {path} has no unet/config.json; use "trained"')
    # 1. Every config, from the shapes of what belongs to it
    sections, unused = _split(read_tensors(path), path)
    origins = {name: f"{path}: {prefix}" for name, prefix in PREFIXES.items()}
    shapes = {name: Shapes(origins[name], held) for name, held in sections.items()}
    settings = {name: settings_from_shapes(name, shapes[name]) for name in TOWERS}
    towers = {
        name: tower_config(name, settings[name], sections[name], f"{origins[name]}: ")
        for name in TOWERS
    }
    config, why = config_from_shapes(shapes, text_positions(towers["clap"]), unused, path)
    check_config(config, str(path))
    check_towers(config, **towers, where=str(path))
    # 2. What is made of them
    documents = {f"{name}/config.json": tower_json(name, settings[name]) for name in TOWERS}
    documents["clap/preprocessor_config.json"] = to_json(FEATURE_EXTRACTOR)
    return ConversionPlan(
        source=str(path),
        kind="original",
        config=config,
        files=[_original_file(name, held, config, towers) for name, held in sections.items()],
        documents=documents,
        copies={},
        tokenizers={"clap": {}, "t5": {}},
        read={path.name: path},
        heads=why,
        unused=unused,
        dropped=DROPPED,
    )


def _original_file(
    name: str, tensors: Mapping[str, Tensor], config: BundleConfig, towers: Mapping[str, Any]
) -> TargetFile:
    """One weights file, of our networks or of the towers."""
    origin, edits, dropped = PREFIXES[name], EDITS.get(name), DROPPED_UNDER_PREFIX.get(name)
    if name in MODULES:
        table = MODULES[name](getattr(config, name))
        return network_file(name, origin, tensors, config, table, edits=edits, dropped=dropped)
    modules = clap_modules(towers["clap"]) if name == "clap" else None
    return tower_file(
        name, origin, tensors, towers[name], modules=modules, edits=edits, dropped=dropped
    )


def _split(
    tensors: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """The tensors that each of our files is made from, without prefix; and all others."""
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
