"""Calls of the pipeline with a drafter: which clips come out, and what is refused."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from copy import copy

import numpy as np
import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline, pipeline
from audiolitefocus.checkpoints.bundle import load_component
from audiolitefocus.config import demo_folder
from audiolitefocus.models.text_encoder import TextEncoder
from scripts.reuse.partner import make_partner
from tests.support.compare import seeded

QUICK = {"audio_length_in_s": 0.64, "num_inference_steps": 4, "output_type": "latent"}
BATCH_TOLERANCE = 1e-4  # rounding of batched matrix products, through four steps
TONE = 0.3 * np.sin(np.arange(16000) / 9).astype(np.float32)


@pytest.fixture(scope="module")
def demo() -> AudioLDM2Pipeline:
    return AudioLDM2Pipeline.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def partner(tmp_path_factory) -> AudioLDM2Pipeline:
    """The demo without its `self` transformers, and with a projection of text of its own."""
    folder = tmp_path_factory.mktemp("models") / "partner"
    make_partner(demo_folder(), folder, {"self"})
    loaded = AudioLDM2Pipeline.from_pretrained(folder, device="cpu")
    for weight in loaded.text.projection.parameters():
        weight.data.mul_(1.5)
    return loaded


CALLS = {
    "dpm++": {"sampler": "dpm++"},
    "ddim": {"sampler": "ddim"},
    "candidates": {"prompt": ["a bell", "rain"], "num_waveforms_per_prompt": 2},
    "litefocus and reuse": {"attention": "litefocus:0.3", "reuse": "deepcache:2:start=0"},
    "less guidance": {"guidance_interval": (0.0, 0.5), "adaptive_guidance": 0.99},
    "negative": {"negative_prompt": "wind", "unconditional": "empty_prompt"},
    "variation": {"init_audio": TONE, "audio_length_in_s": None},
    "inpainting": {"init_audio": TONE, "inpaint": (0.3, 0.6), "audio_length_in_s": None},
}


@pytest.mark.parametrize("case", CALLS)
def test_without_steps_it_is_the_pipeline_and_with_all_of_them_its_drafter(demo, partner, case):
    call = {"prompt": "a bell", **QUICK, "sampler": "dpm++", "seed": 3, **CALLS[case]}
    none = demo(drafter=partner, drafter_interval=(0, 0.01), **call).audios
    assert torch.equal(none, demo(**call).audios)
    every = demo(drafter=partner, drafter_interval=(0, 1), **call).audios
    assert torch.equal(every, partner(**call).audios)
    assert not torch.equal(none, every)


def test_the_default_is_the_first_three_tenths(demo, partner):
    call = {"sampler": "dpm++", "seed": 3, **QUICK}
    default = demo("a bell", drafter=partner, **call).audios
    same = demo("a bell", drafter=partner, drafter_interval="0:0.3", **call).audios
    assert torch.equal(default, same)
    alone = demo("a bell", **call).audios, partner("a bell", **call).audios
    assert all(not torch.equal(default, single) for single in alone)


def test_sound_is_decoded_and_ranked_by_the_pipeline_that_is_called(demo, partner):
    call = {"seed": 3, "num_waveforms_per_prompt": 2, **QUICK, "output_type": "pt"}
    made = demo("a bell", drafter=partner, **call)
    latents = demo("a bell", drafter=partner, **{**call, "output_type": "latent"}).audios
    expected = demo.rank(["a bell"], demo.decode(latents, made.audios.shape[1]))
    assert torch.equal(made.audios, expected[0]) and torch.equal(made.scores, expected[1])


def test_threads_calling_both_models_each_way_make_what_they_make_in_turn(demo, partner):
    calls = [(demo, partner), (partner, demo), (demo, None), (demo, partner)]

    def make(numbered) -> torch.Tensor:
        seed, (pipe, drafter) = numbered
        more = {} if drafter is None else {"drafter": drafter, "drafter_interval": (0.2, 0.7)}
        reuse = "deepcache:2:start=0"
        return pipe("rain", seed=seed, reuse=reuse, sampler="dpm++", **more, **QUICK).audios

    with ThreadPoolExecutor(len(calls)) as threads:
        together = list(threads.map(make, enumerate(calls)))
    for call, made in zip(enumerate(calls), together, strict=True):
        assert torch.equal(make(call), made)


def test_each_model_has_its_own_rule_of_attention(demo, partner):
    """ "auto" is sparse beyond the trained length, which differs."""
    longer = copy(partner)
    longer.config = dataclasses.replace(partner.config, trained_seconds=0.32)
    call = {"seed": 3, "drafter_interval": (0, 1), **QUICK}
    made = demo("rain", drafter=longer, **call)
    assert made.attention == "dense"
    assert torch.equal(made.audios, longer("rain", seed=3, **QUICK).audios)
    assert not torch.equal(made.audios, partner("rain", seed=3, **QUICK).audios)


def test_running_out_of_memory_halves_the_batch_of_both(demo, partner, monkeypatch):
    call = {"sampler": "dpm++", "num_waveforms_per_prompt": 2, **QUICK, "drafter": partner}
    expected = demo("a bell", generator=seeded(), **call).audios
    evaluate = partner._evaluate

    def short_of_memory(latents, inputs):
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return evaluate(latents, inputs)

    monkeypatch.setattr(partner, "_evaluate", short_of_memory)
    found = demo("a bell", generator=seeded(), **call).audios
    torch.testing.assert_close(found, expected, rtol=0, atol=BATCH_TOLERANCE)


def test_a_compiled_drafter_is_called_in_its_steps_with_padded_tokens(demo, partner, monkeypatch):
    seen = []

    def compiled(latents, inputs):
        seen.append(inputs.t5_mask.shape[-1])
        return partner.unet.evaluate(latents, inputs)

    monkeypatch.setattr(partner, "_evaluate", compiled)
    demo("a bell", seed=3, drafter=partner, drafter_interval=(0.5, 1), **QUICK)
    assert seen == [16] * 2


def test_with_offloading_both_networks_are_on_the_device_while_they_take_turns():
    both = [AudioLDM2Pipeline.from_pretrained("demo", device="cpu", offload=True) for _ in "ab"]
    pipe, drafter = both
    users = []

    def look(step, timestep, latents):
        users.append([model.on_device._users[model.unet] for model in both])

    call = {"seed": 3, "sampler": "dpm++", **QUICK}
    made = pipe("rain", drafter=drafter, callback=look, **call).audios
    assert users == [[1, 1]] * 4
    assert not any(model.on_device._users[model.unet] for model in both)
    assert torch.equal(made, pipe("rain", **call).audios)  # the same weights


def test_an_interrupt_ends_a_call_in_the_drafters_steps(demo, partner):
    seen = []

    def stop(pipe, step, timestep, tensors):
        seen.append(tensors["latents"])
        pipe.interrupt = step == 1

    call = {"drafter_interval": (0, 0.75), "seed": 3, **QUICK}
    made = demo("rain", drafter=partner, callback_on_step_end=stop, **call).audios
    assert len(seen) == 2 and torch.equal(made, seen[-1])


def test_memory_is_estimated_for_the_larger_model(demo, partner, monkeypatch):
    needs = {demo.config.name: 1e6, partner.config.name: 9e9}
    monkeypatch.setattr(pipeline, "available_memory", lambda: 1e9)
    monkeypatch.setattr(pipeline, "denoising_bytes", lambda config, *_: needs[config.name])
    with pytest.warns(UserWarning, match=r"need about 9\.0 GB, and 1\.0 GB are free"):
        demo("rain", drafter=partner, seed=3, **QUICK)


def test_latents_of_another_scale_are_converted(demo, partner):
    """Its scale alone differs: other clips than unscaled ones, from the same networks."""
    scaled, vae = copy(partner), partner.config.vae
    changed = dataclasses.replace(vae, scale_factor=vae.scale_factor * 1.3)
    scaled.config = dataclasses.replace(partner.config, vae=changed)
    call = {"seed": 3, "sampler": "dpm++", **QUICK}
    converted = demo("a bell", drafter=scaled, **call).audios
    plain = demo("a bell", drafter=partner, **call).audios
    assert converted.isfinite().all() and 0 < (converted - plain).norm() < plain.norm()
    back = demo("a bell", drafter=scaled, drafter_interval=(0, 0.01), **call).audios
    assert torch.equal(back, demo("a bell", **call).audios)


# What is refused


def changed(pipe: AudioLDM2Pipeline, part: str, **fields) -> AudioLDM2Pipeline:
    """The same networks under another config."""
    other = copy(pipe)
    config = getattr(pipe.config, part)
    other.config = dataclasses.replace(pipe.config, **{part: dataclasses.replace(config, **fields)})
    return other


REFUSALS = {
    "schedule": (
        ("schedule", {"beta_end": 0.02}),
        "its noise schedule, (900, 0.0015, 0.02), must ",
    ),
    "steps": (("schedule", {"train_steps": 500}), "its noise schedule, (500, "),
    "rows": (("vocoder", {"mel_bins": 128}), "its number of latent rows, 32, must be that of demo"),
    "channels": (("unet", {"in_channels": 4}), "its number of latent channels, 4, must be that"),
    "rate": (("vocoder", {"sampling_rate": 48000}), "its sampling rate, 48000, must be that of"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_model_of_other_latents_is_refused_before_any_work(demo, partner, case, monkeypatch):
    monkeypatch.setattr(TextEncoder, "encode", lambda *_, **__: pytest.fail("work has begun"))
    (part, fields), message = REFUSALS[case]
    with pytest.raises(ValueError) as refused:
        demo("rain", drafter=changed(partner, part, **fields), **QUICK)
    assert str(refused.value).startswith("drafter demo-without-self: ")
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_vaes_are_compared_by_digest_or_by_weights(demo, partner):
    unknown = copy(partner)
    unknown.config = dataclasses.replace(partner.config, files={})
    demo("rain", drafter=unknown, seed=3, **QUICK)
    unknown.vae = load_component(demo_folder(), "vae")
    next(unknown.vae.parameters()).data.mul_(1.001)
    with pytest.raises(ValueError, match="its VAE must have the weights of that of demo"):
        demo("rain", drafter=unknown, **QUICK)


def test_arguments_that_do_not_go_with_a_drafter_are_refused(demo, partner, tmp_path):
    with pytest.raises(ValueError, match="^drafter_interval needs a second model: give it as draf"):
        demo("rain", drafter_interval=(0, 0.5), **QUICK)
    with pytest.raises(ValueError, match="^drafter 'demo': must be a pipeline; from_pretrained"):
        demo("rain", drafter="demo", **QUICK)
    condition = demo.encode_prompt("rain")
    embeds = {"prompt_embeds": condition.t5, "generated_prompt_embeds": condition.loa}
    with pytest.raises(ValueError, match="embeddings are those of one model: give prompts as text"):
        demo(drafter=partner, **embeds, **QUICK)
    with pytest.raises(ValueError, match=r"levels \[3\]: this UNet has attention on"):
        less = copy(partner)
        less.unet = copy(partner.unet)
        less.unet.config = dataclasses.replace(partner.unet.config, attention_levels=(1, 2))
        demo("rain", drafter=less, attention="litefocus:0.1:levels=1-3", **QUICK)
