"""Checkpoints in diffusers layout: a folder with one subfolder for each network, as
`AudioLDM2Pipeline.save_pretrained` writes it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from audiolitefocus.checkpoints.convert import diffusers_config as settings
from audiolitefocus.checkpoints.convert.mapping import Edit, Part, Source, compose
from audiolitefocus.checkpoints.convert.read import read_component, read_json
from audiolitefocus.checkpoints.convert.shared_keys import (
    fold_weight_norm,
    linear,
    network_part,
    transformer,
    vocoder_modules,
)
from audiolitefocus.checkpoints.convert.towers import (
    FEATURE_EXTRACTOR,
    check_widths,
    text_positions,
    to_json,
    tokenizer_files,
    tower_config,
    tower_part,
)
from audiolitefocus.checkpoints.convert.unet_config import unet_config
from audiolitefocus.config import BundleConfig, UNetConfig, VAEConfig

TOWERS = {"clap": "text_encoder", "t5": "text_encoder_2", "gpt2": "language_model"}
NETWORKS = {"unet": "unet", "vae": "vae", "vocoder": "vocoder", "projection": "projection_model"}
TOKENIZERS = {"clap": "tokenizer", "t5": "tokenizer_2"}
CONFIGS = {
    **{folder: f"{folder}/config.json" for folder in (*NETWORKS.values(), *TOWERS.values())},
    "scheduler": "scheduler/scheduler_config.json",
}
MODEL_TYPES = {"text_encoder": "clap", "text_encoder_2": "t5", "language_model": "gpt2"}

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
    "unet": {"*.proj_in.weight": linear, "*.proj_out.weight": linear},
    "vae": {"*.attention.to_*.weight": linear},
}
DROPPED = {
    "vocoder": {
        "mean": "the vocoder does not normalise its input",
        "scale": "the vocoder does not normalise its input",
    }
}


def unet_modules(config: UNetConfig) -> dict[str, str]:
    """Our modules -> diffusers'. All transformers of a level stand in one flat list there."""
    width, leaves = len(config.contexts), transformer(config.depth)
    blocks = [("", "", UNET)]
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
    blocks += [
        (f"middle.stage.transformers.{j}", f"mid_block.attentions.{j}", leaves)
        for j in range(width)
    ]
    blocks.append(("middle.stage.resnet", "mid_block.resnets.0", RESNET))
    blocks.append(("middle.resnet", "mid_block.resnets.1", RESNET))
    return compose(*blocks)


def vae_modules(config: VAEConfig) -> dict[str, str]:
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
    "unet": unet_modules,
    "vae": vae_modules,
    "vocoder": lambda config: vocoder_modules(config, "upsampler"),
    "projection": lambda config: PROJECTION,
}


def read(folder: Path, *, heads: str) -> Source:
    """Understand a folder: every config, and which tensor goes where. Reads no weights.

    Raises:
        ValueError: a component that is missing, damaged, or not what AudioLDM2 is made of.
    """
    configs = _read_configs(folder)
    config, why = _bundle_config(folder, configs, heads)
    files = {name: folder / name for name in CONFIGS.values()}
    towers = {name: tower_config(name, configs[place]) for name, place in TOWERS.items()}
    documents = {f"{name}/config.json": to_json(tower) for name, tower in towers.items()}
    parts = []
    for name, component in (NETWORKS | TOWERS).items():
        tensors, paths = read_component(folder / component)
        files.update({f"{component}/{path.name}": path for path in paths})
        parts.append(_part(name, component, tensors, config, towers))
    tokenizers = {name: tokenizer_files(folder / place, name) for name, place in TOKENIZERS.items()}
    ears = folder / "feature_extractor" / "preprocessor_config.json"
    copies = {"clap/preprocessor_config.json": ears} if ears.is_file() else {}
    if not copies:
        documents["clap/preprocessor_config.json"] = to_json(FEATURE_EXTRACTOR)
    return Source(
        name=str(folder),
        kind="diffusers",
        config=config,
        parts=parts,
        documents=documents,
        copies=copies,
        tokenizers=tokenizers,
        files=files,
        heads=why,
    )


def _read_configs(folder: Path) -> dict[str, dict]:
    """The config.json of every component, checked to be AudioLDM2's with T5."""
    index = folder / "model_index.json"
    pipeline = read_json(index).get("_class_name") if index.is_file() else "AudioLDM2Pipeline"
    if pipeline != "AudioLDM2Pipeline":
        raise ValueError(f"{folder} is a {pipeline}: only AudioLDM2Pipeline can be converted")
    missing = [name for name in CONFIGS.values() if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing)}: fetch the whole repository")
    configs = {name: read_json(folder / path) for name, path in CONFIGS.items()}
    for component, expected in MODEL_TYPES.items():
        if (found := configs[component].get("model_type")) == "vits":
            raise ValueError(
                f"{folder} is a speech checkpoint: its {component} is VITS, which reads phonemes; "
                f"only checkpoints with T5 (AudioLDM2, its large and its music one) are supported"
            )
        if found != expected:
            raise ValueError(f"{folder / component} is a {found!r}, expected {expected!r}")
    return configs


def _bundle_config(
    folder: Path, configs: Mapping[str, dict], heads: str
) -> tuple[BundleConfig, str]:
    where = {name: str(folder / path) for name, path in CONFIGS.items()}
    projection = settings.projection_config(configs["projection_model"], where["projection_model"])
    unet, why = unet_config(configs["unet"], projection, heads, where["unet"])
    limits = [folder / name / "tokenizer_config.json" for name in TOKENIZERS.values()]
    clap, t5 = (read_json(path) if path.is_file() else {} for path in limits)
    config = BundleConfig(
        unet=unet,
        vae=settings.vae_config(configs["vae"], where["vae"]),
        vocoder=settings.vocoder_config(configs["vocoder"], where["vocoder"]),
        projection=projection,
        text=settings.text_config(
            clap, t5, configs["language_model"], text_positions(configs["text_encoder"])
        ),
        schedule=settings.schedule_config(configs["scheduler"], where["scheduler"]),
    )
    check_widths(config, {name: configs[component] for name, component in TOWERS.items()})
    return config, why


def _part(
    name: str,
    component: str,
    tensors: dict[str, Tensor],
    config: BundleConfig,
    towers: Mapping[str, dict],
) -> Part:
    """One weights file, of a network or of a tower."""
    origin = f"{component}: "
    if name in TOWERS:
        return tower_part(name, origin, _bare(tensors), towers[name])
    if name == "vae":
        tensors = {_current_name(key): tensor for key, tensor in tensors.items()}
    if name == "vocoder":
        tensors = fold_weight_norm(tensors)
    modules, edits, dropped = MODULES[name], EDITS.get(name), DROPPED.get(name)
    table = modules(getattr(config, name))
    return network_part(name, origin, tensors, config, table, edits=edits, dropped=dropped)


def _current_name(key: str) -> str:
    """A key of the VAE in today's spelling: its attention was renamed in diffusers 0.14."""
    parts = key.split(".")
    if "attentions" in parts:
        parts = [VAE_OLD_NAMES.get(part, part) for part in parts]
    return ".".join(parts)


def _bare(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A language model's trunk: GPT2LMHeadModel holds GPT2Model under "transformer."."""
    return {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
