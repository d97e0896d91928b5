"""Clips as files: what to make, under which name, and the JSON beside each that says how to make it
again.
"""

import json
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import soundfile
import torch

from audiolitefocus import __version__
from audiolitefocus.atomic import atomic_files, check_room
from audiolitefocus.audio.files import (
    SAMPLE_BYTES,
    SOUND_SUFFIXES,
    ClipLength,
    check_sound_path,
    encode_sound,
    sound_length,
)
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.checkpoints.towers import transformers_version
from audiolitefocus.checks import check_texts
from audiolitefocus.codec.decode import OnBlock, ignore
from audiolitefocus.diffusion.recording import changed_span
from audiolitefocus.options import Settings, parse_attention
from audiolitefocus.pipeline import AudioLDM2Pipeline, AudioOutput

DEVICES = re.compile("con|prn|aux|nul|(com|lpt)[1-9]")  # never files on Windows


@dataclass(frozen=True)
class Clip:
    """One clip to make, and where: a sound file, and beside it a JSON file."""

    prompt: str
    path: Path
    settings: Settings
    recording_sha256: str | None = None  # of `settings.recording` when the clip was planned


def slug(text: str, limit: int = 48) -> str:
    """A file name without surprises: lower-case ASCII letters, digits and hyphens."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")
    words = words[:limit].rstrip("-") or "clip"
    return f"{words}-clip" if DEVICES.fullmatch(words) else words


def prepare(
    prompt: str, path: Path, settings: Settings, digest: Callable[[Path], str] = sha256
) -> Clip:
    """A clip to make. Raises ValueError, before a model is loaded, for a recording that its header
    tells to be no sound file, or not as long as the settings have it.
    """
    if settings.recording is None:
        return Clip(prompt, path, settings)
    recording = Path(settings.recording)
    samples, rate = sound_length(recording)
    try:
        changed_span(samples, rate, settings.span, settings.duration)
    except ValueError as error:
        raise ValueError(f"{recording}: {error}") from None
    return Clip(prompt, path, settings, digest(recording))


def plan(prompt: str, path: Path | None, settings: Settings, *, force: bool) -> Clip:
    """The clip to make of a prompt given on the command line.

    Raises:
        ValueError, OSError: a file that cannot be written, or that exists while `force` is not set.
    """
    check_texts("prompt", prompt, empty=False)
    path = path or Path(f"{slug(prompt)}-{settings.seed}.wav")
    check_sound_path(path)
    taken = [other for other in (path, path.with_suffix(".json")) if _precious(other)]
    if taken and not force:
        raise ValueError(f"{taken[0]} exists; pass --force to replace it")
    return prepare(prompt, path, settings)


def _precious(path: Path) -> bool:
    """Whether a file is there; but a clip's JSON without a sound is what a process left that was
    killed between the two.
    """
    if path.suffix != ".json" or any(path.with_suffix(s).exists() for s in SOUND_SUFFIXES):
        return os.path.lexists(path)
    return os.path.lexists(path) and not {"prompt", "sha256"} <= read_recipe(path).keys()


def read_recipe(path: Path) -> dict:
    """A clip's JSON; empty where there is none, or another file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def seconds_asked(pipe: AudioLDM2Pipeline, settings: Settings) -> float:
    """How long a clip becomes."""
    if settings.duration is not None:
        return settings.duration
    if settings.recording is None:
        return pipe.config.trained_seconds
    samples, rate = sound_length(Path(settings.recording))
    return samples / rate


def make_clips(
    pipe: AudioLDM2Pipeline, clips: list[Clip], on_step, on_window: OnBlock = ignore
) -> list[AudioOutput]:
    """Make clips, whose settings may differ in the seed alone, as one batch. Those without other
    candidates are decoded when they are saved. `on_step` and `on_window`: the pipeline's.

    Raises OSError, before any work, if there is no room for the sounds.
    """
    settings = clips[0].settings
    samples = ClipLength(seconds_asked(pipe, settings), pipe.config).samples
    check_room(clips[0].path.parent, len(clips) * samples * SAMPLE_BYTES)
    output = pipe(
        [clip.prompt for clip in clips],
        audio_length_in_s=settings.duration,
        init_audio=settings.init_audio,
        strength=settings.strength,
        inpaint=settings.span,
        continue_audio=settings.continue_audio,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        negative_prompt=settings.negative_prompt,
        num_waveforms_per_prompt=settings.candidates,
        eta=settings.eta,
        generator=[
            stream
            for clip in clips
            for stream in [torch.Generator().manual_seed(clip.settings.seed)] * settings.candidates
        ],
        sampler=settings.sampler,
        attention=parse_attention(settings.attention),
        unconditional=settings.unconditional,
        callback=on_step,
        on_window=on_window,
        output_type="blocks" if settings.candidates == 1 else "np",
    )
    parts = [
        slice(i * settings.candidates, (i + 1) * settings.candidates) for i in range(len(clips))
    ]
    return [
        replace(
            output,
            audios=output.audios[part],
            scores=None if output.scores is None else output.scores[part],
        )
        for part in parts
    ]


def save_clip(pipe: AudioLDM2Pipeline, clip: Clip, output: AudioOutput) -> None:
    """Write a clip's sound file and the JSON that describes it. Both appear when both are whole,
    the JSON first: no sound is ever there without one.
    """
    path = check_sound_path(clip.path)
    with atomic_files(path.with_suffix(".json"), path) as (text, sound):
        encode_sound(sound, path, output.audios[0], output.sampling_rate)
        description = json.dumps(recipe(pipe, clip, output, sound), indent=2, ensure_ascii=False)
        text.write_text(description + "\n", encoding="utf-8")


def is_saved(pipe: AudioLDM2Pipeline, clip: Clip) -> bool:
    """Whether the sound file is there, and a JSON that describes this very file, made from the same
    prompt, settings and model.
    """
    wanted = json.loads(json.dumps(ingredients(pipe, clip)))
    found = read_recipe(clip.path.with_suffix(".json"))
    try:
        return wanted.items() <= found.items() and found.get("sha256") == sha256(clip.path)
    except OSError:
        return False


def ingredients(pipe: AudioLDM2Pipeline, clip: Clip) -> dict:
    """What decides how a clip sounds, up to rounding."""
    return {
        "prompt": clip.prompt,
        **asdict(clip.settings),
        "duration": clip.settings.duration
        or (None if clip.settings.init_audio else pipe.config.trained_seconds),
        "recording_sha256": clip.recording_sha256,
        "model": pipe.config.name,
        "model_files": pipe.config.files,
    }


def recipe(pipe: AudioLDM2Pipeline, clip: Clip, output: AudioOutput, sound: Path) -> dict:
    """Everything needed to make the clip again, and to know its sound file."""
    ran = pipe.unet.attention
    return {
        **ingredients(pipe, clip),
        "attention_ran": {"name": type(ran).__name__, **asdict(ran)} if ran else {"name": "dense"},
        "scores": None if output.scores is None else output.scores.tolist(),
        "samples": soundfile.info(sound).frames,
        "sampling_rate": output.sampling_rate,
        "sha256": sha256(sound),
        "dtype": str(pipe.unet.conv_in.weight.dtype).removeprefix("torch."),
        "device": pipe.device.type,
        "versions": {
            "audiolitefocus": __version__,
            "torch": torch.__version__,
            "transformers": transformers_version,
        },
    }
