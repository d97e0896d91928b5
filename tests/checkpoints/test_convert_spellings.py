"""All spellings of a checkpoint give one bundle: pickles, half precision, shards, old names."""

import importlib.util
import json
import shutil
import string
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Model

from audiolitefocus.checkpoints.convert import convert_checkpoint
from audiolitefocus.checkpoints.towers import load_tokenizer
from tests.support.checkpoints import WEIGHTS, digests, linked
from tests.support.original_layout import original_checkpoint

ROUNDING = 2**-10  # half precision keeps 11 bits


@pytest.fixture
def folder(diffusers_folder, tmp_path) -> Path:
    """A source that a test may change."""
    return linked(diffusers_folder, tmp_path / "source")


def test_pickles_and_shards_give_the_same_bundle(tiny_pipeline, tiny_bundle, tmp_path):
    expected = digests(tiny_bundle)
    tiny_pipeline.save_pretrained(tmp_path / "bin", safe_serialization=False)
    for component in ("text_encoder", "text_encoder_2", "language_model", "vocoder"):
        path = tmp_path / "bin" / component / "model.safetensors"  # transformers writes no .bin now
        torch.save(load_file(path), path.with_name("pytorch_model.bin"))
        path.unlink()
    tiny_pipeline.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    assert len(list((tmp_path / "shards" / "unet").glob("*-of-*.safetensors"))) > 5
    for kind in ("bin", "shards"):
        convert_checkpoint(tmp_path / kind, tmp_path / f"{kind}-bundle", heads="config")
        assert digests(tmp_path / f"{kind}-bundle") == expected


def test_half_precision_gives_the_same_up_to_rounding(tiny_pipeline, tiny_bundle, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    for path in (tmp_path / "half").rglob("*.fp16.safetensors"):
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    convert_checkpoint(tmp_path / "half", tmp_path / "bundle", dtype="float32")
    for name in WEIGHTS:
        half, full = load_file(tmp_path / "bundle" / name), load_file(tiny_bundle / name)
        torch.testing.assert_close(half, full, rtol=ROUNDING, atol=2**-24)


def test_a_language_model_without_head_gives_the_same_bundle(
    tiny_pipeline, folder, tiny_bundle, tmp_path
):
    shutil.rmtree(folder / "language_model")
    trunk = tiny_pipeline.language_model.transformer
    assert isinstance(trunk, GPT2Model)
    trunk.save_pretrained(folder / "language_model")
    convert_checkpoint(folder, tmp_path / "bundle", heads="config")
    assert digests(tmp_path / "bundle") == digests(tiny_bundle)


def test_old_names_of_the_autoencoder_give_the_same_bundle(folder, tiny_bundle, tmp_path):
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, tensor in load_file(path).items():
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}", f"attentions.0.{name}")
        tensors[key] = tensor
    path.unlink()
    save_file(tensors, path)
    convert_checkpoint(folder, tmp_path / "bundle", heads="config")
    assert digests(tmp_path / "bundle") == digests(tiny_bundle)


def test_a_bare_state_dict_in_an_old_pickle_is_read(tiny_pipeline, tiny_bundle, tmp_path):
    """Without "state_dict", and in the format of before PyTorch 1.6."""
    path = tmp_path / "old.ckpt"
    torch.save(original_checkpoint(tiny_pipeline), path, _use_new_zipfile_serialization=False)
    config = convert_checkpoint(
        path, tmp_path / "bundle", cache_dir=tmp_path, local_files_only=True
    )
    assert config.files["unet.safetensors"] in (tiny_bundle / "config.json").read_text()


@pytest.mark.parametrize("spelling", ["weight_{}", "parametrizations.weight.original{}"])
def test_weight_norm_is_folded(tiny_pipeline, tiny_bundle, tmp_path, spelling):
    at = "first_stage_model.vocoder."
    names = ("g", "v") if spelling == "weight_{}" else ("0", "1")
    spelt = original_checkpoint(tiny_pipeline)
    for key in [key for key in spelt if key.startswith(at) and key.endswith(".weight")]:
        direction = spelt.pop(key)
        magnitude = direction.flatten(1).norm(dim=1).reshape(-1, 1, 1)
        stem = key.removesuffix("weight")
        spelt[stem + spelling.format(names[0])] = magnitude
        spelt[stem + spelling.format(names[1])] = 3 * direction
    path = tmp_path / "x.pth"
    torch.save(spelt, path)
    convert_checkpoint(
        path,
        tmp_path / "bundle",
        cache_dir=tmp_path,
        local_files_only=True,
    )
    found, expected = (
        load_file(b / "vocoder.safetensors") for b in (tmp_path / "bundle", tiny_bundle)
    )
    torch.testing.assert_close(found, expected)


def sentencepiece_model() -> bytes:
    """A unigram model of single letters, as sentencepiece's ModelProto, byte by byte."""

    def varint(number: int) -> bytes:
        head = b""
        while number > 127:
            head, number = head + bytes([number & 127 | 128]), number >> 7
        return head + bytes([number])

    def message(field: int, content: bytes) -> bytes:
        return varint(field << 3 | 2) + varint(len(content)) + content

    def piece(text: str, score: float, kind: int) -> bytes:
        weight = varint(2 << 3 | 5) + struct.pack("<f", score)
        return message(1, message(1, text.encode()) + weight + varint(3 << 3) + varint(kind))

    pieces = [piece("<pad>", 0, 3), piece("</s>", 0, 3), piece("<unk>", 0, 2)]
    pieces += [piece(letter, -2.0, 1) for letter in "▁" + string.ascii_letters]
    numbers = {3: 1, 40: 2, 41: 2**64 - 1, 42: 1, 43: 0}  # unigram; unk, bos, eos, pad
    trainer = b"".join(varint(field << 3) + varint(value) for field, value in numbers.items())
    return b"".join(pieces) + message(2, trainer) + message(3, message(1, b"identity"))


@pytest.fixture
def only_sentencepiece(folder) -> Path:
    """A source whose T5 tokenizer is a sentencepiece model alone."""
    place = folder / "tokenizer_2"
    for path in list(place.iterdir()):
        path.unlink()
    (place / "spiece.model").write_bytes(sentencepiece_model())
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 32}
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_sentencepiece_model_is_converted_at_conversion(only_sentencepiece, tmp_path):
    pytest.importorskip("sentencepiece")
    convert_checkpoint(only_sentencepiece, tmp_path / "bundle", heads="config")
    assert (tmp_path / "bundle" / "t5" / "tokenizer.json").is_file()
    (tmp_path / "bundle" / "t5" / "spiece.model").unlink()  # not needed any more
    ids = load_tokenizer(tmp_path / "bundle", "t5")("ab c")["input_ids"]
    assert ids == [3, 4, 5, 3, 6, 1]


def test_without_sentencepiece_the_package_that_is_missing_is_named(
    only_sentencepiece, tmp_path, monkeypatch
):
    find = importlib.util.find_spec
    absent = lambda name, *rest: None if name == "sentencepiece" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    with pytest.raises(ValueError, match="tokenizer of t5.*pip install sentencepiece protobuf"):
        convert_checkpoint(only_sentencepiece, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_vocabulary_and_merges_alone_become_one_file(folder, tiny_bundle, tmp_path):
    """CLAP's tokenizer in its older form."""
    place = folder / "tokenizer"
    whole = json.loads((place / "tokenizer.json").read_text())["model"]
    (place / "tokenizer.json").unlink()
    (place / "vocab.json").write_text(json.dumps(whole["vocab"]))
    (place / "merges.txt").write_text("#version: 0.2\n")
    convert_checkpoint(folder, tmp_path / "bundle", heads="config")
    assert (tmp_path / "bundle" / "clap" / "tokenizer.json").is_file()
    texts = ["rain on a roof", "雨, \t 7"]
    found, expected = (
        load_tokenizer(bundle, "clap")(texts)["input_ids"]
        for bundle in (tmp_path / "bundle", tiny_bundle)
    )
    assert found == expected
