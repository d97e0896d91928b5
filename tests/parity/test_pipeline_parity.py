"""From prompt to waveform, the same as diffusers' AudioLDM2Pipeline computes it."""

import warnings
from copy import copy
from dataclasses import replace

import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.config import Distilled
from audiolitefocus.diffusion.noise import ClipNoise

WAVEFORM_TOLERANCE = 1e-4  # on samples in [-1, 1], after three steps and the vocoder, float32
LATENT_TOLERANCE = 1e-4
AS_DIFFUSERS = {"eta": 0.0, "unconditional": "empty_prompt", "attention": "dense"}
TWO_PROMPTS = ["rain on a tin roof", "a bell"]


@pytest.fixture(scope="module")
def ours(tiny_bundle):
    return AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu")


@pytest.fixture(scope="module")
def theirs(tiny_pipeline):
    tiny_pipeline.set_progress_bar_config(disable=True)
    return tiny_pipeline


def both(ours, theirs, **arguments):
    """Waveforms of both pipelines; diffusers' has its own generator of the same seed."""
    seed = arguments.pop("seed", 0)
    generators = [torch.Generator().manual_seed(seed) for _ in range(2)]
    arguments = {"num_inference_steps": 3, "guidance_scale": 3.5, "output_type": "pt", **arguments}
    mine = ours(generator=generators[0], **AS_DIFFUSERS, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = theirs(generator=generators[1], **arguments)
    return mine.audios, reference.audios


CALLS = {
    "one prompt": {"prompt": "rain on a tin roof", "audio_length_in_s": 1.28},
    "prompts of different lengths": {"prompt": TWO_PROMPTS, "audio_length_in_s": 1.28},
    "negative prompt": {
        "prompt": "a bell",
        "negative_prompt": "noise, hum and a lot of hiss",
        "audio_length_in_s": 1.28,
    },
    "negative prompts": {
        "prompt": TWO_PROMPTS,
        "negative_prompt": ["x", "low quality"],
        "audio_length_in_s": 1.28,
    },
    "no guidance": {"prompt": "a bell", "guidance_scale": 1.0, "audio_length_in_s": 1.28},
    "a clip longer than trained": {"prompt": "a bell", "audio_length_in_s": 3.84},
    "other seed and steps": {
        "prompt": "a bell",
        "audio_length_in_s": 1.28,
        "seed": 9,
        "num_inference_steps": 7,
    },
}


@pytest.mark.parametrize("case", CALLS)
def test_waveforms_equal_diffusers(ours, theirs, case):
    mine, reference = both(ours, theirs, **CALLS[case])
    assert mine.shape == reference.shape
    torch.testing.assert_close(mine, reference, rtol=0, atol=WAVEFORM_TOLERANCE)
    assert mine.std() > 100 * WAVEFORM_TOLERANCE


@pytest.mark.parametrize("seconds", [0.3, 1.0, 1.23, 2.5])
def test_odd_lengths_equal_diffusers_on_the_same_latents(ours, theirs, seconds):
    """diffusers denoises an odd number of latent frames; so do we when we are given its latents."""
    frames = -(-int(seconds / 0.01) // 4)
    latents = torch.randn(2, 8, frames, 8, generator=torch.Generator().manual_seed(3))
    call = {"prompt": TWO_PROMPTS, "latents": latents, "audio_length_in_s": seconds}
    mine, reference = both(ours, theirs, **call)
    assert mine.shape == reference.shape == (2, int(seconds * 16000))
    torch.testing.assert_close(mine, reference, rtol=0, atol=WAVEFORM_TOLERANCE)


@pytest.mark.parametrize("seconds, padded", [(1.0, 1.12), (1.23, 1.28), (2.5, 2.56)])
def test_odd_lengths_are_the_beginning_of_whole_levels(ours, theirs, seconds, padded):
    """Left to ourselves we denoise the next length that halves exactly, and cut the waveform."""
    mine, _ = both(ours, theirs, prompt="a bell", audio_length_in_s=seconds)
    _, reference = both(ours, theirs, prompt="a bell", audio_length_in_s=padded)
    samples = int(seconds * 16000)
    assert mine.shape == (1, samples)
    torch.testing.assert_close(mine, reference[:, :samples], rtol=0, atol=WAVEFORM_TOLERANCE)


def test_dpm_solver_equals_diffusers_with_its_scheduler(ours, theirs):
    diffusers = pytest.importorskip("diffusers")
    call = {"prompt": TWO_PROMPTS, "audio_length_in_s": 1.28, "num_inference_steps": 6}
    before = theirs.scheduler
    theirs.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(before.config)
    try:
        mine = ours(
            generator=torch.Generator().manual_seed(0),
            sampler="dpm++",
            output_type="pt",
            **AS_DIFFUSERS,
            **call,
        )
        reference = theirs(generator=torch.Generator().manual_seed(0), output_type="pt", **call)
    finally:
        theirs.scheduler = before
    torch.testing.assert_close(mine.audios, reference.audios, rtol=0, atol=WAVEFORM_TOLERANCE)


@pytest.mark.parametrize("steps", [1, 4])
def test_lcm_equals_diffusers_with_its_scheduler(ours, theirs, steps):
    """With the noise of ours: between steps theirs draws on from the initial noise's generator."""
    diffusers = pytest.importorskip("diffusers")
    distilled = copy(ours)
    distilled.config = replace(ours.config, distilled=Distilled("lcm", 3.5))
    call = {"prompt": "a bell", "audio_length_in_s": 1.28, "output_type": "pt"}
    mine = distilled(seed=0, num_inference_steps=steps, **AS_DIFFUSERS, **call).audios
    before = theirs.scheduler
    theirs.scheduler = scheduler = diffusers.LCMScheduler.from_config(before.config)
    step, (fresh,) = scheduler.step, ClipNoise(torch.Generator().manual_seed(0), 1).fresh_streams
    scheduler.step = lambda *x, generator=None, **named: step(*x, generator=fresh, **named)
    call |= {"num_inference_steps": steps, "guidance_scale": 1.0}
    try:
        reference = theirs(generator=torch.Generator().manual_seed(0), **call).audios
    finally:
        theirs.scheduler = before
    torch.testing.assert_close(mine, reference, rtol=0, atol=WAVEFORM_TOLERANCE)


def test_latents_and_precomputed_embeddings_equal_diffusers(ours, theirs):
    t5, mask, loa = theirs.encode_prompt("a bell", "cpu", 1, False)
    negative_t5, negative_mask, negative_loa = theirs.encode_prompt("hum, hi", "cpu", 1, False)
    length = min(t5.shape[1], negative_t5.shape[1])
    call = {
        "prompt_embeds": t5[:, :length],
        "attention_mask": mask[:, :length],
        "generated_prompt_embeds": loa,
        "negative_prompt_embeds": negative_t5[:, :length],
        "negative_attention_mask": negative_mask[:, :length],
        "negative_generated_prompt_embeds": negative_loa,
        "audio_length_in_s": 1.28,
        "output_type": "latent",
    }
    mine, reference = both(ours, theirs, **call)
    torch.testing.assert_close(mine, reference, rtol=LATENT_TOLERANCE, atol=LATENT_TOLERANCE)


def test_conditions_equal_diffusers_prompt_by_prompt(ours, theirs):
    for prompt in TWO_PROMPTS:
        condition = ours.encode_prompt(prompt)
        t5, mask, loa = theirs.encode_prompt(prompt, "cpu", 1, False)
        torch.testing.assert_close(condition.t5, t5)
        torch.testing.assert_close(condition.loa, loa, rtol=1e-5, atol=1e-5)
        assert torch.equal(condition.t5_mask, mask)
