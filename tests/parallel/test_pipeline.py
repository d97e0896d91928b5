"""A pipeline on several devices, which may all be the CPU: calls, threads, files and refusals."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from audiolitefocus import AudioLDM2Pipeline
from audiolitefocus.parallel.settings import AsyncDiff
from audiolitefocus.runtime import choose_devices
from tests.support.command import QUICK, assert_refused, run

CALL = {"audio_length_in_s": 0.64, "num_inference_steps": 5, "sampler": "dpm++", "seed": 3}
SOUNDS = 1e-4  # of samples in [-1, 1]: rounding, after the vocoder


@pytest.fixture(scope="module")
def devices(tiny_bundle) -> AudioLDM2Pipeline:
    return AudioLDM2Pipeline.from_pretrained(tiny_bundle, device=["cpu", "cpu", "cpu"])


@pytest.mark.parametrize(
    "prompts, parallel, ran",
    [
        ("a drum", "auto", "off"),
        ("a drum", "guidance", "guidance"),
        (["a drum", "rain"], "auto", "off"),
        (["a drum", "rain"], "batch", "batch"),
        (["a drum", "rain"], "guidance", "guidance"),
    ],
)
def test_clips_are_those_of_one_device_and_the_output_says_how(
    pipe, devices, prompts, parallel, ran
):
    expected, found = pipe(prompts, **CALL), devices(prompts, **CALL, parallel=parallel)
    assert (expected.parallel, found.parallel) == ("off", ran)
    np.testing.assert_allclose(found.audios, expected.audios, rtol=0, atol=SOUNDS)


def test_off_is_bit_for_bit_as_on_one_device(pipe, devices):
    expected = pipe("a drum", **CALL).audios
    assert np.array_equal(devices("a drum", **CALL, parallel="off").audios, expected)


def test_what_takes_long_is_shared_by_default(devices, monkeypatch):
    monkeypatch.setattr("audiolitefocus.parallel.settings.SECONDS_A_DEVICE", 0.3)
    assert devices("a drum", **CALL).parallel == "guidance"
    assert devices(["a drum", "rain"], **CALL).parallel == "batch"
    assert devices("a drum", **CALL, guidance_scale=1.0).parallel == "off"


def test_parts_change_the_clip_a_little_and_ratings_and_progress_stay(pipe, devices):
    steps = []
    found = devices(
        "a drum",
        **CALL,
        parallel="asyncdiff:3:warmup=1:last=1",
        num_waveforms_per_prompt=2,
        callback=lambda step, timestep, latents: steps.append(step),
    )
    assert found.parallel == AsyncDiff(3, 1, 1) and steps == list(range(5))
    assert len(found.scores) == 2 and found.scores[0] >= found.scores[1]
    whole = pipe("a drum", **CALL, num_waveforms_per_prompt=2)
    assert not np.array_equal(found.audios, whole.audios)


def test_calls_in_threads_do_not_disturb_each_other(devices):
    calls = [
        {"parallel": "guidance"},
        {"parallel": "asyncdiff:2:warmup=1"},
        {"parallel": "asyncdiff:2:warmup=1:stride=2", "attention": "litefocus:0.2"},
        {"parallel": "off", "attention": "litefocus:0.2"},
    ]

    def make(call):
        return devices("a drum", **CALL, **call).audios

    alone = [make(call) for call in calls]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(make, calls))
    assert all(np.array_equal(x, y) for x, y in zip(alone, together, strict=True))


@pytest.mark.slow
def test_compiled_copies_make_the_same_and_parts_are_refused(tiny_bundle, pipe):
    compiled = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu,cpu")
    compiled.compile(backend="eager")
    found = compiled("a drum", **CALL, parallel="guidance").audios
    np.testing.assert_allclose(found, pipe("a drum", **CALL).audios, rtol=0, atol=SOUNDS)
    with pytest.raises(ValueError, match="asyncdiff:2 does not run compiled"):
        compiled("a drum", **CALL, parallel="asyncdiff:2")


def test_to_moves_all_copies_and_may_leave_them_behind(tiny_bundle):
    moved = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device=["cpu", "cpu"])
    assert moved.device == torch.device("cpu") and len(moved.devices) == 2
    moved.to(torch.bfloat16)
    assert moved("a drum", **CALL, parallel="guidance").parallel == "guidance"
    moved.to("cpu")
    assert moved.devices == (torch.device("cpu"),)
    with pytest.raises(ValueError, match="guidance needs 2 devices, and the pipeline has cpu"):
        moved("a drum", **CALL, parallel="guidance")
    assert len(moved.to("cpu,cpu").devices) == 2
    with pytest.raises(ValueError, match="offload works with one device"):
        moved.enable_model_cpu_offload()


def test_lists_of_devices_are_checked(tiny_bundle):
    cpu = torch.device("cpu")
    assert choose_devices("cpu") == choose_devices(cpu) == (cpu,)
    assert choose_devices("cpu, cpu") == choose_devices(["cpu", cpu]) == (cpu, cpu)
    for wrong, reason in (
        ([], "give at least one"),
        ("cpu,gpu", "device 'gpu': must be one of"),
        (["cpu", "cuda:63"], "'cuda:63' is not present"),
        (["cpu", 3], "device '3'"),
    ):
        with pytest.raises(ValueError, match=reason):
            choose_devices(wrong)
    with pytest.raises(ValueError, match="cpu,cpu: offload works with one device"):
        AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu,cpu", offload=True)


def test_refusals_come_before_any_work(devices, monkeypatch):
    monkeypatch.setattr(type(devices), "_encode", None)  # would fail
    for changes, reason in (
        ({"parallel": "asyncdiff:4"}, "asyncdiff:4 needs 4 devices"),
        ({"parallel": "guidance", "guidance_scale": 1.0}, "set guidance_scale above 1"),
        ({"parallel": "asyncdiff:2", "reuse": "deepcache:3"}, "leave out reuse and refresh"),
    ):
        with pytest.raises(ValueError, match=reason):
            devices("a drum", **CALL, **changes)


def test_the_command_takes_devices_and_its_recipe_says_how(tmp_path):
    options = "--device cpu,cpu --parallel guidance --output drum.wav"
    result = run("generate", "a drum", *QUICK, *options.split(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    recipe = json.loads((tmp_path / "drum.json").read_text())
    assert recipe["parallel"] == recipe["parallel_ran"] == "guidance"


def test_the_command_refuses_in_one_line(tmp_path):
    refused = "parallel asyncdiff:3 needs 3 devices, and the pipeline has cpu, cpu"
    options = "--device cpu,cpu --parallel asyncdiff:3 --output drum.wav"
    assert_refused(
        run("generate", "a drum", *QUICK, *options.split(), cwd=tmp_path), refused, tmp_path
    )
