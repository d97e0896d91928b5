"""The layout of AudioLDM2's original checkpoints, described independently of the converter.

The converter's tables lead from it to our names; the rules here lead to it, from the names of
diffusers and transformers.
"""

import gzip
import json
import re
from pathlib import Path

import torch
from diffusers import AudioLDM2Pipeline
from torch import Tensor

DATA = Path(__file__).parents[1] / "data" / "original_keys.json.gz"

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_RULES = (
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
)
CLAP_RULES = (
    (r"^text_model", "text_branch"),
    (r"^audio_model\.audio_encoder", "audio_branch"),
    (r"_projection\.linear1", "_projection.0"),
    (r"_projection\.linear2", "_projection.2"),
    (r"batch_norm", "bn0"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"(blocks\.\d+)\.attention\.output\.dense", r"\1.attn.proj"),
    (r"(blocks\.\d+)\.attention\.self", r"\1.attn"),
    (r"(blocks\.\d+)\.intermediate\.dense", r"\1.mlp.fc1"),
    (r"(blocks\.\d+)\.output\.dense", r"\1.mlp.fc2"),
)


def published_keys() -> dict[str, dict[str, list[int]]]:
    """Key -> shape of published checkpoints: all of "audioldm2-full", the UNets of two others.

    The others are "audioldm2-full-large-1150k" and "audioldm2-speech-gigaspeech". Taken from the
    networks of the PyPI package audioldm2 0.1.0.
    """
    return json.loads(gzip.decompress(DATA.read_bytes()))


def unet_name(key: str, *, levels: int, resnets: int, width: int, attending: set[int]) -> str:
    """The original's name of a parameter of diffusers' UNet with `width` transformers a block."""
    module, leaf = key.rsplit(".", 1)
    if module in TOP:
        return f"{TOP[module]}.{leaf}"
    side, *rest = re.match(r"(down|mid|up)_blocks?\.(.*)", key).groups()
    level, rest = rest[0].split(".", 1) if side != "mid" else ("0", rest[0])
    kind, number, rest = rest.split(".", 2)
    level, number = int(level), int(number)
    block, slot = (number // width, 1 + number % width) if kind == "attentions" else (number, 0)
    if kind == "resnets":
        module, leaf = rest.rsplit(".", 1)
        rest = f"{RESNET[module]}.{leaf}"
    if side == "mid":  # resnet, transformers, resnet
        block = 1 + number if kind == "attentions" else number * (1 + width)
        return f"middle_block.{block}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (resnets + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        slot = 1 + width * (levels - 1 - level in attending)
        return f"output_blocks.{level * (resnets + 1) + resnets}.{slot}.{rest}"
    first = 1 + level * (resnets + 1) if side == "down" else level * (resnets + 1)
    return f"{'input' if side == 'down' else 'output'}_blocks.{first + block}.{slot}.{rest}"


def renamed(key: str, rules) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def vae_name(key: str, levels: int) -> str:
    """The original counts the decoder's levels from the finest one."""
    key = re.sub(
        r"up_blocks\.(\d)\.(resnets|upsamplers\.0)",
        lambda m: f"up.{levels - 1 - int(m[1])}.{'block' if m[2] == 'resnets' else 'upsample'}",
        key,
    )
    return renamed(key, VAE_RULES)


def original_checkpoint(pipe: AudioLDM2Pipeline) -> dict[str, Tensor]:
    """The state_dict that holds the same networks as a pipeline of diffusers."""
    state = pipe.unet.state_dict()
    tensors = {name: state[key] for key, name in unet_names(pipe.unet).items()}
    tensors |= _vae(pipe.vae) | _projection(pipe.projection_model)
    vocoder = pipe.vocoder.state_dict()
    for key in vocoder.keys() - {"mean", "scale"}:
        tensors["first_stage_model.vocoder." + key.replace("upsampler", "ups")] = vocoder[key]
    tensors["scale_factor"] = torch.tensor(pipe.vae.config.scaling_factor)
    for key, tensor in pipe.language_model.transformer.state_dict().items():
        tensors[f"cond_stage_models.0.model.{key}"] = tensor
    for key, tensor in pipe.text_encoder_2.state_dict().items():
        tensors[f"cond_stage_models.1.model.{key}"] = tensor
    tensors |= _clap(pipe.text_encoder)
    return extra_tensors(tensors) | tensors


def unet_names(unet) -> dict[str, str]:
    """diffusers' name of every parameter of a UNet -> the original's."""
    kinds = unet.config.down_block_types
    rule = {
        "levels": len(kinds),
        "resnets": unet.config.layers_per_block,
        "width": len(unet.config.cross_attention_dim[0]),
        "attending": {level for level, kind in enumerate(kinds) if kind.startswith("Cross")},
    }
    return {key: f"model.diffusion_model.{unet_name(key, **rule)}" for key in unet.state_dict()}


def _vae(vae) -> dict[str, Tensor]:
    tensors = {}
    for key, tensor in vae.state_dict().items():
        name = vae_name(key, len(vae.config.block_out_channels))
        attention = re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name)
        tensors[f"first_stage_model.{name}"] = tensor[..., None, None] if attention else tensor
    return tensors


def _projection(projection) -> dict[str, Tensor]:
    """Start and end tokens are rows 0 (CLAP) and 1 (T5) of tables with 32."""
    at, state = "cond_stage_models.0.", projection.state_dict()
    tensors = {}
    for ours, theirs in (("projection", "0"), ("projection_1", "1")):
        for leaf in ("weight", "bias"):
            tensors[f"{at}input_sequence_embed_linear.{theirs}.{leaf}"] = state[f"{ours}.{leaf}"]
    for ours, theirs in (("sos_embed", "start"), ("eos_embed", "end")):
        rows = [state[ours], state[f"{ours}_1"], *torch.randn(30, len(state[ours]))]
        tensors[f"{at}{theirs}_of_sequence_tokens.weight"] = torch.stack(rows)
    return tensors


def _clap(clap) -> dict[str, Tensor]:
    """LAION stacks query, key and value."""
    tensors, state = {}, clap.state_dict()
    for key, tensor in state.items():
        if re.search(r"audio_model.*\.(key|value)\.|position_ids|token_type_ids", key):
            continue
        if match := re.search(r"(audio_model.*\.)query(\.\w+)", key):
            stack = [state[f"{match[1]}{part}{match[2]}"] for part in ("query", "key", "value")]
            key, tensor = f"{match[1]}qkv{match[2]}", torch.cat(stack)
        tensors[f"clap.model.{renamed(key, CLAP_RULES)}"] = tensor
    return tensors


def extra_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What else the published files hold: schedules, averages, copies, masks, AudioMAE."""
    inner, audio = "cond_stage_models.0.cond_stage_models", "clap.model.audio_branch"
    names = [
        *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod"),
        *("sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "logvar"),
        *("sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "lvlb_weights"),
        *("posterior_variance", "posterior_log_variance_clipped"),
        *("posterior_mean_coef1", "posterior_mean_coef2"),
        *("model_ema.decay", "model_ema.num_updates"),
        *(f"{inner}.2.audiomae.cls_token", f"{inner}.2.audiomae.blocks.0.attn.qkv.weight"),
        *(f"clap.mel_transform.{name}" for name in ("spectrogram.window", "mel_scale.fb")),
        *(f"cond_stage_models.0.model.h.0.attn.{name}" for name in ("bias", "masked_bias")),
        "clap.model.text_branch.embeddings.position_ids",
        *(f"clap.model.{side}_transform.sequential.0.weight" for side in ("text", "audio")),
        *(f"{audio}.{name}.weight" for name in ("tscam_conv", "head")),
        *(f"{audio}.spectrogram_extractor.stft.conv_{part}.weight" for part in ("real", "imag")),
        *(f"{audio}.logmel_extractor.melW", f"{audio}.layers.0.blocks.0.attn_mask"),
    ]  # fmt: skip
    unread = torch.tensor(float("inf"))  # a conversion that uses it fails
    extras = {name: unread for name in names}
    for key, tensor in tensors.items():
        if key.startswith("model.diffusion_model."):
            extras["model_ema." + key.removeprefix("model.").replace(".", "")] = unread.expand(
                tensor.shape
            )
        elif key.startswith("clap.model."):
            extras[f"{inner}.0.{key.removeprefix('clap.')}"] = unread.expand(tensor.shape)
        elif key.startswith("cond_stage_models.1."):
            extras[f"{inner}.1.{key.removeprefix('cond_stage_models.1.')}"] = unread.expand(
                tensor.shape
            )
    return extras
