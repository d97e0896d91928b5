"""Prompts of a call, as texts or as embeddings, checked before any work starts."""

from dataclasses import dataclass

from torch import Tensor

from audiolitefocus.config import UNetConfig
from audiolitefocus.models.condition import Condition


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
