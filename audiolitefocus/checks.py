"""What a call of the pipeline may be asked: every argument is checked before any work starts."""

from dataclasses import dataclass

from torch import Tensor

from audiolitefocus.config import UNetConfig
from audiolitefocus.models.condition import Condition
from audiolitefocus.validation import shown

SAMPLERS = ("ddim", "dpm++")
UNCONDITIONALS = ("trained", "empty_prompt")
OUTPUT_TYPES = ("np", "pt", "latent", "blocks")


def check_settings(
    *,
    steps: int,
    guidance_scale: float,
    eta: float,
    candidates: int,
    sampler: str,
    unconditional: str,
    train_steps: int = 1000,
) -> None:
    """Raise ValueError for a setting of the sampling that makes no sense."""
    check_number("steps", steps, 1, train_steps)
    check_number("candidates", candidates, 1, 1000)
    check_number("guidance_scale", guidance_scale, 0.0, 1000.0)
    check_number("eta", eta, 0.0, 1.0)
    check_choice("sampler", sampler, SAMPLERS)
    check_choice("unconditional", unconditional, UNCONDITIONALS)


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} {shown(value)}: must be one of {', '.join(allowed)}")


def check_number(name: str, value: float, low: float, high: float) -> None:
    """In [low, high], and whole where `low` is an int."""
    kinds = int if isinstance(low, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        what = "a whole number" if kinds is int else "a number"
        raise ValueError(f"{name} {shown(value)}: must be {what} from {low:g} to {high:g}")


def check_texts(
    name: str, text: str | list[str] | None, *, empty: bool, copies: int = 1
) -> list[str] | None:
    """A list of texts from many, or from one `copies` times. Raises ValueError for what is no text,
    or is empty.
    """
    if text is None:
        return None
    if not isinstance(text, (str, list, tuple)):
        raise ValueError(f"{name} {shown(text)}: must be a text, or a list of texts")
    texts = [text] * copies if isinstance(text, str) else list(text)
    if not texts:
        raise ValueError(f"{name} is an empty list")
    for entry in texts:
        if not isinstance(entry, str):
            raise ValueError(f"{name} {shown(entry)}: must be a text")
        if not empty and not entry.strip():
            raise ValueError(f"{name} {shown(entry)} is empty: say what should be heard")
        try:
            entry.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name}: character {error.start} is no Unicode: {error.reason}"
            ) from None
    return texts


def check_embeds(
    t5: Tensor | None, loa: Tensor | None, mask: Tensor | None, unet: UNetConfig
) -> Condition | None:
    """A condition from the caller's embeddings, or None if there are none."""
    if t5 is None and loa is None and mask is None:
        return None
    if t5 is None or loa is None or not 0 < len(t5) == len(loa):
        raise ValueError(
            "give both T5's prompt_embeds and GPT-2's generated_prompt_embeds, one entry a prompt"
        )
    for name, tensor, width in (
        ("prompt_embeds", t5, unet.t5_dim),
        ("generated_prompt_embeds", loa, unet.loa_dim),
    ):
        if tensor.ndim != 3 or tensor.shape[2] != width:
            raise ValueError(f"{name} {tuple(tensor.shape)}: must be (prompts, tokens, {width})")
        check_finite(name, tensor)
    if mask is not None and mask.shape != t5.shape[:2]:
        raise ValueError(
            f"attention_mask {tuple(mask.shape)} does not fit prompt_embeds {tuple(t5.shape)}"
        )
    return Condition(loa=loa, t5=t5, t5_mask=mask)


@dataclass(frozen=True)
class Prompts:
    """What clips shall be and what not, each as texts or as embeddings. Raises ValueError unless
    there is one of both, and as many of the second as of the first.
    """

    texts: list[str] | None
    given: Condition | None
    negatives: list[str] | None
    negative_given: Condition | None

    def __post_init__(self):
        if (self.texts is None) == (self.given is None):
            raise ValueError("give either prompt, or prompt_embeds with generated_prompt_embeds")
        if self.negatives is not None and self.negative_given is not None:
            raise ValueError("give either negative_prompt or negative_prompt_embeds")
        for others in (self.negatives, self.negative_given):
            if others is not None and len(others) != len(self):
                raise ValueError(
                    f"{len(others)} negative prompts for {len(self)} prompts: give one for each"
                )

    def __len__(self) -> int:
        return len(self.texts or self.given or ())


def check_finite(name: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise ValueError(f"{name}: not finite; if this is half precision, try dtype float32")
