"""A model in diffusers layout, as diffusers saves its pipelines: conversion the other way round.

Names of tensors and settings come from the tables by which that layout is read.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from audiolitefocus.checkpoints.convert import diffusers_config as names
from audiolitefocus.checkpoints.convert.diffusers_keys import (
    FOLDERS,
    MODULES,
    TOKENIZERS,
    TOWER_FOLDERS,
)
from audiolitefocus.checkpoints.convert.mapping import table_for
from audiolitefocus.checkpoints.convert.towers import (
    INCIDENTAL,
    TOKENIZER_FILES,
    to_json,
    tokenizer_files,
)
from audiolitefocus.checkpoints.hub import INDEX, PIPELINE
from audiolitefocus.checkpoints.tensors import save_tensors
from audiolitefocus.checkpoints.towers import without
from audiolitefocus.config import BundleConfig, UNetConfig
from audiolitefocus.validation import read_json

VERSION = {"_diffusers_version": "0.35.0"}  # the oldest that reads what is written
CLASSES = {
    "unet": "AudioLDM2UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "vocoder": "SpeechT5HifiGan",
    "projection": "AudioLDM2ProjectionModel",
    "clap": "ClapModel",
    "t5": "T5EncoderModel",
    "gpt2": "GPT2LMHeadModel",
}
# Whose code a class is: diffusers', transformers', or that of diffusers' AudioLDM2 pipeline.
LIBRARIES = {"unet": "audioldm2", "projection": "audioldm2", "vae": "diffusers"}
PROJECTIONS = ("proj_in.weight", "proj_out.weight")
TOKENIZER_CLASSES = {"clap": "RobertaTokenizerFast", "t5": "T5TokenizerFast"}
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def export_diffusers(
    folder: Path,
    bundle: Path,
    config: BundleConfig,
    networks: Mapping[str, nn.Module],
    *,
    dtype: torch.dtype,
    variant: str | None = None,
) -> None:
    """Write a model into an empty folder, in diffusers layout.

    Args:
        bundle: the model's own folder, from which configs of towers and tokenizers are copied.
        networks: "unet", "vae", "vocoder", "projection", "clap", "t5" and "gpt2".
        dtype: of all weights.
        variant: stands in the names of weights files, as "fp16" in model.fp16.safetensors.

    Raises:
        ValueError: a model that diffusers cannot express, or whose bundle has no tokenizers.
        OSError: a file that cannot be written.
    """
    settings = _settings(config, bundle)
    index = _write_tokenizers(folder, bundle)
    for name, network in networks.items():
        place = folder / FOLDERS[name]
        library = LIBRARIES.get(name, "transformers")
        stem = "model" if library == "transformers" else "diffusion_pytorch_model"
        file = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"
        save_tensors(place / file, export_tensors(name, network, config, dtype))
        if library == "transformers":  # which otherwise loads weights in the dtype of the config
            settings[name]["dtype"] = str(dtype).removeprefix("torch.")
        (place / "config.json").write_text(to_json(settings[name]), encoding="utf-8")
        index[FOLDERS[name]] = [library, CLASSES[name]]
    (folder / "scheduler").mkdir()
    scheduler = {**SCHEDULER, **VERSION, **_renamed(config.schedule, names.SCHEDULE_NAMES)}
    if config.distilled is not None:
        scheduler["_class_name"] = "LCMScheduler"
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(to_json(scheduler), encoding="utf-8")
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    text = to_json({"_class_name": PIPELINE, **VERSION, **index})
    (folder / INDEX).write_text(text, encoding="utf-8")


def _write_tokenizers(folder: Path, bundle: Path) -> dict[str, list]:
    """Copy tokenizers and feature extractor. Returns their entries of model_index.json."""
    entries = {"feature_extractor": ["transformers", "ClapFeatureExtractor"]}
    for name, place in TOKENIZERS.items():
        if not tokenizer_files(bundle / name, name):
            raise ValueError(
                f"{bundle / name} has no tokenizer, without which diffusers loads no pipeline: "
                f"convert again with --tokenizers FOLDER"
            )
        (folder / place).mkdir()
        for file in TOKENIZER_FILES:
            if (bundle / name / file).is_file():
                shutil.copyfile(bundle / name / file, folder / place / file)
        kind = read_json(bundle / name / "tokenizer_config.json").get("tokenizer_class")
        entries[place] = ["transformers", kind or TOKENIZER_CLASSES[name]]
    extractor = "preprocessor_config.json"
    (folder / "feature_extractor").mkdir()
    shutil.copyfile(bundle / "clap" / extractor, folder / "feature_extractor" / extractor)
    return entries


def _settings(config: BundleConfig, bundle: Path) -> dict[str, dict]:
    """The config.json of every network."""
    hop, rate = config.vocoder.hop_length, config.vocoder.sampling_rate
    frames = config.trained_seconds * rate / hop / config.vae.downsampling
    levels = len(config.vae.channels)
    towers = {
        name: without(read_json(bundle / name / "config.json"), INCIDENTAL)
        for name in TOWER_FOLDERS
    }
    return {
        "unet": {**unet_settings(config.unet), "sample_size": round(frames)},
        "vae": {
            **_renamed(config.vae, names.VAE_NAMES),
            "out_channels": config.vae.in_channels,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "_class_name": CLASSES["vae"],
            **VERSION,
        },
        "projection": {
            **_renamed(config.projection, names.PROJECTION_NAMES),
            "_class_name": CLASSES["projection"],
            **VERSION,
        },
        "vocoder": {
            **_renamed(config.vocoder, names.VOCODER_NAMES),
            "normalize_before": False,
            "model_type": "speecht5_hifigan",
            "architectures": [CLASSES["vocoder"]],
        },
        **towers,
        "gpt2": {
            **towers["gpt2"],
            "architectures": [CLASSES["gpt2"]],
            "max_new_tokens": config.text.loa_tokens,
        },
    }


def unet_settings(unet: UNetConfig) -> dict:
    """The config.json of the UNet. Raises ValueError for what diffusers does not have."""
    if unet.absent:
        raise ValueError(
            f"the UNet was pruned of {len(unet.absent)} transformers, which diffusers cannot leave "
            f"out: save the model that it was made of"
        )
    widths = {"self": None, "loa": unet.loa_dim, "t5": unet.t5_dim}
    # which tokens a transformer gets is decided by its place there, as `_contexts` reads it
    for place, name in enumerate(unet.contexts):
        if name != "self" and name != ("loa" if place <= 1 else "t5"):
            raise ValueError(f"contexts {unet.contexts}: diffusers has no such order of them")
    down = [
        "CrossAttnDownBlock2D" if level in unet.attention_levels else "DownBlock2D"
        for level in range(len(unet.channels))
    ]
    return {
        "_class_name": CLASSES["unet"],
        **VERSION,
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "block_out_channels": list(unet.channels),
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "layers_per_block": unet.resnets,
        "cross_attention_dim": [[widths[name] for name in unet.contexts]] * len(unet.channels),
        "transformer_layers_per_block": unet.depth,
        "attention_head_dim": list(unet.heads),  # the number of heads, whatever its name says
        "norm_num_groups": unet.norm_groups,
    }


def _renamed(config: object, table: Mapping[str, str]) -> dict:
    """Settings under their names, of a table from ours to theirs."""
    return {theirs: getattr(config, ours) for ours, theirs in table.items()}


def export_tensors(
    name: str, network: nn.Module, config: BundleConfig, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The weights of a network under their names, on the CPU."""
    state = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype)
        for key, value in network.state_dict().items()
    }
    if name in TOWER_FOLDERS:
        state.pop("encoder.embed_tokens.weight", None)  # T5's second name for shared.weight
        prefix = "transformer." if name == "gpt2" else ""
        return {prefix + key: value for key, value in state.items()}
    table = table_for(state, MODULES[name](getattr(config, name)))
    tensors = {table[key]: value for key, value in state.items()}
    if name == "unet":  # where projections around the blocks of a transformer are convolutions
        for key in state:
            if key.endswith(PROJECTIONS) and ".blocks." not in key:
                tensors[table[key]] = state[key][..., None, None]
    if name == "vocoder":  # of an input that is not normalised
        bins = config.vocoder.mel_bins
        tensors |= {"mean": torch.zeros(bins, dtype=dtype), "scale": torch.ones(bins, dtype=dtype)}
    return tensors
