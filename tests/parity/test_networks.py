"""Our networks equal those of diffusers and transformers, with weights converted by the tables."""

import json

import pytest
import torch
from diffusers import AudioLDM2ProjectionModel, AudioLDM2UNet2DConditionModel, AutoencoderKL
from torch import nn
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from audiolitefocus.checkpoints.bundle import build
from audiolitefocus.checkpoints.convert import diffusers_keys as diffusers
from audiolitefocus.checkpoints.convert.diffusers_config import (
    unet_from_settings,
    vae_from_settings,
    vocoder_from_settings,
)
from audiolitefocus.checkpoints.convert.mapping import convert_tensors
from audiolitefocus.checkpoints.convert.shared import network_file
from audiolitefocus.config import BundleConfig, ProjectionConfig
from tests.support.checkpoints import CHANNELS, FULL_UNET, GPT2, T5, UNET, VAE, VOCODER, randomize
from tests.support.compare import assert_same, compare_unets

SLOTS = {
    "base": [None, GPT2, T5],
    "large": [None, GPT2, T5, None],
    "speech": [None, GPT2],
}


def ours(name: str, theirs: nn.Module, config: BundleConfig) -> nn.Module:
    """Our network with the weights of theirs."""
    file = network_file(
        name,
        "",
        theirs.state_dict(),
        config,
        diffusers.MODULES[name](getattr(config, name)),
        edits=diffusers.EDITS.get(name),
        dropped=diffusers.DROPPED.get(name),
    )
    network = build(name, config)
    network.load_state_dict(convert_tensors(file, None), assign=True)
    return network.eval()


def unet_pair(overrides: dict, heads: str = "config"):
    """diffusers' UNet and ours."""
    theirs = randomize(AudioLDM2UNet2DConditionModel(**UNET | overrides), seed=1)
    projection = ProjectionConfig(1, T5, GPT2)
    config, _ = unet_from_settings(json.loads(theirs.to_json_string()), projection, heads, "unet")
    return theirs, ours("unet", theirs, BundleConfig(unet=config))


@pytest.mark.parametrize("length", [16, 13])
@pytest.mark.parametrize("kind", SLOTS)
def test_unet_equals_diffusers(kind, length):
    overrides = {
        "cross_attention_dim": [SLOTS[kind]] * len(CHANNELS),
        "transformer_layers_per_block": 2 if kind == "large" else 1,
    }
    compare_unets(*unet_pair(overrides), batch=2, length=length, rows=8, tokens=7)


def test_unet_with_trained_heads_equals_diffusers():
    theirs, network = unet_pair({"attention_head_dim": (1, 2, 3)}, heads="trained")
    assert network.config.heads == (1, 2, 3)
    compare_unets(theirs, network, batch=2, length=16, rows=8, tokens=7)


def test_other_heads_give_another_unet():
    """So parity shows that the heads are right."""
    theirs, network = unet_pair({}, heads="trained")
    with pytest.raises(AssertionError):
        compare_unets(theirs, network, batch=1, length=8, rows=8, tokens=5)


@pytest.mark.slow
def test_full_size_unet_equals_diffusers():
    """audioldm2-full's 346,943,496 parameters, with the trained heads."""
    theirs, network = unet_pair(FULL_UNET, heads="trained")
    assert sum(parameter.numel() for parameter in network.parameters()) == 346_943_496
    compare_unets(theirs, network, batch=1, length=12, rows=16, tokens=9)


@pytest.fixture(scope="module")
def vaes():
    theirs = randomize(AutoencoderKL(**VAE), seed=3)
    config = BundleConfig(vae=vae_from_settings(json.loads(theirs.to_json_string()), "vae"))
    return theirs, ours("vae", theirs, config)


@torch.no_grad()
@pytest.mark.parametrize("frames", [64, 92])
def test_vae_encoder_equals_diffusers(vaes, frames):
    theirs, network = vaes
    mel = torch.randn(2, frames, 32, generator=torch.Generator().manual_seed(4))
    mean, log_variance = network.encode(mel)
    expected = theirs.encode(mel[:, None]).latent_dist
    assert_same(mean, expected.mean)
    assert_same(log_variance, expected.logvar)


@torch.no_grad()
@pytest.mark.parametrize("length", [16, 23])
def test_vae_decoder_equals_diffusers(vaes, length):
    theirs, network = vaes
    latents = torch.randn(2, 8, length, 8, generator=torch.Generator().manual_seed(5))
    assert_same(network.decode(latents), theirs.decode(latents).sample[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("frames", [16, 37])
def test_vocoder_equals_transformers(frames):
    theirs = randomize(SpeechT5HifiGan(SpeechT5HifiGanConfig(**VOCODER)), seed=6)
    config = BundleConfig(vocoder=vocoder_from_settings(theirs.config.to_dict(), "vocoder"))
    network = ours("vocoder", theirs, config)
    mel = torch.randn(2, frames, 32, generator=torch.Generator().manual_seed(7))
    assert_same(network(mel), theirs(mel))


@torch.no_grad()
def test_projection_equals_diffusers():
    theirs = randomize(AudioLDM2ProjectionModel(48, T5, GPT2), seed=8)
    config = BundleConfig(projection=ProjectionConfig(48, T5, GPT2))
    network = ours("projection", theirs, config)
    generator = torch.Generator().manual_seed(9)
    clap, t5 = (
        torch.randn(2, 1, 48, generator=generator),
        torch.randn(2, 6, T5, generator=generator),
    )
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    expected = theirs(clap, t5, torch.ones(2, 1, dtype=torch.long), mask)
    embeddings, joint = network(clap, t5, mask)
    assert_same(embeddings, expected.hidden_states)
    torch.testing.assert_close(joint, expected.attention_mask)
