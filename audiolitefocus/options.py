"""What a person chooses about a clip, on the command line or in a file of prompts."""

from dataclasses import dataclass

from audiolitefocus.attention.litefocus import LiteFocus
from audiolitefocus.checks import check_number, check_settings
from audiolitefocus.diffusion.recording import check_options, strength_of
from audiolitefocus.diffusion.samplers import steps_from


@dataclass(frozen=True)
class Settings:
    """How clips are made: what a person chooses on the command line. Raises ValueError for
    nonsense.
    """

    duration: float | None = None  # seconds; None is the model's trained length, or init_audio's
    init_audio: str | None = None  # a sound file, of which a variation is made
    strength: float | None = None  # of the variation; None is `strength_of`
    inpaint: str | None = None  # START:END in seconds, the span of init_audio that is made anew
    continue_audio: str | None = None  # a sound file that goes on up to the duration
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
        check_number("seed", self.seed, 0, 2**63 - 1)
        if not isinstance(self.negative_prompt, (str, type(None))):
            raise ValueError(f"negative_prompt {self.negative_prompt!r}: must be a text")
        self._check_recording()
        parse_attention(self.attention)
        check_settings(
            steps=self.steps,
            guidance_scale=self.guidance_scale,
            eta=self.eta,
            candidates=self.candidates,
            sampler=self.sampler,
            unconditional=self.unconditional,
        )
        steps_from(self._strength, self.steps)

    def _check_recording(self) -> None:
        for name, path in (
            ("init_audio", self.init_audio),
            ("continue_audio", self.continue_audio),
        ):
            if path is not None and not (isinstance(path, str) and path):
                raise ValueError(f"{name} {path!r}: must be the name of a sound file")
        check_options(self.init_audio, self.continue_audio, self.strength, self.span, self.duration)

    @property
    def recording(self) -> str | None:
        """The sound file that the clip is made from."""
        return self.init_audio or self.continue_audio

    @property
    def span(self) -> tuple[float, float] | None:
        """`inpaint` in seconds."""
        return None if self.inpaint is None else parse_span(self.inpaint)

    @property
    def steps_taken(self) -> int:
        """Denoising steps of a clip."""
        return steps_from(self._strength, self.steps)

    @property
    def _strength(self) -> float:
        return strength_of(self.strength, self.init_audio, self.span)


def parse_span(text: str) -> tuple[float, float]:
    """START:END in seconds."""
    start, _, end = str(text).partition(":")
    try:
        return float(start), float(end)
    except ValueError:
        raise ValueError(f"inpaint {text!r}: must be START:END in seconds, as 2:4.5") from None


def parse_attention(text: str) -> str | LiteFocus:
    """ "auto", "dense", "tome", "litefocus" (ratio 0.1), "litefocus:RATIO", where 0 is the query's
    own frequency row alone, "litefocus:RATIO:DEEPEST" for the levels from 1 to that one, or
    "cross-frequency:RATIO", sampled keys alone.
    """
    name, *numbers = str(text).split(":")
    if (name == "litefocus" and len(numbers) <= 2) or (
        name == "cross-frequency" and len(numbers) == 1
    ):
        try:
            return LiteFocus(
                same_frequency=name == "litefocus",
                sparse_ratio=float(numbers[0]) if numbers else 0.1,
                levels=_levels_to(numbers[1]) if numbers[1:] else (1,),
            )
        except ValueError as error:
            raise ValueError(f"attention {text!r}: {error}") from None
    if text not in ("auto", "dense", "tome"):
        raise ValueError(
            f"attention {text!r}: must be auto, dense, tome, litefocus, litefocus:RATIO, "
            f"litefocus:RATIO:DEEPEST or cross-frequency:RATIO"
        )
    return text


def _levels_to(deepest: str) -> tuple[int, ...]:
    if deepest not in ("1", "2", "3"):
        raise ValueError(f"deepest level {deepest!r}: must be 1, 2 or 3")
    return tuple(range(1, int(deepest) + 1))
