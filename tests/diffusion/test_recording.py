"""Starting from recordings: what stays, how it is joined, and what is refused."""

import numpy as np
import pytest
import soundfile
import torch

from audiolitefocus import LiteFocus
from audiolitefocus.diffusion.inpaint import KnownLatents
from audiolitefocus.diffusion.recording import FADE_SECONDS, PEAK, Recording
from audiolitefocus.models.text_encoder import TextEncoder
from audiolitefocus.options import GenerationOptions
from tests.support.compare import seeded

RATE = 16000
BATCH_TOLERANCE = 1e-4  # rounding of batched matrix products, through steps and the vocoder
FADE = int(FADE_SECONDS * RATE)


def tone(seconds: float, hertz: float = 440.0, loud: float = 0.3) -> torch.Tensor:
    time = torch.arange(int(seconds * RATE)) / RATE
    return loud * torch.sin(2 * torch.pi * hertz * time)


def taken(waveform: torch.Tensor, *, inpaint=None, seconds=None, strength=None) -> Recording:
    init, on = (waveform, None) if seconds is None else (None, waveform)
    options = {"strength": strength, "inpaint": inpaint, "audio_length_in_s": seconds}
    return Recording.load(GenerationOptions(init_audio=init, continue_audio=on, **options), RATE)


SPANS = {
    "inside": ({"inpaint": (0.25, 0.6)}, (4000, 9600)),
    "from the start": ({"inpaint": (0, 0.3)}, (0, 4800)),
    "to the end": ({"inpaint": (0.9, 1.0)}, (14400, 16000)),
    "one sample": ({"inpaint": (0.5, 0.5 + 1 / RATE)}, (8000, 8001)),
    "continued": ({"seconds": 1.5}, (16000, 24000)),
    "continued by one sample": ({"seconds": 1 + 1 / RATE}, (16000, 16001)),
    "continued by much": ({"seconds": 5}, (16000, 80000)),
}


@pytest.mark.parametrize("case", SPANS)
@pytest.mark.parametrize("size", [777, 10**6])
def test_all_but_the_span_is_the_recording_bit_for_bit(case, size):
    options, (start, stop) = SPANS[case]
    waveform = torch.rand(RATE, generator=seeded()) * 2 - 1
    recording = taken(waveform, **options)
    assert recording.span == (start, stop)
    made = 0.8 * torch.rand(2, recording.samples, generator=seeded(1)) - 0.4
    joined = torch.cat(list(recording.splice(made.split(size, dim=1))), dim=1)
    assert joined.shape == made.shape
    for clip in joined:
        assert torch.equal(clip[:start], waveform[:start])
        assert torch.equal(clip[stop:], waveform[stop:])
    inner = slice(start + FADE if start else 0, stop - FADE if stop < recording.samples else stop)
    torch.testing.assert_close(joined[:, inner], made[:, inner] / recording.gain)


def test_the_joint_is_exact_where_float32_cannot_count_samples():
    waveform = torch.ones(20 * 60 * RATE + 1) / 2
    recording = taken(waveform, seconds=20 * 60 + 1)
    start, stop = recording.span
    (joined,) = next(iter(recording.splice([torch.zeros(1, stop)])))
    assert torch.equal(joined[:start], waveform)
    assert joined[start : start + FADE].diff().max() < 0 and not joined[start + FADE :].any()


@pytest.mark.parametrize("loud", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("case", ["inside", "continued", "to the end"])
def test_joints_are_no_steps(case, loud):
    """A tone into another whose phase does not fit: no step is larger than the tones' own, and what
    the fade itself adds.
    """
    recording = taken(tone(1.0, 440, loud), **SPANS[case][0])
    made = torch.cos(2 * torch.pi * 300 * torch.arange(recording.samples) / RATE) * PEAK
    (joined,) = next(iter(recording.splice([made[None]])))
    own = max(recording.waveform.diff().abs().max(), made.diff().abs().max() / recording.gain)
    fading = 2 * loud * torch.pi / 2 / FADE
    assert joined.diff().abs().max() <= own + fading
    start = recording.span[0]
    cut = torch.cat([recording.waveform[:start], made[start:] / recording.gain])
    assert cut.diff().abs().max() > 2 * (own + fading)  # what it would be without a fade


def test_silence_has_no_level():
    assert taken(torch.zeros(RATE)).gain == 1.0
    assert taken(tone(1.0, loud=0.1)).gain == pytest.approx(5.0, rel=1e-3)
    assert taken(tone(1.0, loud=0.1) + 0.5).gain == pytest.approx(5.0, rel=1e-3)


def test_nothing_changed_is_the_recordings_latents():
    clean, noise = torch.randn(2, 1, 8, 12, 4, generator=seeded())
    known = KnownLatents(clean, torch.zeros(12, dtype=torch.bool))
    put_back = known.restore(noise, [0.3, 1.0])
    assert torch.equal(put_back(noise * 7, 1), clean)
    torch.testing.assert_close(put_back(noise * 7, 0), 0.3**0.5 * clean + 0.7**0.5 * noise)


QUICK = {"num_inference_steps": 3, "output_type": "pt"}


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_strength_1_is_generation_from_the_same_noise(pipe, sampler):
    options = {**QUICK, "sampler": sampler}
    plain = pipe("a bell", audio_length_in_s=1.28, generator=seeded(), **options).audios
    varied = pipe("a bell", init_audio=tone(1.28), strength=1.0, generator=seeded(), **options)
    assert torch.equal(varied.audios, plain)


def test_the_less_strength_the_nearer_to_the_recording(pipe):
    options = {"num_inference_steps": 20, "output_type": "latent", "guidance_scale": 1.0}
    with torch.inference_mode():
        clean = taken(tone(1.28)).encode(pipe.vae, pipe.config.vocoder, 32).latents
    distances = [
        (pipe("x", init_audio=tone(1.28), strength=s, generator=seeded(), **options).audios - clean)
        .norm()
        .item()
        for s in (0.05, 0.3, 0.7)
    ]
    assert distances == sorted(distances) and distances[0] < 0.2 * distances[-1]


def test_a_variation_takes_the_last_steps(pipe):
    seen = []
    options = {**QUICK, "num_inference_steps": 10, "callback": lambda *step: seen.append(step[:2])}
    pipe("x", init_audio=tone(1.0), strength=0.35, generator=seeded(), **options)
    assert seen == [(0, 201), (1, 101), (2, 1)]
    pipe("x", init_audio=tone(1.0), generator=seeded(), **{**options, "callback_steps": 4})
    assert seen[3:] == [(0, 401), (4, 1)]  # half of them by default


@pytest.mark.parametrize("samples", [640, 12345, 20480])
def test_a_variation_is_as_long_as_its_recording(pipe, samples):
    made = pipe("x", init_audio=tone(2.0)[:samples], generator=seeded(), **QUICK).audios
    assert made.shape == (1, samples)


def test_latents_outside_of_the_span_stay_and_those_inside_change(pipe):
    recording = taken(tone(1.28), inpaint=(0.5, 0.81))
    with torch.inference_mode():
        known = recording.encode(pipe.vae, pipe.config.vocoder, 32)
    assert known.changed.nonzero().flatten().tolist() == list(range(12, 21))
    options = {**QUICK, "output_type": "latent", "inpaint": (0.5, 0.81)}
    for sampler in ("ddim", "dpm++"):
        found = pipe("x", init_audio=tone(1.28), generator=seeded(), sampler=sampler, **options)
        found, before = found.audios, known.latents
        assert torch.equal(found[:, :, ~known.changed], before[:, :, ~known.changed])
        assert (found - before)[:, :, known.changed].abs().amin() > 0


def test_inpainting_changes_its_span_alone(pipe):
    waveform = tone(1.1) + 0.01 * torch.randn(17600, generator=seeded())
    options = {**QUICK, "num_waveforms_per_prompt": 2, "inpaint": (0.4, 0.7)}
    made = pipe(["rain", "a bell"], init_audio=waveform, generator=seeded(), **options)
    assert made.audios.shape == (4, 17600) and made.scores.shape == (4,)
    for clip in made.audios:
        assert torch.equal(clip[:6400], waveform[:6400])
        assert torch.equal(clip[11200:], waveform[11200:])
        assert (clip[6720:10880] - waveform[6720:10880]).abs().mean() > 100 * BATCH_TOLERANCE


def test_a_recording_goes_on(pipe):
    waveform = tone(0.7)
    output = pipe(
        "rain",
        continue_audio=waveform.numpy(),
        audio_length_in_s=pipe.config.trained_seconds + 1,
        generator=seeded(),
        **QUICK,
    )
    made = output.audios
    samples = int((pipe.config.trained_seconds + 1) * RATE)
    assert made.shape == (1, samples) and torch.equal(made[0, : len(waveform)], waveform)
    assert made[0, len(waveform) :].std() > 0
    assert isinstance(output.attention, LiteFocus)  # by the length of the clip


def test_a_clip_from_a_recording_does_not_depend_on_its_batch(pipe):
    options = {**QUICK, "init_audio": tone(1.0), "strength": 0.7}
    alone = pipe("a bell", generator=seeded(), **options).audios
    together = pipe(["a bell", "rain"], generator=seeded(), **options).audios
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=BATCH_TOLERANCE)
    assert (together[1] - together[0]).abs().max() > 100 * BATCH_TOLERANCE


def test_files_of_other_rates_and_channels_are_resampled(pipe, tmp_path):
    stereo = np.stack([tone(1.0).numpy(), tone(1.0, 300).numpy()], 1)
    soundfile.write(tmp_path / "x.flac", stereo, 44100)
    options = {**QUICK, "inpaint": (0.1, 0.2), "generator": seeded()}
    (made,) = pipe("x", init_audio=tmp_path / "x.flac", **options).audios
    chosen = GenerationOptions(init_audio=tmp_path / "x.flac", inpaint=(0.1, 0.2))
    recorded = Recording.load(chosen, RATE).waveform
    assert len(made) == len(recorded) == -(-16000 * 160 // 441)
    assert torch.equal(made[:1600], recorded[:1600]) and torch.equal(made[3200:], recorded[3200:])


def test_initial_noise_may_be_given(pipe):
    latents = torch.randn(1, 8, 36, 8, generator=seeded(5))
    options = {**QUICK, "init_audio": tone(1.28), "latents": latents}
    first, again = (pipe("x", generator=seeded(), **options).audios for _ in range(2))
    assert first.shape == (1, 20480) and torch.equal(first, again)


REFUSALS = {
    "strength 0": ({"init_audio": tone(1.0), "strength": 0}, "strength 0"),
    "strength 2": ({"init_audio": tone(1.0), "strength": 2.0}, "strength 2.0"),
    "strength nan": ({"init_audio": tone(1.0), "strength": float("nan")}, "strength nan"),
    "strength text": ({"init_audio": tone(1.0), "strength": "much"}, "strength 'much'"),
    "no step left": (
        {"init_audio": tone(1.0), "strength": 0.1},
        "strength 0.1 of num_inference_steps 3",
    ),
    "strength of nothing": ({"strength": 0.5}, "init_audio"),
    "span of nothing": ({"inpaint": (0, 1)}, "init_audio"),
    "span outside": ({"init_audio": tone(1.0), "inpaint": (0.5, 1.1)}, "has only 1.00 s"),
    "span before": (
        {"init_audio": tone(1.0), "inpaint": (-0.5, 1)},
        r"inpaint \(-0.5, 1\): must be START:END",
    ),
    "span reversed": ({"init_audio": tone(1.0), "inpaint": (0.5, 0.2)}, "must end after"),
    "span empty": ({"init_audio": tone(1.0), "inpaint": (0.5, 0.5)}, "must end after"),
    "span of no sample": (
        {"init_audio": tone(1.0), "inpaint": (0.5, 0.50001)},
        "less than one sample",
    ),
    "span nan": ({"init_audio": tone(1.0), "inpaint": (0, float("nan"))}, r"inpaint \(0, nan\)"),
    "span of one": ({"init_audio": tone(1.0), "inpaint": (0.5,)}, "START:END"),
    "both": ({"init_audio": tone(1.0), "continue_audio": tone(1.0)}, "either"),
    "length given": (
        {"init_audio": tone(1.0), "audio_length_in_s": 2.0},
        "use continue_audio to extend",
    ),
    "no length": ({"continue_audio": tone(1.0)}, "needs audio_length_in_s"),
    "not longer": ({"continue_audio": tone(1.0), "audio_length_in_s": 1.0}, "longer than"),
    "strength of a continuation": (
        {"continue_audio": tone(1.0), "audio_length_in_s": 2.0, "strength": 0.5},
        "init_audio",
    ),
    "too short": ({"init_audio": tone(1.0)[:639]}, "0.04 s at least"),
    "empty": ({"init_audio": torch.zeros(0)}, "shape"),
    "nine channels": ({"init_audio": torch.zeros(9, 16000)}, r"shape \(9, 16000\)"),
    "integers": ({"init_audio": np.zeros(16000, np.int64)}, "int64"),
    "a list": ({"init_audio": [0.0] * 16000}, "init_audio"),
    "rate": ({"init_audio": (100, np.zeros(16000, np.int16))}, "rate of a recording 100"),
    "NaN": ({"init_audio": torch.full((16000,), float("nan"))}, "NaN"),
    "too long": ({"init_audio": torch.zeros(1).expand(3601 * RATE)}, "more than 3600 s"),
    "no file": ({"init_audio": "nothing.wav"}, "no such file"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_invalid_recordings_are_refused_before_any_work(pipe, case, monkeypatch):
    arguments, message = REFUSALS[case]
    monkeypatch.setattr(TextEncoder, "encode", lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(ValueError, match=message):
        pipe("a bell", **QUICK, **arguments)
