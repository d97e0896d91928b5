"""Clips as files: what to make, and the JSON beside each sound that says how to make it again."""

import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile
import torch

from audiolitefocus import __version__
from audiolitefocus.atomic import atomic_files, check_room
from audiolitefocus.attention.settings import attention_text
from audiolitefocus.audio.files import (
    SAMPLE_BYTES,
    SOUND_SUFFIXES,
    check_sound_path,
    encode_sound,
    sound_length,
)
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.batch.names import slug
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.checkpoints.towers import transformers_version
from audiolitefocus.diffusion.recording import changed_span
from audiolitefocus.options import NAMES, SHORT, GenerationOptions, OptionError
from audiolitefocus.output import AudioOutput
from audiolitefocus.pipeline import AudioLDM2Pipeline, Callback, OnBlock
from audiolitefocus.validation import check_texts, shown


@dataclass(frozen=True)
class ClipRequest:
    """One clip to make: a sound file, and beside it a JSON file.

    Attributes:
        options: with a seed, and with a file as recording if there is one.
        recording_sha256, recording_seconds: of that file, when the clip was planned.
    """

    prompt: str
    path: Path
    options: GenerationOptions
    recording_sha256: str | None = None
    recording_seconds: float | None = None

    @property
    def seed(self) -> int:
        assert self.options.seed is not None, "a clip without a seed could not be made again"
        return self.options.seed


def prepare(
    prompt: str, path: Path, options: GenerationOptions, digest: Callable[[Path], str] = sha256
) -> ClipRequest:
    """A clip to make, checked as far as that is possible without a model.

    Args:
        digest: of a recording's file.

    Raises:
        ValueError: a recording that is no sound file by its header, or that the options do not fit;
            several negative prompts.
    """
    negative = options.negative_prompt
    if not isinstance(negative, (str, type(None))):
        raise ValueError(f"negative_prompt {shown(list(negative))}: must be one text for a clip")
    recording = options.recording
    if recording is None:
        return ClipRequest(prompt, path, options)
    if not isinstance(recording, str):
        raise ValueError("give the recording of a clip as a file: samples cannot be read again")
    samples, rate = sound_length(recording)
    try:
        changed_span(samples, rate, options.inpaint, options.audio_length_in_s)
    except OptionError as error:
        raise ValueError(f"{recording}: {error.renamed(SHORT)}") from None
    except ValueError as error:
        raise ValueError(f"{recording}: {error}") from None
    return ClipRequest(prompt, path, options, digest(Path(recording)), samples / rate)


def plan(prompt: str, path: Path | None, options: GenerationOptions, *, force: bool) -> ClipRequest:
    """The clip to make of one prompt; by default with a random seed, and named after the prompt.

    Raises:
        ValueError, OSError: a file that cannot be written, or that exists while `force` is not set.
    """
    check_texts("prompt", prompt, empty=False)
    if options.seed is None:
        options = replace(options, seed=secrets.randbits(32))
    path = path or Path(f"{slug(prompt)}-{options.seed}.wav")
    check_sound_path(path)
    taken = existing(path)
    if taken and not force and not _is_left_over(path):
        raise ValueError(f"{taken[0]} exists; pass --force to replace it, or choose another name")
    clip = prepare(prompt, path, options)
    check_sources([clip])
    return clip


def existing(path: Path) -> list[Path]:
    """Those of a clip's two files, sound and recipe, that are there."""
    return [file for file in (path, recipe_path(path)) if os.path.lexists(file)]


def recipe_path(path: Path) -> Path:
    """The JSON file beside a sound file."""
    return path.with_suffix(".json")


def _is_left_over(path: Path) -> bool:
    """True if only a recipe is there: it is renamed first, and the process was killed then."""
    recipe = recipe_path(path)
    sounds = [path.with_suffix(suffix) for suffix in SOUND_SUFFIXES]  # it may be of another one
    alone = existing(path) == [recipe] and not any(map(os.path.lexists, sounds))
    return alone and _is_ours(read_recipe(recipe))


def _is_ours(found: dict) -> bool:
    return {"prompt", "sha256", "versions"} <= found.keys()


def check_sources(clips: list[ClipRequest]) -> None:
    """Raise ValueError if writing one of these clips would destroy a recording of another."""
    sources = {Path(clip.options.recording).resolve() for clip in clips if clip.recording_sha256}  # type: ignore[arg-type]
    for clip in clips:
        for target in (clip.path, recipe_path(clip.path)):
            if target.resolve() in sources:
                raise ValueError(
                    f"{target} is a recording that clips are made from, and would be replaced: "
                    f"choose another name or folder"
                )


def check_replaceable(pipe: AudioLDM2Pipeline, clip: ClipRequest, *, force: bool) -> None:
    """Raise ValueError unless the clip may be written where it is to be.

    Free names may, and what a killed process has left. Clips that this program made with other
    settings may with `force`, and other files never.
    """
    taken, found = existing(clip.path), read_recipe(recipe_path(clip.path))
    if not taken or _is_left_over(clip.path):
        return
    if clip.path in taken and _is_ours(found):
        if found["sha256"] != sha256(clip.path):
            if _is_recipe_of(pipe, clip, found):  # renamed first, and killed before the sound was
                return
        elif force:
            return
        else:
            raise ValueError(
                f"{clip.path} exists, made with other settings: pass --force to replace it, or "
                f"choose another name or folder"
            )
    raise ValueError(
        f"{taken[0]} exists, and was not made by this program or has been changed since: move it, "
        f"or choose another name or folder"
    )


def read_recipe(path: Path) -> dict:
    """A clip's recipe, the JSON beside it; empty if the file is absent or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def make_clips(
    pipe: AudioLDM2Pipeline,
    clips: list[ClipRequest],
    on_step: Callback | None = None,
    on_block: OnBlock | None = None,
) -> list[AudioOutput]:
    """Make clips, whose options may differ in the seed alone, as one batch.

    A clip without other candidates is decoded when it is saved. `on_step` and `on_block` are the
    pipeline's callbacks.

    Raises:
        OSError: no room for the sounds, before any work.
    """
    # 1. Room for the sounds
    options = clips[0].options
    seconds = options.audio_length_in_s or clips[0].recording_seconds
    samples = ClipLength(seconds or pipe.config.trained_seconds, pipe.config).samples
    check_room(clips[0].path.parent, len(clips) * samples * SAMPLE_BYTES)
    # 2. All clips together
    prompts, seeds = [clip.prompt for clip in clips], [clip.seed for clip in clips]
    return make_together(pipe, prompts, seeds, options, on_step, on_block)


def make_together(
    pipe: AudioLDM2Pipeline,
    prompts: list[str],
    seeds: list[int],
    options: GenerationOptions,
    on_step: Callback | None = None,
    on_block: OnBlock | None = None,
) -> list[AudioOutput]:
    """Make a clip of each prompt, with its candidates, from its own seed, all as one batch.

    The seed of the options does not count. A clip without other candidates comes as blocks that are
    decoded when they are asked for. `on_step` and `on_block` are the pipeline's callbacks.
    """
    copies = options.num_waveforms_per_prompt
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    output = pipe(
        prompts,
        options=replace(options, seed=None),  # each clip has its own stream
        generator=[stream for stream in streams for _ in range(copies)],
        callback=on_step,
        on_block=on_block,
        output_type="blocks" if copies == 1 else "np",  # candidates are ranked by whole waveforms
    )
    # one output for each clip
    parts = [slice(n * copies, (n + 1) * copies) for n in range(len(prompts))]
    return [
        replace(
            output,
            audios=output.audios[part],
            scores=None if output.scores is None else output.scores[part],
        )
        for part in parts
    ]


def save_clip(pipe: AudioLDM2Pipeline, clip: ClipRequest, output: AudioOutput) -> None:
    """Write a clip's sound and its recipe; they appear when both are whole, the recipe first."""
    path = check_sound_path(clip.path)
    with atomic_files(recipe_path(path), path) as (text, sound):
        encode_sound(sound, path, output.audios[0], output.sampling_rate)
        description = json.dumps(recipe(pipe, clip, output, sound), indent=2, ensure_ascii=False)
        text.write_text(description + "\n", encoding="utf-8")


def is_saved(pipe: AudioLDM2Pipeline, clip: ClipRequest) -> bool:
    """True if the sound is there, and its recipe has the same prompt, options and model.

    Recipes of older versions, with short names of options and without new ones, are understood.
    """
    found = read_recipe(recipe_path(clip.path))
    try:
        return _is_recipe_of(pipe, clip, found) and found.get("sha256") == sha256(clip.path)
    except OSError:
        return False


def _is_recipe_of(pipe: AudioLDM2Pipeline, clip: ClipRequest, found: dict) -> bool:
    try:
        made = GenerationOptions.make(None, {n: v for n, v in found.items() if n in NAMES})
    except (ValueError, TypeError):
        return False
    return made == _options_used(pipe, clip) and _origin(pipe, clip).items() <= found.items()


def recipe(pipe: AudioLDM2Pipeline, clip: ClipRequest, output: AudioOutput, sound: Path) -> dict:
    """The JSON of a clip: how to make it again, and what its sound file is."""
    return {
        **_origin(pipe, clip),
        **_options_used(pipe, clip).to_json(),
        "attention_ran": attention_text(output.attention),
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


def _origin(pipe: AudioLDM2Pipeline, clip: ClipRequest) -> dict:
    """What decides how a clip sounds, besides its options."""
    return {
        "prompt": clip.prompt,
        "recording_sha256": clip.recording_sha256,
        "model": pipe.config.name,
        "model_files": pipe.config.files,
    }


def _options_used(pipe: AudioLDM2Pipeline, clip: ClipRequest) -> GenerationOptions:
    """The clip's options, with the length that is the default for this model."""
    if clip.options.audio_length_in_s or clip.options.init_audio:
        return clip.options
    return replace(clip.options, audio_length_in_s=pipe.config.trained_seconds)
