"""Damaged and malicious bundles: read, or refused in one line and before much memory is allocated.

Hypothesis prints how to repeat what fails.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiolitefocus.config import demo_folder
from tests.support.checkpoints import linked
from tests.support.command import assert_failed, run
from tests.support.hostile import (
    HOSTILE,
    PLACES,
    TINY,
    assert_ended_well,
    fuzz,
    replace,
    spoilt_json,
    spoilt_safetensors,
)

pytestmark = pytest.mark.usefixtures("little_memory")
WEIGHTS = ("vocoder.safetensors", "projection.safetensors", "t5/model.safetensors")


def test_an_unspoilt_bundle_generates_within_the_same_limit(tmp_path):
    """Else a command that always fails would pass the tests below."""
    bundle = linked(demo_folder(), tmp_path / "bundle")
    options = ("--candidates", "2", "--model", bundle)
    result = run("generate", "x", *TINY, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "x.wav").stat().st_size > 0.3 * 16000 * 2


@fuzz
@given(data=st.data(), name=st.sampled_from(WEIGHTS), trusting=st.booleans())
def test_spoilt_weights(data, name, trusting, tmp_path):
    bundle = linked(demo_folder(), tmp_path / "bundle")
    replace(bundle / name, data.draw(spoilt_safetensors((bundle / name).read_bytes())))
    if trusting:  # whoever can spoil weights can leave out their digests too
        config = json.loads((bundle / "config.json").read_text())
        replace(bundle / "config.json", json.dumps(config | {"files": {}}).encode())
    assert_ended_well(run("generate", "x", *TINY, "--model", bundle, cwd=tmp_path))


# Configs and tokenizers


CONFIGS = ("config.json", "clap/config.json", "t5/config.json", "gpt2/config.json")
TOKENIZERS = ("clap/tokenizer_config.json", "t5/tokenizer.json", "clap/preprocessor_config.json")


@fuzz
@given(st.sampled_from(CONFIGS + TOKENIZERS), PLACES, HOSTILE)
def test_spoilt_settings_of_a_bundle(tmp_path, name, path, value):
    bundle = linked(demo_folder(), tmp_path / "bundle")
    replace(bundle / name, spoilt_json((bundle / name).read_bytes(), path, value))
    assert_ended_well(run("info", bundle, cwd=tmp_path))
    options = ("--candidates", "2", "--model", bundle)
    assert_ended_well(run("generate", "x", *TINY, *options, cwd=tmp_path))


ABSURD = {
    "config.json": [
        {"unet": {"resnets": 64, "depth": 64, "contexts": ["self"] * 8}},
        {"unet": {"channels": [65536] * 4}},
        {"vocoder": {"resblock_dilations": [[1] * 10**5] * 3}},
        {"vocoder": {"upsample_rates": [2**20] * 5}},
        {"vocoder": {"sampling_rate": 384001}},
        {"vocoder": {"sampling_rate": 999}},
        {"text": {"clap_max_tokens": 16384}},
        {"text": {"loa_tokens": 16384}},
        {"trained_seconds": 10**400},
    ],
    "clap/config.json": [
        {"text_config": {"num_hidden_layers": 2**19}},
        {"text_config": {"vocab_size": 2**40}},
        {"audio_config": {"depths": [2**19]}},
        {"audio_config": {"spec_size": 2**19}},
        {"num_labels": 2**40},
    ],
    "t5/config.json": [{"num_layers": 2**19}, {"d_model": 2**19}, {"num_hidden_layers": 2**30}],
    "gpt2/config.json": [{"n_layer": 2**19}, {"n_positions": 2**19}, {"num_hidden_layers": 2**19}],
    "clap/preprocessor_config.json": [
        {"sampling_rate": 47999},
        {"fft_window_size": 2**20},
        {"feature_size": 2**30},
        {"hop_length": 0},
    ],
}


@pytest.mark.parametrize(
    "name, changes", [(name, change) for name, all_ in ABSURD.items() for change in all_]
)
def test_absurd_sizes_are_refused(name, changes, tmp_path):
    bundle = linked(demo_folder(), tmp_path / "bundle")
    data = json.loads((bundle / name).read_text())
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) and key in data else value
    replace(bundle / name, json.dumps(data).encode())
    options = ("--candidates", "2", "--model", bundle)
    result = run("generate", "x", *TINY, *options, cwd=tmp_path)
    assert_failed(result)
    assert not (tmp_path / "x.wav").exists()


@pytest.mark.parametrize("name", ["clap/tokenizer_config.json", "clap/config.json"])
@pytest.mark.parametrize("kind", ["Evil", "RobertaTokenizer"])
def test_code_in_a_bundle_never_runs(name, kind, tmp_path):
    bundle = linked(demo_folder(), tmp_path / "bundle")
    (bundle / "clap" / "code.py").write_text("open('pwned', 'w').close()\nclass Evil: pass")
    classes = dict.fromkeys(("AutoTokenizer", "AutoModel", "AutoConfig"), "code.Evil")
    request = {"auto_map": classes, "tokenizer_class": kind, "attn_implementation": "evil/kernels"}
    data = json.loads((bundle / name).read_text()) | request
    replace(bundle / name, json.dumps(data).encode())
    assert_ended_well(run("generate", "x", *TINY, "--model", bundle, cwd=tmp_path))
    assert not list(tmp_path.rglob("pwned"))
