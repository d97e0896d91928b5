"""Conversion accounts for every key, and makes one bundle of both layouts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiolitefocus.checkpoints import convert
from audiolitefocus.checkpoints.bundle import (
    TOWERS,
    build,
    load_component,
    load_config,
    sha256,
)
from audiolitefocus.checkpoints.convert import convert_checkpoint
from audiolitefocus.checkpoints.convert import diffusers_keys as diffusers
from audiolitefocus.checkpoints.convert import original_keys as original
from audiolitefocus.checkpoints.convert.mapping import table_for
from audiolitefocus.checkpoints.convert.original_config import Shapes, unet_from_shapes
from audiolitefocus.checkpoints.convert.towers import window_positions
from audiolitefocus.checkpoints.towers import load_tokenizer, load_tower
from audiolitefocus.config import BundleConfig, UNetConfig
from tests.support.checkpoints import (
    NETWORKS,
    T5,
    WEIGHTS,
    clap_tokenizer,
    diffusers_pipeline,
    digests,
    t5_tokenizer,
)
from tests.support.original_layout import published_keys

LARGE = UNetConfig(contexts=("self", "loa", "t5", "self"), depth=2)
SPEECH = UNetConfig(contexts=("self", "loa"))
PUBLISHED = {
    "audioldm2-full": UNetConfig(),
    "audioldm2-full-large-1150k": LARGE,
    "audioldm2-speech-gigaspeech": SPEECH,
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    clap_tokenizer().save_pretrained(folder / "clap")
    t5_tokenizer().save_pretrained(folder / "t5")
    return folder


# Tables


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_keys_give_the_published_config(kind):
    prefix = original.PREFIXES["unet"]
    keys = {k.removeprefix(prefix): s for k, s in published_keys()[kind].items() if prefix in k}
    tensors = {key: torch.empty(shape, device="meta") for key, shape in keys.items()}
    config, _ = unet_from_shapes(Shapes("", tensors))
    assert config == PUBLISHED[kind]
    targets = build("unet", BundleConfig(unet=config)).state_dict()
    table = table_for(targets, original.original_unet_modules(config))
    assert table.keys() == targets.keys()
    assert sorted(table.values()) == sorted(keys)


@pytest.mark.parametrize("layout", [diffusers, original])
@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_every_parameter_is_made_from_one_key(layout, config):
    bundle = BundleConfig(unet=config)
    for name in ("unet", "vae", "vocoder"):
        targets = build(name, bundle).state_dict()
        table = table_for(targets, layout.MODULES[name](getattr(bundle, name)))
        assert table.keys() == targets.keys()
        assert len(set(table.values())) == len(table)


def test_window_positions_are_those_of_transformers(tiny_pipeline):
    state = tiny_pipeline.text_encoder.state_dict()
    key = "audio_model.audio_encoder.layers.0.blocks.0.attention.self.relative_position_index"
    torch.testing.assert_close(window_positions(8), state[key])


# Whole bundles


def test_a_bundle_loads_with_the_weights_of_its_source(tiny_bundle, tiny_pipeline):
    for name in NETWORKS:
        network = load_component(tiny_bundle, name)
        assert (
            network.state_dict().keys() == build(name, load_config(tiny_bundle)).state_dict().keys()
        )
    theirs = {
        "clap": tiny_pipeline.text_encoder,
        "t5": tiny_pipeline.text_encoder_2,
        "gpt2": tiny_pipeline.language_model.transformer,
    }
    for name in TOWERS:
        state = load_tower(tiny_bundle, name).state_dict()
        torch.testing.assert_close(state, theirs[name].state_dict(), rtol=0, atol=0)
    assert (
        load_tokenizer(tiny_bundle, "clap")("rain").input_ids == clap_tokenizer()("rain").input_ids
    )
    assert load_tokenizer(tiny_bundle, "t5")("rain").input_ids == t5_tokenizer()("rain").input_ids


def test_config_follows_the_source(tiny_bundle):
    config = load_config(tiny_bundle)
    assert config.unet.channels == (32, 64, 96)
    assert config.unet.heads == (1, 4, 4)  # the top level has no attention, and so no heads
    assert config.unet.contexts == ("self", "loa", "t5")
    assert (config.unet.t5_dim, config.projection.t5_dim) == (T5, T5)
    assert config.vae.scale_factor == 0.75
    assert config.vocoder.mel_bins == 32
    assert (config.text.clap_max_tokens, config.text.t5_max_tokens) == (77, 32)
    assert (config.schedule.beta_start, config.schedule.beta_end) == (0.0015, 0.0195)


def test_provenance_names_every_file_of_the_source(tiny_bundle, diffusers_folder):
    config = load_config(tiny_bundle)
    assert config.name == config.provenance["source"] == diffusers_folder.name
    assert config.provenance["kind"] == "diffusers"
    for name, digest in config.provenance["sha256"].items():
        assert sha256(diffusers_folder / name) == digest
    assert len(config.provenance["sha256"]) == 15  # 8 configs, 7 weights
    assert config.files == digests(tiny_bundle)
    assert str(diffusers_folder.parent) not in (tiny_bundle / "config.json").read_text()
    assert "heads [4, 4]" in config.provenance["heads"]
    assert any("vocoder: mean" in note for note in config.provenance["notes"])


def test_original_layout_gives_the_same_weights(original_file, tokenizers, tiny_bundle, tmp_path):
    config = convert_checkpoint(original_file, tmp_path / "bundle", tokenizers=tokenizers)
    assert digests(tmp_path / "bundle") == digests(tiny_bundle)
    ours, theirs = config, load_config(tiny_bundle)
    assert ours.unet.heads == (1, 2, 3)
    assert ours.text.clap_max_tokens == 98  # as many positions as its text tower has
    assert (ours.vae, ours.vocoder, ours.projection) == (
        theirs.vae,
        theirs.vocoder,
        theirs.projection,
    )
    for name in TOWERS:
        load_tower(tmp_path / "bundle", name)
    for name in ("clap", "t5"):
        load_tokenizer(tmp_path / "bundle", name)
    assert (tmp_path / "bundle/clap/preprocessor_config.json").is_file()
    assert ours.provenance["kind"] == "original"
    notes = "\n".join(ours.provenance["notes"])
    for name in ("model_ema.*", "cond_stage_models.*", "logvar", "posterior_*", "h.*.attn.bias"):
        assert name in notes


def test_converting_twice_writes_the_same_bytes(diffusers_folder, tiny_bundle, tmp_path):
    convert_checkpoint(diffusers_folder, tmp_path / "again", heads="config")
    for path in tiny_bundle.rglob("*.*"):
        assert (
            path.read_bytes() == (tmp_path / "again" / path.relative_to(tiny_bundle)).read_bytes()
        )


def test_missing_tokenizers_are_noted_and_refused_later(original_file, tmp_path):
    config = convert_checkpoint(
        original_file, tmp_path / "bundle", cache_dir=tmp_path / "empty", local_files_only=True
    )
    missing = [note for note in config.provenance["notes"] if "--tokenizers" in note]
    assert len(missing) == 2
    with pytest.raises(ValueError, match="--tokenizers"):
        load_tokenizer(tmp_path / "bundle", "t5")


def test_tokenizers_come_from_the_hub(original_file, tokenizers, tmp_path, monkeypatch):
    snapshots = {
        "laion/clap-htsat-unfused": tokenizers / "clap",
        "google/flan-t5-large": tokenizers / "t5",
    }
    monkeypatch.setattr(convert, "fetch_files", lambda repo, names, **hub: snapshots[repo])
    config = convert_checkpoint(original_file, tmp_path / "bundle")
    assert not any("--tokenizers" in note for note in config.provenance["notes"])
    load_tokenizer(tmp_path / "bundle", "clap")
    assert (
        load_tokenizer(tmp_path / "bundle", "t5")("rain").input_ids
        == t5_tokenizer()("rain").input_ids
    )


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16])
def test_all_weights_have_the_dtype_asked_for(diffusers_folder, tmp_path, dtype):
    config = convert_checkpoint(diffusers_folder, tmp_path / "bundle", dtype=dtype)
    for name in WEIGHTS:
        kinds = {tensor.dtype for tensor in load_file(tmp_path / "bundle" / name).values()}
        assert kinds <= {getattr(torch, config.provenance["dtype"]), torch.int64}


class Bar:
    """What the converter uses of tqdm."""

    def __init__(self):
        self.total, self.done, self.seen = None, 0, []

    def update(self, n):
        self.done += n

    def set_description(self, desc):
        self.seen.append(desc)


def test_progress_ends_at_its_total(diffusers_folder, tmp_path):
    bar = Bar()
    convert_checkpoint(diffusers_folder, tmp_path / "bundle", progress=bar)
    written = sum((tmp_path / "bundle" / name).stat().st_size for name in WEIGHTS)
    assert bar.total > 2 * written * 0.99
    assert bar.done == pytest.approx(bar.total, rel=0.01)  # headers of files are not foreseen
    assert "write unet.safetensors" in bar.seen


# Heads


def test_heads_of_32_channels_by_default(diffusers_folder, tmp_path):
    config = convert_checkpoint(diffusers_folder, tmp_path / "bundle")
    assert config.unet.heads == (1, 2, 3)
    assert "as trained" in config.provenance["heads"]
    assert "says [4, 4]" in config.provenance["heads"]


def test_heads_of_the_config_where_32_channels_make_none(tmp_path):
    narrow = {"block_out_channels": (16, 16, 16), "norm_num_groups": 8, "attention_head_dim": 2}
    diffusers_pipeline(unet=narrow).save_pretrained(tmp_path / "source")
    config = convert_checkpoint(tmp_path / "source", tmp_path / "bundle")
    assert config.unet.heads == (1, 2, 2)
    assert "[16] channels make no heads of 32" in config.provenance["heads"]
