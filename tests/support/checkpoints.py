"""Tiny checkpoints with random weights, in the layouts that the converter reads.

Every parameter is random: diffusers and PyTorch initialise some with zero or one, where a wrong
order or a missing bias would not show.
"""

import os
import shutil
import string
from pathlib import Path

import pytest
import torch
import transformers
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2ProjectionModel,
    AudioLDM2UNet2DConditionModel,
    AutoencoderKL,
    DDIMScheduler,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

from audiolitefocus.checkpoints.bundle import TOWERS, sha256
from audiolitefocus.checkpoints.convert import convert_checkpoint

NETWORKS = ("unet", "vae", "vocoder", "projection")
WEIGHTS = [
    *(f"{name}.safetensors" for name in NETWORKS),
    *(f"{name}/model.safetensors" for name in TOWERS),
]

# Widths of the tiny checkpoint. All differ, so that no tensor fits where another belongs.
CLAP, T5, GPT2 = 48, 40, 64
CHANNELS = (32, 64, 96)
TRAINED_HEADS, CONFIG_HEADS = (1, 2, 3), (4, 4, 4)

UNET = {
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": CHANNELS,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": [[None, GPT2, T5]] * len(CHANNELS),
    "attention_head_dim": CONFIG_HEADS[0],
    "layers_per_block": 2,
}
FULL_UNET = {  # what makes UNET audioldm2-full's, with the heads it was trained with
    "block_out_channels": (128, 256, 384, 640),
    "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
    "up_block_types": (*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
    "cross_attention_dim": [[None, 768, 1024]] * 4,
    "attention_head_dim": (4, 8, 12, 20),
}
VAE = {
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 8,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 2,
    "scaling_factor": 0.75,
}
VOCODER = {
    "model_in_dim": 32,
    "upsample_initial_channel": 64,
    "upsample_rates": [5, 4, 2, 2, 2],
    "upsample_kernel_sizes": [16, 16, 8, 4, 4],
    "normalize_before": False,
}
SCHEDULER = {
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def randomize(module: nn.Module, seed: int) -> nn.Module:
    """Make every parameter and running statistic random, so that signals keep their size."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            tensor.copy_(noise * (tensor.shape[0] / tensor.numel()) ** 0.5)
        elif name.endswith(("bias", "running_mean")):
            tensor.copy_(0.1 * noise)
        else:
            tensor.copy_(1 + 0.1 * noise.clamp(-3, 3))
    return module.eval()


def clap_tokenizer() -> transformers.RobertaTokenizer:
    """One token a byte."""
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    vocabulary = {name: index for index, name in enumerate(names)}
    return transformers.RobertaTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def t5_tokenizer() -> transformers.T5Tokenizer:
    """One token a character."""
    letters = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((x, -2.0) for x in letters)]
    return transformers.T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=32)


def clap_model(vocabulary: int) -> transformers.ClapModel:
    text = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "max_position_embeddings": 100,
    }
    audio = {
        "patch_embeds_hidden_size": 8,
        "hidden_size": 64,
        "depths": [1, 1, 2, 1],
        "num_attention_heads": [1, 1, 2, 2],
    }
    return transformers.ClapModel(
        transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=CLAP)
    )


def t5_model(vocabulary: int) -> transformers.T5EncoderModel:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=vocabulary,
            d_model=T5,
            d_kv=12,
            d_ff=56,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def gpt2_model(cls: type = transformers.GPT2LMHeadModel) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=160, n_embd=GPT2, n_layer=2, n_head=1, max_new_tokens=8
    )
    config.bos_token_id = config.eos_token_id = None
    return cls(config)


def diffusers_pipeline(
    seed: int = 0, *, unet: dict | None = None, language_model: type = transformers.GPT2LMHeadModel
) -> AudioLDM2Pipeline:
    """A complete `AudioLDM2Pipeline`, tiny. `unet` overrides settings of its UNet."""
    clap, t5 = clap_tokenizer(), t5_tokenizer()
    networks = {
        "vae": AutoencoderKL(**VAE),
        "text_encoder": clap_model(len(clap)),
        "text_encoder_2": t5_model(len(t5)),
        "projection_model": AudioLDM2ProjectionModel(CLAP, T5, GPT2),
        "language_model": gpt2_model(language_model),
        "unet": AudioLDM2UNet2DConditionModel(**UNET | (unet or {})),
        "vocoder": transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig(**VOCODER)),
    }
    for index, network in enumerate(networks.values()):
        randomize(network, seed + index)
    return AudioLDM2Pipeline(
        **networks,
        tokenizer=clap,
        tokenizer_2=t5,
        feature_extractor=transformers.ClapFeatureExtractor(
            truncation="rand_trunc", frequency_min=50
        ),
        scheduler=DDIMScheduler(**SCHEDULER),
    )


def save_diffusers(folder: Path, seed: int = 0, *, unet: dict | None = None, **options) -> Path:
    """Write a tiny pipeline in diffusers layout; `options` go to its save_pretrained."""
    diffusers_pipeline(seed, unet=unet).save_pretrained(folder, **options)
    return folder


def digests(bundle: Path) -> dict[str, str]:
    """sha256 of every weights file."""
    return {name: sha256(bundle / name) for name in WEIGHTS}


def linked(folder: Path, target: Path) -> Path:
    """A copy whose files can be replaced, but not written into: they are hard links."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(folder, target, copy_function=os.link))


def fails(source, tmp_path: Path, match: str, kind: type = ValueError, **options) -> None:
    """Assert that a conversion raises one line with `match`, and leaves the folder as it was."""
    before = sorted(tmp_path.iterdir())
    options = {"cache_dir": tmp_path / "cache", "local_files_only": True, **options}
    with pytest.raises(kind, match=match) as caught:
        convert_checkpoint(source, tmp_path / "bundle", **options)
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before
