"""Clips to make, and what can be checked of them without a model."""

from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

from audiolitefocus.audio.files import sound_length
from audiolitefocus.audio.formats import bits_of
from audiolitefocus.batch.recipes import recipe_path
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.diffusion.recording import changed_span
from audiolitefocus.options import SHORT, GenerationOptions, OptionError
from audiolitefocus.validation import shown


@dataclass(frozen=True)
class ClipRequest:
    """One clip to make: a sound file, and beside it a JSON file.

    Attributes:
        options: with a seed, and with a file as recording if there is one.
        recording_sha256, recording_seconds: of that file, when the clip was planned.
        bits: a sample of the sound file; None is the default of its format.
    """

    prompt: str
    path: Path
    options: GenerationOptions
    recording_sha256: str | None = None
    recording_seconds: float | None = None
    bits: int | None = None

    @property
    def seed(self) -> int:
        assert self.options.seed is not None, "a clip without a seed could not be made again"
        return self.options.seed


def prepare(
    prompt: str,
    path: Path,
    options: GenerationOptions,
    digest: Callable[[Path], str] = sha256,
    *,
    bits: int | None = None,
) -> ClipRequest:
    """A clip to make, checked as far as that is possible without a model.

    Args:
        digest: of a recording's file.
        bits: a sample of the sound file.

    Raises:
        ValueError: a recording that is no sound file by its header, or that the options do not fit;
            several negative prompts; bits that the sound's format does not have.
    """
    bits_of(path, bits)
    negative = options.negative_prompt
    if not isinstance(negative, (str, type(None))):
        raise ValueError(f"negative_prompt {shown(list(negative))}: must be one text for a clip")
    recording = options.recording
    if recording is None:
        return ClipRequest(prompt, path, options, bits=bits)
    if not isinstance(recording, str):
        raise ValueError("give the recording of a clip as a file: samples cannot be read again")
    samples, rate = sound_length(recording)
    try:
        changed_span(samples, rate, options.inpaint, options.audio_length_in_s)
    except OptionError as error:
        raise ValueError(f"{recording}: {error.renamed(SHORT)}") from None
    except ValueError as error:
        raise ValueError(f"{recording}: {error}") from None
    return ClipRequest(prompt, path, options, digest(Path(recording)), samples / rate, bits)


def check_sources(clips: list[ClipRequest]) -> None:
    """Raise ValueError if writing one of these clips would destroy a recording of another."""
    recordings = [clip.options.recording for clip in clips if clip.recording_sha256]
    sources = {str(Path(recording).resolve()) for recording in recordings}  # type: ignore[arg-type]
    for clip in clips:
        check_target(clip, sources)


def check_target(clip: ClipRequest, sources: Container[str]) -> None:
    """Raise ValueError if writing this clip would destroy one of the recordings, resolved paths."""
    for target in (clip.path, recipe_path(clip.path)):
        if str(target.resolve()) in sources:
            raise ValueError(
                f"{target} is a recording that clips are made from, and would be replaced: "
                f"choose another name or folder"
            )
