"""What save_pretrained writes, diffusers reads: the same networks, stage by stage, and back."""

import warnings
from dataclasses import replace

import pytest
import torch
from diffusers import AudioLDM2Pipeline as Theirs
from diffusers import DiffusionPipeline, LCMScheduler
from safetensors.torch import load_file

from audiolitefocus import AudioLDM2Pipeline, convert_checkpoint
from audiolitefocus.config import Distilled, demo_folder
from audiolitefocus.diffusion.schedule import timesteps_of
from tests.support.checkpoints import digests
from tests.support.compare import assert_same, compare_unets

PARTS = ("unet", "vae", "vocoder", "projection_model", "text_encoder", "text_encoder_2")
WAVEFORM_TOLERANCE = 1e-4  # relative, after two guided steps and the vocoder, float32


@pytest.fixture(scope="module", params=["tiny", "demo"])
def pair(request, tmp_path_factory):
    """Our pipeline, and diffusers' of what it has saved."""
    bundle = demo_folder() if request.param == "demo" else request.getfixturevalue("tiny_bundle")
    ours = AudioLDM2Pipeline.from_pretrained(bundle, device="cpu")
    folder = tmp_path_factory.mktemp("saved") / request.param
    ours.save_pretrained(folder)
    theirs = DiffusionPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    assert type(theirs) is Theirs
    return ours, theirs


@pytest.mark.parametrize("part", [*PARTS, "language_model"])
def test_every_weight_is_what_diffusers_had(tiny_bundle, tiny_pipeline, tmp_path, part):
    AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu").save_pretrained(tmp_path / "saved")
    again = Theirs.from_pretrained(tmp_path / "saved")
    before, after = (getattr(p, part).state_dict() for p in (tiny_pipeline, again))
    assert before.keys() == after.keys()
    # GPT-2's tokens are never predicted, and the vocoder's input is not normalised
    unused = ("lm_head.weight", "mean", "scale")
    assert all(torch.equal(before[key], after[key]) for key in before if key not in unused)


def test_text_embeddings_are_the_same(pair):
    ours, theirs = pair
    condition = ours.encode_prompt("a bell over rain")
    t5, mask, loa = theirs.encode_prompt("a bell over rain", "cpu", 1, False)
    torch.testing.assert_close(condition.t5, t5)
    torch.testing.assert_close(condition.loa, loa, rtol=1e-5, atol=1e-5)
    assert torch.equal(condition.t5_mask, mask)


def test_an_evaluation_of_the_unet_is_the_same(pair):
    ours, theirs = pair
    rows = ours.config.vocoder.mel_bins // ours.config.vae.downsampling
    compare_unets(theirs.unet, ours.unet, batch=2, length=16, rows=rows, tokens=7)


@torch.no_grad()
def test_vae_and_vocoder_are_the_same(pair):
    ours, theirs = pair
    rows = ours.config.vocoder.mel_bins // ours.config.vae.downsampling
    latents = torch.randn(2, 8, 16, rows, generator=torch.Generator().manual_seed(5))
    scaled = latents / ours.config.vae.scale_factor
    mel = ours.vae.decode(scaled)
    assert_same(mel, theirs.vae.decode(latents / theirs.vae.config.scaling_factor).sample[:, 0])
    assert_same(ours.vae.encode(mel)[0], theirs.vae.encode(mel[:, None]).latent_dist.mean)
    assert_same(ours.vocoder(mel), theirs.vocoder(mel))


def test_clips_of_the_default_length_are_the_same(pair):
    ours, theirs = pair
    seconds = {"num_inference_steps": 2, "output_type": "pt"}
    if ours.config.name != "demo":
        seconds["audio_length_in_s"] = 1.28
    mine = ours("rain", seed=3, eta=0.0, unconditional="empty_prompt", **seconds).audios
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = theirs("rain", generator=torch.Generator().manual_seed(3), **seconds).audios
    assert (mine - reference).norm() / reference.norm() < WAVEFORM_TOLERANCE
    length = seconds.get("audio_length_in_s", ours.config.trained_seconds)
    assert mine.shape == reference.shape == (1, int(16000 * length))


def test_converted_back_it_is_the_same_bundle(tiny_bundle, tmp_path):
    AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu").save_pretrained(tmp_path / "saved")
    config = convert_checkpoint(tmp_path / "saved", tmp_path / "again", heads="config")
    assert digests(tmp_path / "again") == digests(tiny_bundle)
    before = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu").config
    for part in ("unet", "vae", "vocoder", "projection", "text", "schedule"):
        ours, theirs = getattr(before, part), getattr(config, part)
        if part == "unet":  # where no level attends, no heads are: 1 stands for none
            assert ours.heads[1:] == theirs.heads[1:] and ours.channels == theirs.channels
        else:
            assert ours == theirs


def test_distilled_weights_get_their_scheduler(tiny_bundle, tmp_path):
    ours = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu")
    ours.config = replace(ours.config, distilled=Distilled("lcm", 3.5))
    ours.save_pretrained(tmp_path / "saved")
    scheduler = Theirs.from_pretrained(tmp_path / "saved").scheduler
    assert type(scheduler) is LCMScheduler
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == timesteps_of("lcm", 4, 1000)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_saved_as_such(tiny_bundle, tmp_path, dtype):
    half = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu", dtype=dtype)
    half.save_pretrained(tmp_path / "saved", variant="fp16")
    files = sorted((tmp_path / "saved").rglob("*.fp16.safetensors"))
    assert len(files) == len(PARTS) + 1
    for file in files:
        floats = [weight for weight in load_file(file).values() if weight.is_floating_point()]
        assert {weight.dtype for weight in floats} == {dtype}
    theirs = Theirs.from_pretrained(tmp_path / "saved", variant="fp16", torch_dtype=dtype)
    key = "conv_in.weight"
    assert torch.equal(theirs.unet.state_dict()[key], half.unet.state_dict()[key].contiguous())
