"""What the pipeline promises beyond parity: batches, candidates, repeatability, refusals."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
import torch

from audiolitefocus import AudioLDM2Pipeline, LiteFocus
from audiolitefocus.attention.settings import TokenMerging
from audiolitefocus.models.text_encoder import TextEncoder
from tests.support.compare import seeded

BATCH_TOLERANCE = 1e-4  # rounding of batched matrix products, through three steps and the vocoder
QUICK = {"audio_length_in_s": 1.28, "num_inference_steps": 3, "output_type": "pt"}


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
@pytest.mark.parametrize("attention", ["dense", "tome", LiteFocus(sparse_ratio=0.2)])
def test_a_clip_does_not_depend_on_its_batch(pipe, sampler, attention):
    options = {**QUICK, "sampler": sampler, "attention": attention}
    alone = pipe("a bell", generator=seeded(), **options).audios
    prompts = ["a bell", "rain on a long tin roof, thunder"]
    together = pipe(prompts, generator=seeded(), **options).audios
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=BATCH_TOLERANCE)
    assert (together[1] - together[0]).abs().max() > 100 * BATCH_TOLERANCE


def test_a_list_of_generators_is_one_for_each_clip(pipe):
    together = pipe(["a bell", "rain"], generator=[seeded(1), seeded(2)], **QUICK).audios
    for clip, prompt, seed in zip(together, ("a bell", "rain"), (1, 2), strict=True):
        alone = pipe(prompt, generator=[seeded(seed)], **QUICK).audios[0]
        torch.testing.assert_close(clip, alone, rtol=0, atol=BATCH_TOLERANCE)


def test_the_same_seed_makes_the_same_clip_and_no_global_state_moves(pipe):
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    options = {**QUICK, "attention": LiteFocus(sparse_ratio=0.3), "num_waveforms_per_prompt": 2}
    first, again = (pipe("a bell", generator=seeded(4), **options) for _ in range(2))
    assert torch.equal(first.audios, again.audios) and torch.equal(first.scores, again.scores)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert not torch.equal(first.audios, pipe("a bell", generator=seeded(5), **options).audios)


def test_candidates_are_ranked_within_each_prompt(pipe, monkeypatch):
    """With scores that would mix the prompts if they were ranked together."""
    given = torch.tensor([0.1, 0.2, 0.3, 0.9, 0.8, 0.7])
    monkeypatch.setattr(TextEncoder, "similarity", lambda *_: given)
    options = {**QUICK, "num_waveforms_per_prompt": 3}
    ranked = pipe(["a bell", "rain"], generator=seeded(), **options)
    monkeypatch.setattr(TextEncoder, "similarity", lambda *_: torch.zeros(6))
    as_made = pipe(["a bell", "rain"], generator=seeded(), **options).audios
    assert torch.equal(ranked.audios, as_made[[2, 1, 0, 3, 4, 5]])
    assert ranked.scores.tolist() == pytest.approx([0.3, 0.2, 0.1, 0.9, 0.8, 0.7])


def test_scores_equal_transformers_clap(pipe):
    """Ten seconds at 48 kHz, where no window is cut: the cosine that ClapModel itself computes."""
    transformers = pytest.importorskip("transformers")
    soxr = pytest.importorskip("soxr")
    time = np.arange(160000) / 16000
    waveforms = np.stack([np.sin(2 * np.pi * f * time) for f in (440, 1000)]).astype(np.float32)
    prompts = ["a bell", "rain"]
    ours = pipe.text.similarity(prompts, torch.from_numpy(waveforms), 16000)
    folder = pipe.folder / "clap"
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)
    inputs = transformers.AutoTokenizer.from_pretrained(folder)(
        prompts, return_tensors="pt", padding=True
    )
    resampled = soxr.resample(waveforms.T, 16000, 48000).T
    features = extractor(list(resampled), sampling_rate=48000, return_tensors="pt")
    with torch.inference_mode():
        output = transformers.ClapModel.from_pretrained(folder).eval()(**inputs, **features)
    expected = (output.text_embeds * output.audio_embeds).sum(-1)
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-3)  # two resamplers


def test_a_long_clip_is_embedded_in_windows(pipe):
    waveform = torch.sin(torch.arange(16000 * 25) * 0.1)
    embedding = pipe.text.embed_audio(waveform, 16000)
    assert embedding.norm().item() == pytest.approx(1, abs=1e-5)


def test_windows_count_by_their_length(pipe):
    """The last 0.24 s of AudioLDM2's 10.24 s are a window of their own."""
    waveform = torch.randn(163840, generator=torch.Generator().manual_seed(0))
    waveform[160000:] = torch.sin(torch.arange(3840) * 0.1)
    first, last, whole = (
        pipe.text.embed_audio(part, 16000)
        for part in (waveform[:160000], waveform[160000:], waveform)
    )
    weighted = torch.nn.functional.normalize(10 * first + 0.24 * last, dim=-1)
    # The resampling filter reaches across the cut.
    torch.testing.assert_close(whole, weighted, rtol=0, atol=2e-3)


def test_auto_attention_is_dense_up_to_the_trained_length(pipe):
    assert pipe.choose_attention("auto", pipe.config.trained_seconds) == "dense"
    longer = pipe.choose_attention("auto", 2 * pipe.config.trained_seconds)
    assert longer == LiteFocus.for_duration(
        2 * pipe.config.trained_seconds,
        trained_seconds=pipe.config.trained_seconds,
        rule=pipe.config.attention_rule,
    )
    assert pipe.choose_attention("tome", 100.0) == TokenMerging()


def test_trained_and_empty_prompt_guidance_differ(pipe):
    clips = [
        pipe("a bell", generator=seeded(), unconditional=way, **QUICK).audios
        for way in ("trained", "empty_prompt")
    ]
    assert (clips[0] - clips[1]).abs().max() > 100 * BATCH_TOLERANCE


def test_the_trained_unconditional_is_zeros_and_one_token(pipe):
    condition = pipe.text.unconditional(2)
    assert condition.loa.shape == (2, 8, pipe.config.unet.loa_dim) and not condition.loa.any()
    assert condition.t5.shape[:2] == condition.t5_mask.shape == (2, 1)


def test_the_callback_sees_every_step_and_can_cancel(pipe):
    seen = []
    pipe("x", generator=seeded(), callback=lambda *step: seen.append(step), **QUICK)
    assert [(step, timestep) for step, timestep, _ in seen] == [(0, 667), (1, 334), (2, 1)]
    latents = pipe("x", generator=seeded(), **{**QUICK, "output_type": "latent"}).audios
    assert torch.equal(seen[-1][2], latents)

    def cancel(step, timestep, latents):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("x", callback=cancel, **QUICK)


def test_decode_is_what_the_call_does_last(pipe):
    options = {**QUICK, "output_type": "latent"}
    latents = pipe("a bell", generator=seeded(), **options).audios
    expected = pipe("a bell", generator=seeded(), **QUICK).audios
    assert torch.equal(pipe.decode(latents, expected.shape[1]), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(tiny_bundle, pipe, dtype):
    half = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu", torch_dtype=dtype)
    assert half.unet.conv_in.weight.dtype == dtype
    options = {**QUICK, "eta": 0.0, "output_type": "latent", "guidance_scale": 1.0}
    expected = pipe("a bell", generator=seeded(), **options).audios
    latents = half("a bell", generator=seeded(), **options).audios
    assert latents.dtype == torch.float32
    assert (latents - expected).norm() / expected.norm() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["dense", "tome", LiteFocus(sparse_ratio=0.2)])
def test_a_compiled_pipeline_makes_the_same_clips(tiny_bundle, pipe, attention):
    compiled = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu").compile()
    options = {**QUICK, "attention": attention, "output_type": "latent"}
    for seed in (0, 1):  # the second call runs what the first has compiled
        expected = pipe("a bell", generator=seeded(seed), **options).audios
        latents = compiled("a bell", generator=seeded(seed), **options).audios
        torch.testing.assert_close(latents, expected, rtol=1e-3, atol=1e-3)


REFUSALS = {
    "empty": ({"prompt": " "}, "is empty"),
    "no text": ({"prompt": [3]}, "must be a text"),
    "nothing": ({"prompt": None}, "give either prompt"),
    "length": ({"audio_length_in_s": float("nan")}, "audio_length_in_s nan"),
    "steps": (
        {"num_inference_steps": 0},
        "num_inference_steps 0: must be a whole number from 1 to 1000",
    ),
    "half a step": ({"num_inference_steps": 2.5}, "num_inference_steps 2.5"),
    "guidance": ({"guidance_scale": float("inf")}, "guidance_scale inf"),
    "eta": ({"eta": 1.5}, "eta 1.5"),
    "sampler": ({"sampler": "euler"}, "sampler 'euler'"),
    "attention": ({"attention": "flash"}, "attention 'flash'"),
    "levels": ({"attention": LiteFocus(levels=(0,))}, "levels"),
    "output": ({"output_type": "mp3"}, "output_type 'mp3'"),
    "unconditional": ({"unconditional": "none"}, "unconditional 'none'"),
    "latents": ({"latents": torch.zeros(1, 8, 3, 8)}, "latents"),
    "nan latents": ({"latents": torch.full((1, 8, 32, 8), float("nan"))}, "not finite"),
    "negatives": ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1"),
    "half embeddings": ({"prompt": None, "prompt_embeds": torch.zeros(1, 2, 40)}, "both"),
    "wide embeddings": (
        {
            "prompt": None,
            "prompt_embeds": torch.zeros(1, 2, 41),
            "generated_prompt_embeds": torch.zeros(1, 8, 64),
        },
        "prompt_embeds",
    ),
    "generators": ({"generator": [torch.Generator()] * 2}, "2 generators for 1"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_invalid_arguments_are_refused_before_any_work(pipe, case, monkeypatch):
    arguments, message = REFUSALS[case]
    monkeypatch.setattr(TextEncoder, "encode", lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match=message):
        pipe(**{"prompt": "a bell", **QUICK, **arguments})


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_threads_calling_one_pipeline_make_what_they_make_in_turn(tiny_bundle, sampler):
    """Different prompts, lengths, attention and seeds at once, on a pipeline just loaded."""
    pipe = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu")
    calls = [
        ("a bell", {"audio_length_in_s": 1.28, "attention": "dense", "seed": 1}),
        ("rain", {"audio_length_in_s": 0.64, "attention": "litefocus:0.3", "seed": 2}),
        ("wind", {"audio_length_in_s": 1.92, "attention": "tome", "seed": 3}),
        ("a long tone", {"audio_length_in_s": 0.96, "attention": "litefocus:0", "seed": 4}),
        ("a drum", {"audio_length_in_s": 0.64, "reuse": "deepcache:2:start=0", "seed": 5}),
    ]

    def make(call) -> torch.Tensor:
        return pipe(call[0], **{**QUICK, **call[1], "sampler": sampler}).audios

    with ThreadPoolExecutor(len(calls)) as threads:
        together = list(threads.map(make, calls))
    for call, made in zip(calls, together, strict=True):
        assert torch.equal(make(call), made)


@pytest.mark.parametrize(("steps", "scale"), [(np.int64(3), np.float32(3.5)), (3, 3.5)])
def test_numbers_of_numpy_are_numbers(pipe, steps, scale):
    options = {"audio_length_in_s": np.float64(0.64), "num_inference_steps": steps, "seed": 1}
    made = pipe("a bell", guidance_scale=scale, output_type="pt", **options).audios
    assert made.shape == (1, 10240)


def test_a_seed_and_a_generator_together_are_refused(pipe):
    with pytest.raises(ValueError, match="either seed or generator"):
        pipe("a bell", seed=1, generator=seeded(), **QUICK)


def test_an_unknown_option_is_refused_with_the_nearest(pipe):
    with pytest.raises(ValueError, match="did you mean guidance_scale"):
        pipe("a bell", guidance_scal=3.0, **QUICK)


def test_saved_clips_are_sound_files(pipe, tmp_path):
    (path,) = pipe("a bell", seed=1, **QUICK).save(tmp_path / "bell.wav")
    assert soundfile.info(path).frames == int(1.28 * 16000)
    two = pipe(["a bell", "rain"], seed=1, **QUICK)
    assert [p.name for p in two.save(tmp_path / "two.flac")] == ["two-1.flac", "two-2.flac"]
    latents = pipe("a bell", seed=1, **{**QUICK, "output_type": "latent"})
    with pytest.raises(ValueError, match="latents are no sound"):
        latents.save(tmp_path / "latents.wav")


def test_latents_that_turn_nan_are_an_error(pipe, monkeypatch):
    monkeypatch.setattr(pipe, "_evaluate", lambda latents, _: latents.repeat(2, 1, 1, 1) * math.nan)
    with pytest.raises(ValueError, match="not finite"):
        pipe("a bell", **QUICK)
