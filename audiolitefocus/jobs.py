"""Clips as files: what to make, under which name, and the JSON beside each that says how to make it
again.
"""

import json
import re
import unicodedata
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from audiolitefocus import __version__
from audiolitefocus.atomic import atomic_file
from audiolitefocus.attention import LiteFocus
from audiolitefocus.audio import check_seconds, check_sound_path, write_sound
from audiolitefocus.checkpoint import sha256
from audiolitefocus.checks import check_number, check_settings, check_texts
from audiolitefocus.pipeline import AudioLDM2Pipeline, AudioOutput
from audiolitefocus.towers import transformers_version

DEVICES = re.compile("con|prn|aux|nul|(com|lpt)[1-9]")  # never files on Windows


@dataclass(frozen=True)
class Settings:
    """How clips are made: what a person chooses on the command line. Raises ValueError for
    nonsense.
    """

    duration: float | None = None  # seconds; None is the model's trained length
    steps: int = 200
    sampler: str = "ddim"
    eta: float = 1.0
    guidance_scale: float = 3.5
    negative_prompt: str | None = None
    unconditional: str = "trained"
    candidates: int = 1
    seed: int = 0
    attention: str = "auto"

    def __post_init__(self):
        if self.duration is not None:
            check_seconds(self.duration)
        check_number("seed", self.seed, 0, 2**63 - 1)
        if not isinstance(self.negative_prompt, (str, type(None))):
            raise ValueError(f"negative_prompt {self.negative_prompt!r}: must be a text")
        parse_attention(self.attention)
        check_settings(
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            eta=self.eta,
            candidates=self.candidates,
            sampler=self.sampler,
            unconditional=self.unconditional,
        )


@dataclass(frozen=True)
class Clip:
    """One clip to make, and where: a sound file, and beside it a JSON file."""

    prompt: str
    path: Path
    settings: Settings


def parse_attention(text: str) -> str | LiteFocus:
    """ "auto", "dense", "tome", "litefocus" (ratio 0.1) or "litefocus:RATIO"."""
    name, _, ratio = str(text).partition(":")
    if name == "litefocus":
        try:
            return LiteFocus(sparse_ratio=float(ratio)) if ratio else LiteFocus()
        except ValueError as error:
            raise ValueError(f"attention {text!r}: {error}") from None
    if text not in ("auto", "dense", "tome"):
        raise ValueError(
            f"attention {text!r}: must be auto, dense, tome, litefocus or litefocus:RATIO"
        )
    return text


def slug(text: str, limit: int = 48) -> str:
    """A file name without surprises: lower-case ASCII letters, digits and hyphens."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")
    words = words[:limit].rstrip("-") or "clip"
    return f"{words}-clip" if DEVICES.fullmatch(words) else words


def plan(prompt: str, path: Path | None, settings: Settings, *, force: bool) -> Clip:
    """The clip to make of a prompt given on the command line.

    Raises:
        ValueError, OSError: a file that cannot be written, or that exists while `force` is not set.
    """
    check_texts("prompt", prompt, empty=False)
    path = path or Path(f"{slug(prompt)}-{settings.seed}.wav")
    check_sound_path(path)
    if (path.exists() or path.is_symlink()) and not force:
        raise ValueError(f"{path} exists; pass --force to replace it")
    return Clip(prompt, path, settings)


def make_clips(pipe: AudioLDM2Pipeline, clips: list[Clip], on_step) -> list[AudioOutput]:
    """Make clips, whose settings may differ in the seed alone, as one batch. `on_step` is called
    after every step.
    """
    settings = clips[0].settings
    output = pipe(
        [clip.prompt for clip in clips],
        audio_length_in_s=settings.duration,
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
    """Write a clip's sound file and then the JSON that describes it."""
    write_sound(clip.path, output.audios[0], output.sampling_rate)
    write_json(clip.path.with_suffix(".json"), recipe(pipe, clip, output))


def is_saved(pipe: AudioLDM2Pipeline, clip: Clip) -> bool:
    """Whether the sound file is there, and a JSON that describes this very file, made from the same
    prompt, settings and model.
    """
    wanted = json.loads(json.dumps(ingredients(pipe, clip)))
    try:
        found = json.loads(clip.path.with_suffix(".json").read_text(encoding="utf-8"))
        same = isinstance(found, dict) and wanted.items() <= found.items()
        return same and found.get("sha256") == sha256(clip.path)
    except (OSError, ValueError, RecursionError):
        return False


def ingredients(pipe: AudioLDM2Pipeline, clip: Clip) -> dict:
    """What decides how a clip sounds, up to rounding."""
    return {
        "prompt": clip.prompt,
        **asdict(clip.settings),
        "duration": clip.settings.duration or pipe.config.trained_seconds,
        "model": pipe.config.name,
        "model_files": pipe.config.files,
    }


def recipe(pipe: AudioLDM2Pipeline, clip: Clip, output: AudioOutput) -> dict:
    """Everything needed to make the clip again, and to know its sound file."""
    ran = pipe.unet.attention
    return {
        **ingredients(pipe, clip),
        "attention_ran": {"name": type(ran).__name__, **asdict(ran)} if ran else {"name": "dense"},
        "scores": None if output.scores is None else output.scores.tolist(),
        "samples": len(output.audios[0]),
        "sampling_rate": output.sampling_rate,
        "sha256": sha256(clip.path),
        "dtype": str(pipe.unet.conv_in.weight.dtype).removeprefix("torch."),
        "device": pipe.device.type,
        "versions": {
            "audiolitefocus": __version__,
            "torch": torch.__version__,
            "transformers": transformers_version,
        },
    }


def write_json(path: Path, data: dict) -> None:
    """The file appears whole or not at all."""
    with atomic_file(path) as beside:
        beside.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
