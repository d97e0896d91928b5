"""Seconds a step at a few lengths, dense and with LiteFocus; and what to set on this machine."""

import math
import statistics
import time
from dataclasses import replace
from functools import partial

import torch

from audiolitefocus.attention.settings import Attention, LiteFocus
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.check.environment import synchronize
from audiolitefocus.check.model import STEPS, Stages
from audiolitefocus.check.report import Row, Section, attempt
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.runtime import DTYPES, denoising_bytes

LENGTHS = (1, 4, 8)  # in trained lengths
MEASURED = 3  # steps; the first is not counted
PATIENCE = 60.0  # seconds that the measurement of one number may take
FASTER = 1.2  # times, from which on half precision is recommended


def check_speed(stages: Stages) -> Section:
    """Seconds a guided step of one clip, at a few lengths, dense and with LiteFocus."""
    if not stages.works:
        return Section("Speed", [Row("step", "not measured: it needs the text and the UNet")])
    rows: list[Row] = []
    last: dict[str, float] = {}  # seconds a step at the length before, as measured or expected
    for length, before in zip(LENGTHS, (1, *LENGTHS), strict=False):
        seconds = length * stages.pipe.config.trained_seconds
        expected = {name: (length / before) ** 2 * value for name, value in last.items()}
        row = attempt(f"{seconds:g} s", partial(_times, stages, seconds, expected))
        rows.append(row)
        last = expected | {name: value for name, value in row.values.items() if value is not None}
    return Section("Speed", rows)


def _times(stages: Stages, seconds: float, expected: dict[str, float]) -> Row:
    trained = stages.pipe.config.trained_seconds
    sparse = LiteFocus.for_duration(seconds, trained_seconds=trained)
    ways: dict[str, Attention] = (
        {"dense": "dense", "litefocus": sparse} if seconds > trained else {"dense": "dense"}
    )
    times: dict[str, float | None] = {}
    for name, attention in ways.items():
        slow = expected.get(name, 0.0) * MEASURED > PATIENCE
        times[name] = None if slow else step_seconds(stages, seconds, attention)
    texts = [
        f"{name} {'not measured, too slow here' if value is None else f'{value:.4f} s a step'}"
        for name, value in times.items()
    ]
    return Row(f"{seconds:g} s", ", ".join(texts), values=times)


def step_seconds(stages: Stages, seconds: float, attention: Attention) -> float:
    """The median of some steps of one clip, with guidance."""
    pipe, condition = stages.pipe, stages.condition
    moments: list[float] = []
    assert condition is not None

    def note(*_) -> None:
        synchronize(pipe.device)
        moments.append(time.perf_counter())

    pipe(
        prompt_embeds=condition.t5,
        attention_mask=condition.t5_mask,
        generated_prompt_embeds=condition.loa,
        audio_length_in_s=seconds,
        num_inference_steps=MEASURED,
        sampler="dpm++",
        attention=attention,
        seed=0,
        output_type="latent",
        callback=note,
    )
    return statistics.median(b - a for a, b in zip(moments, moments[1:], strict=False))


def recommend(stages: Stages) -> Section:
    """What to set on this machine, by the time of a step in each dtype; and what a clip takes then.

    The pipeline's networks are cast, and not cast back.
    """
    pipe, length = stages.pipe, stages.pipe.config.trained_seconds
    names = ("float32", "bfloat16" if _has_bfloat16(pipe.device) else "float16")
    # what a dtype cannot do is no fault of the model
    rows = [replace(attempt(n, partial(_in_dtype, stages, n)), ok=None) for n in names]
    single, half = (row.values.get("seconds", math.inf) for row in rows)
    best = names[half * FASTER < single]
    flags = [
        f"--device {pipe.device.type}",
        f"--dtype {best}",
        "--sampler dpm++",
        f"--steps {STEPS}",
    ]
    rows.append(Row("settings", " ".join(flags)))
    rows.append(_offloading(pipe, best))
    step = single if best == "float32" else half
    if math.isfinite(step):
        rows.append(Row("time", f"{STEPS * step:.3g} s for the steps of a clip of {length:g} s"))
    return Section("What to set here", rows)


def _has_bfloat16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def _in_dtype(stages: Stages, name: str) -> Row:
    pipe = stages.pipe.to(DTYPES[name])
    seconds = step_seconds(stages, pipe.config.trained_seconds, "dense")
    return Row(name, f"{seconds:.4f} s a step", values={"seconds": seconds})


def _offloading(pipe: AudioLDM2Pipeline, dtype: str) -> Row:
    """If all networks and one clip of the trained length fit into the device's memory."""
    itemsize = DTYPES[dtype].itemsize
    ours = sum(w.numel() for n in (pipe.unet, pipe.vae, pipe.vocoder) for w in n.parameters())
    text = sum(weight.numel() for weight in pipe.text.parameters())
    frames = ClipLength(pipe.config.trained_seconds, pipe.config).latent_frames
    needed = itemsize * ours + 4 * text + denoising_bytes(pipe.config, frames, itemsize)
    about = f"about {needed / 1e9:.1f} GB for all networks and a clip of the trained length"
    if pipe.device.type != "cuda":
        return Row("memory", about)
    total = torch.cuda.mem_get_info(pipe.device)[1]
    advice = "" if needed < 0.8 * total else "; give --offload"
    return Row("memory", f"{about}, of {total / 1e9:.1f} GB{advice}")
