"""The bundled demo model: complete, small, loadable."""

from pathlib import Path

import pytest
import torch
import transformers

from audiolitefocus.checkpoints.bundle import bundle_name, load_component, load_config, sha256
from audiolitefocus.checkpoints.towers import load_text_encoder, load_tokenizer
from audiolitefocus.config import demo_folder
from audiolitefocus.models.condition import Condition

MAX_BYTES = 20_000_000


@pytest.fixture(scope="module")
def folder() -> Path:
    return demo_folder()


@pytest.fixture(scope="module")
def encoder(folder):
    return load_text_encoder(folder, load_config(folder))


def test_networks_load_strictly_and_stay_finite(folder):
    config = load_config(folder)
    unet, vae, vocoder = (
        load_component(folder, name, dtype=torch.float32) for name in ("unet", "vae", "vocoder")
    )
    latents = torch.randn(1, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    condition = Condition(torch.ones(1, 8, 64), torch.ones(1, 3, 64))
    with torch.inference_mode():
        noise = unet(latents, torch.tensor(500), condition)
        waveform = vocoder(vae.decode(latents / config.vae.scale_factor))
    assert noise.shape == latents.shape and noise.isfinite().all()
    assert waveform.shape[1] >= 8 * config.vae.downsampling * config.vocoder.hop_length
    assert 0.01 < waveform.std() < 0.3  # audible, and not clipped


def test_config_lists_every_weights_file(folder):
    weights = {bundle_name(path): sha256(path) for path in folder.rglob("*.safetensors")}
    assert load_config(folder).files == weights


@torch.inference_mode()
def test_different_prompts_get_different_conditions(encoder):
    condition = encoder.encode(["rain on a tin roof", "a dog \N{DOG FACE} barking, Zwölf"])
    assert condition.loa.shape == (2, encoder.limits.loa_tokens, 64)
    assert condition.t5.shape[:2] == condition.t5_mask.shape
    assert not torch.equal(condition.loa[0], condition.loa[1])
    assert condition.loa.isfinite().all() and condition.t5.isfinite().all()


@torch.inference_mode()
def test_clap_embeds_clips_longer_than_its_input(encoder):
    waveforms = torch.randn(2, 12 * 16000, generator=torch.Generator().manual_seed(0))
    similarity = encoder.similarity(["a dog", "rain"], waveforms, 16000)
    assert similarity.shape == (2,) and similarity.abs().max() <= 1


def test_tokenizers_decode_what_they_encode(folder):
    text, emoji = "A dog barking, 2 doors slamming", "\N{DOG FACE}"
    clap, t5 = load_tokenizer(folder, "clap"), load_tokenizer(folder, "t5")
    for tokenizer in (clap, t5):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert clap.decode(clap(emoji)["input_ids"], skip_special_tokens=True) == emoji
    assert t5.unk_token_id in t5(emoji)["input_ids"]
    assert t5("")["input_ids"] == [t5.eos_token_id]


def test_tokenizers_are_of_the_classes_that_diffusers_expects(folder):
    assert isinstance(load_tokenizer(folder, "clap"), transformers.RobertaTokenizerFast)
    assert isinstance(load_tokenizer(folder, "t5"), transformers.T5TokenizerFast)


def test_the_bundle_is_small_enough_for_the_package(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MAX_BYTES
