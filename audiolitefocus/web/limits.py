"""What strangers may ask for: the limits that the server and the page share."""

from dataclasses import dataclass

from audiolitefocus.audio.length import seconds_of
from audiolitefocus.diffusion.distilled import options_for
from audiolitefocus.diffusion.recording import changed_span
from audiolitefocus.options import OPTIONS, GenerationOptions
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.reuse.settings import GRAMMAR, RULES
from audiolitefocus.validation import check_number, check_texts

NOT_SERVED = ("drafter_interval",)  # a second model is not loaded
TEXT_CHARACTERS = 4096  # of a prompt; T5 reads at most its first 512 tokens


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        seconds: of sound in all: the clip's length times its candidates, and of a recording.
        body_bytes: of a request, or of a recording that is uploaded.
        waiting: requests in the queue.
        batch: clips made together.
    """

    seconds: float = 300.0
    body_bytes: int = 32 << 20
    waiting: int = 16
    batch: int = 4


def check_prompt(name: str, text: object) -> None:
    """Raise ValueError unless this is a text to make a sound of, and not too long."""
    if not isinstance(text, str):
        raise ValueError(f"{name}: must be a text")
    check_texts(name, text, empty=False)
    check_size(name, text)


def check_size(name: str, text: str | None) -> None:
    """Raise ValueError for a text that is too long."""
    if text is not None and len(text) > TEXT_CHARACTERS:
        raise ValueError(f"{name}: {len(text)} characters; at most {TEXT_CHARACTERS} are read")


def help_of(name: str) -> str:
    """An option's help, without the files that are refused here."""
    return OPTIONS[name].help.replace(GRAMMAR, RULES)


def check_no_file(reuse: object) -> None:
    """Raise ValueError for a table of reuse, which would be a file of the server."""
    if isinstance(reuse, str) and reuse.startswith("learned"):
        raise ValueError(f"reuse: no tables here; give {RULES}")


def check_for_model(
    pipe: AudioLDM2Pipeline, options: GenerationOptions, recorded: int | None, limits: Limits
) -> float:
    """The seconds of the clip.

    Args:
        recorded: samples of the recording at the model's rate, if there is one.

    Raises:
        ValueError: options that the model or the recording does not fit, or more sound than one
            request may ask for.
    """
    options = options_for(pipe.config, options)
    train_steps = pipe.config.schedule.train_steps
    check_number("num_inference_steps", options.num_inference_steps, 1, train_steps)
    rate = pipe.sampling_rate
    seconds = options.audio_length_in_s or pipe.config.trained_seconds
    if recorded is not None:
        stop = changed_span(recorded, rate, options.inpaint, options.audio_length_in_s)[1]
        seconds = seconds_of(max(recorded, stop), rate)
    copies = options.num_waveforms_per_prompt
    if seconds * copies > limits.seconds:
        each = f"{copies} candidates of {seconds:g} s" if copies > 1 else f"{seconds:g} s"
        raise ValueError(f"{each}: one request may ask for {limits.seconds:g} s of sound at most")
    pipe.choose_attention(options.attention, seconds)
    return seconds
