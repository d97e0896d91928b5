"""Checkpoints in diffusers layout: a folder for each network, as diffusers saves its pipelines."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from audiolitefocus.checkpoints.convert.diffusers_config import (
    projection_from_settings,
    schedule_from_settings,
    unet_from_settings,
    vae_from_settings,
    vocoder_from_settings,
)
from audiolitefocus.checkpoints.convert.mapping import ConversionPlan, Edit, TargetFile, compose
from audiolitefocus.checkpoints.convert.read import read_component
from audiolitefocus.checkpoints.convert.shared import (
    conv1x1_to_linear,
    network_file,
    text_limits,
    transformer,
    vocoder_modules,
)
from audiolitefocus.checkpoints.convert.towers import (
    FEATURE_EXTRACTOR,
    to_json,
    tokenizer_files,
    tower_config,
    tower_file,
    tower_json,
)
from audiolitefocus.checkpoints.hub import check_variant
from audiolitefocus.checkpoints.limits import check_config
from audiolitefocus.checkpoints.towers import check_towers, text_positions
from audiolitefocus.config import BundleConfig, UNetConfig, VAEConfig
from audiolitefocus.validation import read_json

# Where a folder has our networks, the text towers and their tokenizers.
NETWORK_FOLDERS = {
    "unet": "unet",
    "vae": "vae",
    "vocoder": "vocoder",
    "projection": "projection_model",
}
TOWER_FOLDERS = {"clap": "text_encoder", "t5": "text_encoder_2", "gpt2": "language_model"}
TOKENIZERS = {"clap": "tokenizer", "t5": "tokenizer_2"}
FOLDERS = NETWORK_FOLDERS | TOWER_FOLDERS
CONFIGS = {
    **{name: f"{folder}/config.json" for name, folder in FOLDERS.items()},
    "schedule": "scheduler/scheduler_config.json",
}

# Leaf tables: our module (or parameter) -> diffusers', inside a block.
RESNET = {
    name: name for name in ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
}
UNET = {
    "conv_in": "conv_in",
    "time_embedding.linear_1": "time_embedding.linear_1",
    "time_embedding.linear_2": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
VAE_SIDE = {  # of the encoder and of the decoder
    "conv_in": "conv_in",
    "middle.attention.norm": "mid_block.attentions.0.group_norm",
    "middle.attention.to_q": "mid_block.attentions.0.to_q",
    "middle.attention.to_k": "mid_block.attentions.0.to_k",
    "middle.attention.to_v": "mid_block.attentions.0.to_v",
    "middle.attention.to_out": "mid_block.attentions.0.to_out.0",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
# Its attention was renamed in diffusers 0.14; a folder may be older.
VAE_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
PROJECTION = {
    "clap": "projection",
    "t5": "projection_1",
    "clap_start": "sos_embed",
    "clap_end": "eos_embed",
    "t5_start": "sos_embed_1",
    "t5_end": "eos_embed_1",
}
EDITS: dict[str, dict[str, Edit]] = {
    "unet": {"*.proj_in.weight": conv1x1_to_linear, "*.proj_out.weight": conv1x1_to_linear},
    "vae": {"*.attention.to_*.weight": conv1x1_to_linear},
}
DROPPED = {
    "vocoder": {
        "mean": "the vocoder does not normalise its input",
        "scale": "the vocoder does not normalise its input",
    }
}


def diffusers_unet_modules(config: UNetConfig) -> dict[str, str]:
    """Our modules -> diffusers'. All transformers of a level stand in one flat list there."""
    width, leaves = len(config.contexts), transformer(config.depth)
    blocks = [("", "", UNET)]
    # 1. Down and up
    sides = (
        ("down", "down_blocks", config.resnets, "downsamplers"),
        ("up", "up_blocks", config.resnets + 1, "upsamplers"),
    )
    for ours, theirs, stages, step in sides:
        for level in range(len(config.channels)):
            here, there = f"{ours}.{level}", f"{theirs}.{level}"
            blocks.append((f"{here}.resample", f"{there}.{step}.0", {"conv": "conv"}))
            for i in range(stages):
                blocks.append((f"{here}.stages.{i}.resnet", f"{there}.resnets.{i}", RESNET))
                blocks += [
                    (
                        f"{here}.stages.{i}.transformers.{j}",
                        f"{there}.attentions.{i * width + j}",
                        leaves,
                    )
                    for j in range(width)
                ]
    # 2. The middle: residual block, transformers, residual block
    blocks += [
        (f"middle.stage.transformers.{j}", f"mid_block.attentions.{j}", leaves)
        for j in range(width)
    ]
    blocks.append(("middle.stage.resnet", "mid_block.resnets.0", RESNET))
    blocks.append(("middle.resnet", "mid_block.resnets.1", RESNET))
    return compose(*blocks)


def diffusers_vae_modules(config: VAEConfig) -> dict[str, str]:
    """Our modules -> diffusers'."""
    blocks = [("", "", {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"})]
    sides = (
        ("encoder", "down_blocks", config.resnets, "downsamplers"),
        ("decoder", "up_blocks", config.resnets + 1, "upsamplers"),
    )
    for side, theirs, resnets, step in sides:
        blocks.append((side, side, VAE_SIDE))
        blocks.append((f"{side}.middle.resnet_1", f"{side}.mid_block.resnets.0", RESNET))
        blocks.append((f"{side}.middle.resnet_2", f"{side}.mid_block.resnets.1", RESNET))
        for level in range(len(config.channels)):
            here, there = f"{side}.levels.{level}", f"{side}.{theirs}.{level}"
            blocks.append((f"{here}.resample", f"{there}.{step}.0", {"conv": "conv"}))
            blocks += [
                (f"{here}.resnets.{i}", f"{there}.resnets.{i}", RESNET) for i in range(resnets)
            ]
    return compose(*blocks)


MODULES: dict[str, Callable[..., dict[str, str]]] = {
    "unet": diffusers_unet_modules,
    "vae": diffusers_vae_modules,
    "vocoder": lambda config: vocoder_modules(config, "upsampler"),
    "projection": lambda config: PROJECTION,
}


def plan_diffusers(folder: Path, *, heads: str, variant: str | None = None) -> ConversionPlan:
    """The plan of a folder. Tensors are memory-mapped: none is read yet.

    Weights files of `variant` are preferred to others.

    Raises:
        ValueError: a component that is missing, damaged, or not what AudioLDM2 is made of.
    """
    # 1. Every config, and what the weights files hold
    settings = _read_settings(folder)
    components = {n: read_component(folder / place, variant) for n, place in FOLDERS.items()}
    check_variant(variant, [path.name for _, paths in components.values() for path in paths])
    tensors = {name: held for name, (held, _) in components.items()}
    tensors["vae"] = {_current_name(key): tensor for key, tensor in tensors["vae"].items()}
    tensors["gpt2"] = {_trunk_name(key): tensor for key, tensor in tensors["gpt2"].items()}
    towers = {
        name: tower_config(name, settings[name], tensors[name], f"{folder / CONFIGS[name]}: ")
        for name in TOWER_FOLDERS
    }
    config, why = _bundle_config(folder, settings, towers, heads)
    # 2. What is made of them
    documents = {f"{name}/config.json": tower_json(name, settings[name]) for name in towers}
    extractor = folder / "feature_extractor" / "preprocessor_config.json"
    copies = {"clap/preprocessor_config.json": extractor} if extractor.is_file() else {}
    if not copies:
        documents["clap/preprocessor_config.json"] = to_json(FEATURE_EXTRACTOR)
    weights = {
        f"{FOLDERS[name]}/{path.name}": path
        for name, (_, paths) in components.items()
        for path in paths
    }
    return ConversionPlan(
        source=str(folder),
        kind="diffusers",
        config=config,
        files=_diffusers_files(tensors, config, towers),
        documents=documents,
        copies=copies,
        tokenizers={name: tokenizer_files(folder / at, name) for name, at in TOKENIZERS.items()},
        read={path: folder / path for path in CONFIGS.values()} | weights,
        heads=why,
    )


def _diffusers_files(
    tensors: Mapping[str, Mapping[str, Tensor]], config: BundleConfig, towers: Mapping[str, Any]
) -> list[TargetFile]:
    """The weights files, of our networks and of the towers."""
    files = []
    for name, place in NETWORK_FOLDERS.items():
        table = MODULES[name](getattr(config, name))
        edits, dropped = EDITS.get(name), DROPPED.get(name)
        files.append(
            network_file(
                name, f"{place}: ", tensors[name], config, table, edits=edits, dropped=dropped
            )
        )
    for name, place in TOWER_FOLDERS.items():
        files.append(tower_file(name, f"{place}: ", tensors[name], towers[name]))
    return files


def _read_settings(folder: Path) -> dict[str, dict]:
    """The config.json of every component, checked to be AudioLDM2's with T5."""
    index = folder / "model_index.json"
    pipeline = read_json(index).get("_class_name") if index.is_file() else "AudioLDM2Pipeline"
    if pipeline != "AudioLDM2Pipeline":
        raise ValueError(f"{folder} is a {pipeline}: only AudioLDM2Pipeline can be converted")
    missing = [path for path in CONFIGS.values() if not (folder / path).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}: fetch the whole repository")
    settings = {name: read_json(folder / path) for name, path in CONFIGS.items()}
    for name, place in TOWER_FOLDERS.items():
        if (found := settings[name].get("model_type")) == "vits":
            raise ValueError(
                f"{folder} is a speech checkpoint: its {place} is VITS, which reads phonemes; only "
                f"checkpoints with T5 (AudioLDM2, its large and its music one) are supported"
            )
        if found != name:
            raise ValueError(f"{folder / place} is a {found!r}, expected {name!r}")
    return settings


def _bundle_config(
    folder: Path, settings: Mapping[str, dict], towers: Mapping[str, Any], heads: str
) -> tuple[BundleConfig, str]:
    """The bundle's config, and the line that says which heads were taken and why."""
    where = {name: str(folder / path) for name, path in CONFIGS.items()}
    projection = projection_from_settings(settings["projection"], where["projection"])
    unet, why = unet_from_settings(settings["unet"], projection, heads, where["unet"])
    limits = [folder / place / "tokenizer_config.json" for place in TOKENIZERS.values()]
    clap, t5 = (read_json(path) if path.is_file() else {} for path in limits)
    config = BundleConfig(
        unet=unet,
        vae=vae_from_settings(settings["vae"], where["vae"]),
        vocoder=vocoder_from_settings(settings["vocoder"], where["vocoder"]),
        projection=projection,
        text=text_limits(clap, t5, settings["gpt2"], text_positions(towers["clap"])),
        schedule=schedule_from_settings(settings["schedule"], where["schedule"]),
    )
    check_config(config, str(folder))
    check_towers(config, **towers, where=str(folder))
    return config, why


def _current_name(key: str) -> str:
    """A key of the VAE in today's spelling."""
    parts = key.split(".")
    if "attentions" in parts:
        parts = [VAE_OLD_NAMES.get(part, part) for part in parts]
    return ".".join(parts)


def _trunk_name(key: str) -> str:
    """A key of GPT2Model, which a GPT2LMHeadModel holds under "transformer."."""
    return key.removeprefix("transformer.")
