"""Clips as files: made, written with their recipes, and never over what is somebody else's."""

import json
import os
import secrets
from dataclasses import replace
from pathlib import Path

import soundfile
import torch

from audiolitefocus.atomic import atomic_files, check_room
from audiolitefocus.audio.files import check_sound_path
from audiolitefocus.audio.formats import SOUND_SUFFIXES, bits_of, check_rate, encode_sound
from audiolitefocus.audio.length import ClipLength
from audiolitefocus.batch.names import slug
from audiolitefocus.batch.recipes import (
    NO_DRAFTER,
    bits_in,
    describe_drafter,
    describe_pipeline,
    is_recipe,
    made_options,
    read_recipe,
    recipe_inside,
    recipe_path,
    to_comment,
)
from audiolitefocus.batch.requests import ClipRequest, check_sources, prepare
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.config import BundleConfig
from audiolitefocus.diffusion.distilled import options_for
from audiolitefocus.options import GenerationOptions
from audiolitefocus.output import AudioOutput
from audiolitefocus.pipeline import AudioLDM2Pipeline, Callback, OnBlock
from audiolitefocus.validation import check_texts


def plan(
    prompt: str,
    path: Path | None,
    options: GenerationOptions,
    *,
    force: bool,
    bits: int | None = None,
) -> ClipRequest:
    """The clip to make of one prompt; by default with a random seed, and named after the prompt.

    Raises:
        ValueError, OSError: a file that cannot be written, or that exists while `force` is not set.
    """
    check_texts("prompt", prompt, empty=False)
    if options.seed is None:
        options = replace(options, seed=secrets.randbits(32))
    path = path or Path(f"{slug(prompt)}-{options.seed}.wav")
    check_sound_path(path, bits)
    taken = existing(path)
    if taken and not force and not _is_left_over(path):
        raise ValueError(f"{taken[0]} exists; pass --force to replace it, or choose another name")
    clip = prepare(prompt, path, options, bits=bits)
    check_sources([clip])
    return clip


def existing(path: Path) -> list[Path]:
    """Those of a clip's two files, sound and recipe, that are there."""
    return [file for file in (path, recipe_path(path)) if os.path.lexists(file)]


def _is_left_over(path: Path) -> bool:
    """True if only a recipe is there: it is renamed first, and the process was killed then."""
    beside = recipe_path(path)
    sounds = [path.with_suffix(suffix) for suffix in SOUND_SUFFIXES]  # it may be of another one
    alone = existing(path) == [beside] and not any(map(os.path.lexists, sounds))
    return alone and is_recipe(read_recipe(beside))


def is_missing(
    config: BundleConfig, clip: ClipRequest, *, force: bool, drafter: BundleConfig | None = None
) -> bool:
    """True if the clip is to be made by these models; with `force`, those that are finished too.

    Raises:
        ValueError: a file that is in its way (`check_replaceable`).
    """
    if not existing(clip.path):
        return True
    if is_saved(config, clip, drafter) and not force:
        return False
    check_replaceable(config, clip, force=force, drafter=drafter)
    return True


def check_replaceable(
    config: BundleConfig, clip: ClipRequest, *, force: bool, drafter: BundleConfig | None = None
) -> None:
    """Raise ValueError unless the clip may be written where it is to be.

    Free names may, and what a killed process has left. Clips that this program made with other
    settings may with `force`, and other files never: nor a sound with a recipe in its tags alone,
    for those stay where the sound is edited, and only the JSON beside it tells.
    """
    taken, found = existing(clip.path), read_recipe(recipe_path(clip.path))
    if not taken or _is_left_over(clip.path):
        return
    if clip.path in taken and is_recipe(found):
        if found["sha256"] != sha256(clip.path):
            # renamed first, and killed before the sound was
            if _is_recipe_of(config, clip, found, drafter):
                return
        elif force:
            return
        else:
            raise ValueError(
                f"{clip.path} exists, made with other settings: pass --force to replace it, or "
                f"choose another name or folder"
            )
    if taken == [clip.path] and recipe_inside(clip.path):
        raise ValueError(
            f"{clip.path} exists, and the JSON beside it is gone, so that nobody knows if it was "
            f"changed since: move it, or choose another name or folder"
        )
    raise ValueError(
        f"{taken[0]} exists, and was not made by this program or has been changed since: move it, "
        f"or choose another name or folder"
    )


def make_clips(
    pipe: AudioLDM2Pipeline,
    clips: list[ClipRequest],
    on_step: Callback | None = None,
    on_block: OnBlock | None = None,
    drafter: AudioLDM2Pipeline | None = None,
) -> list[AudioOutput]:
    """Make clips, whose options may differ in the seed alone, as one batch.

    A clip without other candidates is decoded when it is saved. `on_step` and `on_block` are the
    pipeline's callbacks, `drafter` its second model.

    Raises:
        ValueError: a sound's format does not have the model's sampling rate.
        OSError: no room for the sounds. Both before any work.
    """
    # 1. Room for the sounds, in formats that can hold them
    for clip in clips:
        check_rate(clip.path, pipe.sampling_rate)
    options = clips[0].options
    seconds = options.audio_length_in_s or clips[0].recording_seconds
    samples = ClipLength(seconds or pipe.config.trained_seconds, pipe.config).samples
    widths = [(bits_of(clip.path, clip.bits) or 16) // 8 for clip in clips]
    check_room(clips[0].path.parent, samples * sum(widths))
    # 2. All clips together
    prompts, seeds = [clip.prompt for clip in clips], [clip.seed for clip in clips]
    return make_together(pipe, prompts, seeds, options, on_step, on_block, drafter)


def make_together(
    pipe: AudioLDM2Pipeline,
    prompts: list[str],
    seeds: list[int],
    options: GenerationOptions,
    on_step: Callback | None = None,
    on_block: OnBlock | None = None,
    drafter: AudioLDM2Pipeline | None = None,
) -> list[AudioOutput]:
    """Make a clip of each prompt, with its candidates, from its own seed, all as one batch.

    The seed of the options does not count. A clip without other candidates comes as blocks that are
    decoded when they are asked for. The last three arguments are the pipeline's.
    """
    copies = options.num_waveforms_per_prompt
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    output = pipe(
        prompts,
        options=replace(options, seed=None),  # each clip has its own stream
        generator=[stream for stream in streams for _ in range(copies)],
        callback=on_step,
        on_block=on_block,
        drafter=drafter,
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


def save_clip(
    pipe: AudioLDM2Pipeline,
    clip: ClipRequest,
    output: AudioOutput,
    drafter: AudioLDM2Pipeline | None = None,
) -> None:
    """Write a clip's sound and its recipe; they appear when both are whole, the recipe first.

    The recipe is written into the sound's tags too, where it fits.
    """
    path = check_sound_path(clip.path, clip.bits)
    made = recipe(pipe, clip, output, drafter)
    with atomic_files(recipe_path(path), path) as (text, sound):
        encode_sound(
            sound,
            path,
            output.audios[0],
            output.sampling_rate,
            bits=clip.bits,
            comment=to_comment(made),
        )
        whole = {**made, "samples": soundfile.info(sound).frames, "sha256": sha256(sound)}
        description = json.dumps(whole, indent=2, ensure_ascii=False)
        text.write_text(description + "\n", encoding="utf-8")


def is_saved(config: BundleConfig, clip: ClipRequest, drafter: BundleConfig | None = None) -> bool:
    """True if the sound is there, and its recipe has the same prompt, options, bits and models.

    The recipe in its tags counts where there is no JSON beside it. Recipes of older versions, with
    short names of options and without new ones, are understood.
    """
    beside = recipe_path(clip.path)
    if not os.path.lexists(beside):
        return _is_recipe_of(config, clip, recipe_inside(clip.path), drafter)
    found = read_recipe(beside)
    try:
        same = _is_recipe_of(config, clip, found, drafter)
        return same and found.get("sha256") == sha256(clip.path)
    except OSError:
        return False


def _is_recipe_of(
    config: BundleConfig, clip: ClipRequest, found: dict, drafter: BundleConfig | None
) -> bool:
    same_bits = (bits_in(found) or bits_of(clip.path)) == bits_of(clip.path, clip.bits)
    return (
        same_bits
        and made_options(found) == _options_used(config, clip)
        and _origin(config, clip, drafter).items() <= {**NO_DRAFTER, **found}.items()
    )


def recipe(
    pipe: AudioLDM2Pipeline,
    clip: ClipRequest,
    output: AudioOutput,
    drafter: AudioLDM2Pipeline | None = None,
) -> dict:
    """How to make a clip again: all of its JSON but what its sound file is."""
    return {
        **_origin(pipe.config, clip, None if drafter is None else drafter.config),
        **_options_used(pipe.config, clip).to_json(),
        "bits": bits_of(clip.path, clip.bits),
        **describe_pipeline(pipe, output),
    }


def _origin(config: BundleConfig, clip: ClipRequest, drafter: BundleConfig | None) -> dict:
    """What decides how a clip sounds, besides its options."""
    return {
        "prompt": clip.prompt,
        "recording_sha256": clip.recording_sha256,
        "model": config.name,
        "model_files": config.files,
        **(NO_DRAFTER if drafter is None else describe_drafter(drafter)),
    }


def _options_used(config: BundleConfig, clip: ClipRequest) -> GenerationOptions:
    """The clip's options, with what is the default for this model: length, and few steps."""
    options = options_for(config, clip.options)
    if options.audio_length_in_s or options.init_audio:
        return options
    return replace(options, audio_length_in_s=config.trained_seconds)
