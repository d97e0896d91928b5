"""The bundled demo model: whole, small, loadable."""

from pathlib import Path

import pytest
import torch

from audiolitefocus import config
from audiolitefocus.checkpoints import bundle as checkpoint
from audiolitefocus.models import text_encoder as conditioning
from audiolitefocus.models.condition import Condition

MAX_BYTES = 20_000_000


@pytest.fixture(scope="module")
def folder() -> Path:
    return config.demo_folder()


@pytest.fixture(scope="module")
def encoder(folder):
    projection = checkpoint.load_component(folder, "projection")
    return conditioning.TextEncoder(folder, checkpoint.load_config(folder), projection)


def test_networks_load_strictly_and_stay_finite(folder):
    settings = checkpoint.load_config(folder)
    unet, vae, vocoder = (
        checkpoint.load_component(folder, name, dtype=torch.float32)
        for name in ("unet", "vae", "vocoder")
    )
    latents = torch.randn(1, 8, 8, 16, generator=torch.Generator().manual_seed(0))
    condition = Condition(torch.ones(1, 8, 64), torch.ones(1, 3, 64))
    with torch.inference_mode():
        noise = unet(latents, torch.tensor(500), condition)
        waveform = vocoder(vae.decode(latents / settings.vae.scale_factor))
    assert noise.shape == latents.shape and noise.isfinite().all()
    assert waveform.shape[1] >= 8 * settings.vae.downsampling * settings.vocoder.hop_length
    assert 0.01 < waveform.std() < 0.3  # audible, and not clipped


def test_config_lists_every_weights_file(folder):
    weights = {checkpoint.bundle_name(p): checkpoint.sha256(p) for p in folder.rglob("*.safet*")}
    assert checkpoint.load_config(folder).files == weights


def test_prompts_become_conditions(encoder):
    condition = encoder.encode(["rain on a tin roof", "a dog \N{DOG FACE} barking, Zwölf"])
    limits = encoder.limits
    assert condition.loa.shape == (2, limits.loa_tokens, 64)
    assert condition.t5.shape[:2] == condition.t5_mask.shape
    assert not torch.equal(condition.loa[0], condition.loa[1])
    assert condition.loa.isfinite().all() and condition.t5.isfinite().all()


def test_clap_hears_clips_longer_than_its_window(encoder):
    waveforms = torch.randn(2, 12 * 16000, generator=torch.Generator().manual_seed(0))
    similarity = encoder.similarity(["a dog", "rain"], waveforms, 16000)
    assert similarity.shape == (2,) and similarity.abs().max() <= 1


def test_tokenizers_read_text_back(encoder):
    text = "A dog barking, 2 doors slamming"
    for name in ("clap", "t5"):
        tokenizer = encoder.tokenizer(name)
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    clap, t5 = encoder.tokenizer("clap"), encoder.tokenizer("t5")
    emoji = "\N{DOG FACE}"
    assert clap.decode(clap(emoji)["input_ids"], skip_special_tokens=True) == emoji
    assert t5.unk_token_id in t5(emoji)["input_ids"]
    assert t5("")["input_ids"] == [t5.eos_token_id]


def test_tokenizers_are_of_the_classes_diffusers_expects(encoder):
    import transformers

    assert isinstance(encoder.tokenizer("clap"), transformers.RobertaTokenizerFast)
    assert isinstance(encoder.tokenizer("t5"), transformers.T5TokenizerFast)


def test_small_enough_to_bundle(folder):
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < MAX_BYTES
