"""Inputs and habits of this ecosystem: each works, or is named with what to write instead."""

import warnings

import numpy as np
import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline
from tests.support.compare import seeded

QUICK = {"audio_length_in_s": 0.64, "num_inference_steps": 1, "seed": 0, "output_type": "latent"}


def test_numpy_inputs_are_tensors(pipe):
    condition = pipe.encode_prompt("rain")
    given = {
        "prompt_embeds": condition.t5,
        "attention_mask": condition.t5_mask,
        "generated_prompt_embeds": condition.loa,
        "latents": torch.randn(1, 8, 16, 8, generator=seeded()),
    }
    expected = pipe(**given, **QUICK).audios
    found = pipe(**{name: tensor.numpy() for name, tensor in given.items()}, **QUICK).audios
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"generator": 3, "seed": None}, "generator 3: must be a torch.Generator"),
        ({"generator": [3], "seed": None}, r"generator \[3\]: must be"),
        ({"latents": [[1.0]]}, "latents: must be a tensor or an array, not list"),
        ({"latents": np.zeros((1, 8, 16, 16), int)}, "latents: must be floating point"),
        ({"timesteps": [1]}, "give num_inference_steps= and sampler="),
        ({"callback_on_step_end_tensor_inputs": ["t5"]}, "must be one of latents"),
        ({"cross_attention_kwargs": {}}, "give attention="),
    ],
)
def test_other_inputs_are_named_with_what_to_write(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe("rain", **{**QUICK, **arguments})


@pytest.mark.parametrize(
    "argument, advice", [("device_map", "device="), ("use_safetensors", "are read"), ("speed", "")]
)
def test_arguments_of_loading_are_named_with_what_to_write(tiny_bundle, argument, advice):
    with pytest.raises(ValueError, match=f"from_pretrained has no argument '{argument}'.*{advice}"):
        AudioLDM2Pipeline.from_pretrained(tiny_bundle, **{argument: "fp16"})


def test_what_diffusers_has_is_named_with_what_to_write(pipe):
    with pytest.raises(AttributeError, match="sampler='ddim' or 'dpm\\+\\+'"):
        pipe.scheduler = object()
    with pytest.raises(AttributeError, match=r"set_progress_bar_config\(\) shows one"):
        pipe.progress_bar(total=3)
    with pytest.raises(AttributeError, match="has no attribute 'sound'$"):
        _ = pipe.sound
    assert not hasattr(pipe, "scheduler")


def test_moving_a_pipeline(tiny_bundle, pipe):
    moved = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device=None)
    assert moved.to("cpu") is moved and moved.device.type == "cpu"
    assert torch.equal(moved("rain", **QUICK).audios, pipe("rain", **QUICK).audios)
    half = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu", dtype="bfloat16")
    moved.to(torch.bfloat16)
    for name in ("unet", "vae", "vocoder"):
        ours, loaded = getattr(moved, name).state_dict(), getattr(half, name).state_dict()
        assert all(torch.equal(ours[key], loaded[key]) for key in loaded)
        assert all(ours[key].dtype == loaded[key].dtype for key in loaded)
    moved.enable_model_cpu_offload()
    assert moved.on_device.offload
    assert torch.equal(moved("rain", **QUICK).audios, half("rain", **QUICK).audios)
    with pytest.raises(ValueError, match="tpu"):
        moved.to("tpu")


def test_a_text_that_a_tokenizer_cannot_represent_is_a_warning(pipe):
    with pytest.warns(UserWarning, match="T5 cannot read '雨音' in '雨 and 音'"):
        pipe.encode_prompt("雨 and 音")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.encode_prompt("rain")
