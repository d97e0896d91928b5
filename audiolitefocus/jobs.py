"""Clips as files: what to make, under which name, and the JSON beside each that says how to make it
again.
"""

import json
import os
import re
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from audiolitefocus import __version__
from audiolitefocus.attention import LiteFocus
from audiolitefocus.audio import check_seconds, check_sound_path, check_writable, write_sound
from audiolitefocus.checks import check_number, check_settings, check_texts
from audiolitefocus.pipeline import AudioLDM2Pipeline, AudioOutput
from audiolitefocus.towers import transformers_version


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
    """One clip to make."""

    prompt: str
    path: Path


def parse_attention(text: str) -> str | LiteFocus:
    """ "auto", "dense", "tome", "litefocus" (ratio 0.1) or "litefocus:RATIO"."""
    name, _, ratio = text.partition(":")
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
    return words[:limit].rstrip("-") or "clip"


def plan(
    prompt: str | None, prompts: Path | None, output: Path | None, seed: int, *, force: bool
) -> list[Clip]:
    """The clips to make, of a prompt or of a file of prompts, and where to write them.

    Raises:
        ValueError, OSError: nothing to make, or a file that cannot be written or that exists while
            `force` is not set.
    """
    if prompt is not None and prompts is None:
        path = output if output is not None else Path(f"{slug(prompt)}-{seed}.wav")
        clips = [Clip(prompt, path)]
        check_texts("prompt", prompt, empty=False)
    elif prompts is not None and prompt is None:
        clips = read_prompts(prompts, Path(".") if output is None else output, seed)
    else:
        raise ValueError("give either a prompt or --prompts FILE")
    for clip in clips:
        check_sound_path(clip.path)
        if clip.path.exists() and not force:
            raise ValueError(f"{clip.path} exists; pass --force to replace it")
    return clips


def read_prompts(prompts: Path, folder: Path, seed: int) -> list[Clip]:
    """A file of prompts, one TEXT or TEXT|NAME a line, into a folder, which is made if need be.

    Blank lines and lines that start with # are passed over; names become safe file names.
    """
    clips: dict[Path, Clip] = {}
    try:
        lines = prompts.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{prompts} is not a text file in UTF-8") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{prompts}, line {number}"
        text, bar, name = line.rpartition("|") if "|" in line else (line, "", "")
        if not text.strip() or (bar and not name.strip()):
            raise ValueError(f"{where}: expected TEXT or TEXT|NAME, got {line[:80]!r}")
        path = folder / f"{slug(name) if bar else f'{slug(text)}-{seed}'}.wav"
        if path in clips:
            raise ValueError(f"{where}: {path.name} is taken already; name it: TEXT|NAME")
        clips[path] = Clip(text.strip(), path)
    if not clips:
        raise ValueError(f"{prompts} holds no prompts")
    folder.mkdir(parents=True, exist_ok=True)
    return list(clips.values())


def make_clip(pipe: AudioLDM2Pipeline, clip: Clip, settings: Settings, on_step) -> AudioOutput:
    """Make one clip, write its sound file and then its JSON. `on_step` is called after every
    step.
    """
    output = pipe(
        clip.prompt,
        audio_length_in_s=settings.duration,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        negative_prompt=settings.negative_prompt,
        num_waveforms_per_prompt=settings.candidates,
        eta=settings.eta,
        generator=torch.Generator().manual_seed(settings.seed),
        sampler=settings.sampler,
        attention=parse_attention(settings.attention),
        unconditional=settings.unconditional,
        callback=on_step,
    )
    write_sound(clip.path, output.audios[0], output.sampling_rate)
    write_json(clip.path.with_suffix(".json"), recipe(pipe, clip, settings, output))
    return output


def recipe(pipe: AudioLDM2Pipeline, clip: Clip, settings: Settings, output: AudioOutput) -> dict:
    """Everything needed to make the clip again."""
    ran = pipe.unet.attention
    return {
        "prompt": clip.prompt,
        **asdict(settings),
        "duration": settings.duration or pipe.config.trained_seconds,
        "attention_ran": {"name": type(ran).__name__, **asdict(ran)} if ran else {"name": "dense"},
        "scores": None if output.scores is None else output.scores.tolist(),
        "samples": len(output.audios[0]),
        "sampling_rate": output.sampling_rate,
        "model": pipe.config.name,
        "model_files": pipe.config.files,
        "dtype": str(pipe.unet.conv_in.weight.dtype).removeprefix("torch."),
        "device": pipe.device.type,
        "versions": {
            "audiolitefocus": __version__,
            "torch": torch.__version__,
            "transformers": transformers_version,
        },
    }


def write_json(path: Path, data: dict) -> None:
    """Write beside, then rename."""
    check_writable(path.parent)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
