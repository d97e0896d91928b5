"""Weights that were distilled: what they make of a call, and what they refuse."""

import dataclasses
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from audiolitefocus import AudioLDM2Pipeline, GenerationOptions
from audiolitefocus.batch.recipes import find_recipe
from audiolitefocus.batch.requests import ClipRequest
from audiolitefocus.batch.run import BatchRun
from audiolitefocus.checkpoints.adapters import Adapter, write_adapter
from audiolitefocus.checkpoints.bundle import describe, load_config
from audiolitefocus.config import Distilled
from audiolitefocus.diffusion.distilled import options_for
from audiolitefocus.diffusion.schedule import timesteps_of
from tests.support.compare import seeded

MADE = Distilled("lcm", 7.0)
QUICK = {"audio_length_in_s": 0.64, "output_type": "latent", "seed": 3}
TONE = 0.3 * np.sin(np.arange(16000) / 9).astype(np.float32)
BATCH_TOLERANCE = 1e-4  # rounding of batched matrix products, through four steps


def random_adapter(pipe, folder, seed: int):
    """A small adapter that says of itself that it was distilled."""
    folder.mkdir()
    named = pipe.unet.named_modules()
    name, layer = next((n, m) for n, m in named if n.endswith("to_q") and isinstance(m, nn.Linear))
    shapes = {"A": (2, layer.in_features), "B": (layer.out_features, 2)}
    tensors = {
        f"{name}.lora_{x}.weight": torch.randn(shape, generator=seeded(seed))
        for x, shape in shapes.items()
    }
    write_adapter(folder, "tiny", 2, tensors, distilled=MADE)
    return folder


@pytest.fixture(scope="module")
def adapter(pipe, tmp_path_factory):
    return random_adapter(pipe, tmp_path_factory.mktemp("adapters") / "few", 0)


@pytest.fixture(scope="module")
def few(tiny_bundle, adapter) -> AudioLDM2Pipeline:
    loaded = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu")
    loaded.load_lora(adapter)
    return loaded


def test_four_steps_and_no_second_half_are_their_default(few, monkeypatch):
    def unconditional(*_):
        raise AssertionError("nothing is evaluated without the text")

    monkeypatch.setattr(few.text, "unconditional", unconditional)
    seen = []
    few("a bell", callback=lambda step, timestep, latents: seen.append(timestep), **QUICK)
    assert seen == timesteps_of("lcm", 4, 1000) == [999, 759, 499, 259]


def test_an_adapter_turns_it_on_and_off(tiny_bundle, adapter):
    loaded = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu")
    assert loaded.config.distilled is None
    loaded.load_lora(adapter)
    assert loaded.config.distilled == MADE
    loaded.unload_lora()
    assert options_for(loaded.config, GenerationOptions()) == GenerationOptions()
    with pytest.raises(ValueError, match="sampler lcm needs weights that were distilled for it"):
        loaded("a bell", sampler="lcm", **QUICK)


def test_what_is_given_counts(few):
    def chosen(**changes) -> tuple:
        options = options_for(few.config, GenerationOptions(**changes))
        return options.sampler, options.num_inference_steps, options.guidance_scale, options.guided

    assert chosen() == ("lcm", 4, 7.0, False)
    assert chosen(num_inference_steps=2, sampler="lcm") == ("lcm", 2, 7.0, False)
    assert chosen(guidance_scale=3.0) == ("lcm", 4, 7.0, False)
    other = {"sampler": "dpm++", "num_inference_steps": 25}
    assert chosen(**other) == ("dpm++", 25, 3.5, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scale": 3.0}, "guidance_scale 3 does nothing: .* weights with 7 baked in"),
        ({"sampler": "dpm++", "num_inference_steps": 2}, "sampler dpm[+]{2}: .* distilled for lcm"),
    ],
)
def test_what_does_not_fit_them_is_warned_of(few, changes, message):
    with pytest.warns(UserWarning, match=message) as caught:
        few("a bell", **changes, **QUICK)
    assert caught[0].filename == __file__


def test_their_own_guidance_is_none_to_warn_of(few):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        default = few("a bell", **QUICK).audios
        assert torch.equal(few("a bell", guidance_scale=7.0, **QUICK).audios, default)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_inference_steps": 51}, "num_inference_steps 51: lcm takes 50 at most"),
        ({"negative_prompt": "wind"}, "lcm has guidance baked in: leave out negative_prompt"),
        ({"guidance_interval": "0:0.8"}, "leave out guidance_interval"),
        ({"adaptive_guidance": 0.9}, "leave out adaptive_guidance"),
        ({"parallel": "guidance"}, "needs 2 devices"),
    ],
)
def test_what_makes_no_sense_is_refused(few, changes, message):
    with pytest.raises(ValueError, match=message):
        few("a bell", **changes, **QUICK)


def test_a_drafter_of_other_weights_is_refused(few, pipe):
    for one, other in ((few, pipe), (pipe, few)):
        with pytest.raises(ValueError, match="its distillation, .*, must be that of"):
            one("a bell", drafter=other, **QUICK)


CALLS = {
    "one step": {"num_inference_steps": 1},
    "litefocus and reuse": {"attention": "litefocus:0.3", "reuse": "deepcache:2:start=0"},
    "windows": {"audio_length_in_s": 1.28, "windows": 0.64},
    "variation": {"init_audio": TONE, "audio_length_in_s": None},
    "inpainting": {"init_audio": TONE, "inpaint": (0.3, 0.6), "audio_length_in_s": None},
    "continuation": {"continue_audio": TONE, "audio_length_in_s": 1.5, "refresh": 2},
}


@pytest.mark.parametrize("case", CALLS)
def test_a_clip_does_not_depend_on_its_batch(few, case):
    call = {**QUICK, "seed": None, **CALLS[case]}
    streams = [seeded(seed) for seed in (3, 4)]
    alone = few("a bell", generator=seeded(3), **call).audios
    both = few(["a bell", "rain"], generator=streams, **call).audios
    assert (both[:1] - alone).abs().max() < BATCH_TOLERANCE * alone.abs().max()
    assert not torch.equal(both[0], both[1])


def test_what_is_kept_of_a_recording_stays(few):
    call = {"init_audio": TONE, "inpaint": (0.3, 0.6), "seed": 3, "output_type": "pt"}
    (clip,) = few("a bell", **call).audios.numpy()
    kept = np.r_[0:4800, 9600:16000]
    np.testing.assert_array_equal(clip[kept], TONE[kept])
    assert np.abs(clip - TONE)[5000:9400].mean() > 1e-3


def test_a_recipe_says_what_ran_and_makes_it_again(few, tmp_path):
    options = GenerationOptions(audio_length_in_s=0.64, seed=3)
    clips, steps = [ClipRequest("a bell", tmp_path / "a.wav", options)], []
    run = BatchRun(few, clips)
    assert run.steps == 4
    assert run.run(steps.append).made and sum(steps) == 4
    recipe = find_recipe(tmp_path / "a.wav")
    made = [recipe[n] for n in ("sampler", "num_inference_steps", "guidance_scale")]
    assert made == ["lcm", 4, 7.0]
    assert not BatchRun(few, clips).batches
    chosen = dataclasses.replace(options, sampler="lcm", num_inference_steps=4, guidance_scale=7.0)
    assert not BatchRun(few, [dataclasses.replace(clips[0], options=chosen)]).batches


# What weights say of themselves


def test_a_bundle_says_so(tiny_bundle, tmp_path):
    config = dataclasses.replace(load_config(tiny_bundle), distilled=MADE)
    (tmp_path / "config.json").write_text(config.to_json())
    assert load_config(tmp_path).distilled == MADE
    assert "  distilled for lcm, with guidance 7 baked in" in list(describe(tmp_path))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"sampler": "turbo"}, "distilled: sampler 'turbo': must be lcm"),
        ({"guidance_scale": 0.0}, "guidance_scale = 0.0: must be a number from 1"),
        ({"steps": 4}, "unknown entries: .'steps'"),
    ],
)
def test_what_is_said_wrongly_is_refused(adapter, tmp_path, said, message):
    folder = shutil.copytree(adapter, tmp_path / "a")
    (folder / "distilled.json").write_text(json.dumps(dataclasses.asdict(MADE) | said))
    with pytest.raises(ValueError, match=f"distilled.json.*{message}"):
        Adapter.read(folder)


def test_two_distilled_adapters_do_not_go_together(few, pipe, tmp_path):
    other = random_adapter(pipe, tmp_path / "other", 1)
    with pytest.raises(ValueError, match="few and other are distilled, each for itself"):
        few.load_lora(other)
    assert few.adapters == {"few": 1.0}
