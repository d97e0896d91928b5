"""Positive and negative prompts of one call, as text or as embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from audiolitefocus.config import UNetConfig
from audiolitefocus.models.condition import Condition
from audiolitefocus.runtime import as_finite
from audiolitefocus.validation import check_texts

Array: TypeAlias = "Tensor | np.ndarray | None"
Embeddings: TypeAlias = tuple[Array, Array, Array]  # t5, loa, t5's mask


@dataclass(frozen=True)
class Prompts:
    """What clips are made of, and what they are steered away from.

    Attributes:
        texts, embeds: the prompts, as text or as embeddings; one of both is None.
        negative_texts, negative_embeds: the same for negative prompts; both may be None.
    """

    texts: list[str] | None
    embeds: Condition | None
    negative_texts: list[str] | None
    negative_embeds: Condition | None

    @classmethod
    def make(
        cls,
        prompt: str | Sequence[str] | None,
        unet: UNetConfig,
        negative_prompt: str | Sequence[str] | None = None,
        embeddings: Embeddings = (None, None, None),
        negative_embeddings: Embeddings = (None, None, None),
    ) -> "Prompts":
        """Checked prompts; one negative prompt counts for all.

        Args:
            unet: what embeddings have to fit.
            embeddings, negative_embeddings: given in place of texts.

        Raises:
            ValueError: no prompt, two kinds of them, an empty one, another number of negatives, or
                embeddings that do not fit.
        """
        embeds = check_embeds(*embeddings, unet)
        negative_embeds = check_embeds(*negative_embeddings, unet)
        texts = check_texts("prompt", prompt, empty=False)
        if (texts is None) == (embeds is None):
            raise ValueError("give either prompt, or prompt_embeds with generated_prompt_embeds")
        count = len(texts if embeds is None else embeds)  # type: ignore[arg-type]
        negatives = check_texts("negative_prompt", negative_prompt, empty=True, copies=count)
        if negatives is not None and negative_embeds is not None:
            raise ValueError("give either negative_prompt or negative_prompt_embeds")
        for others in (negatives, negative_embeds):
            if others is not None and len(others) != count:
                raise ValueError(
                    f"{len(others)} negative prompts for {count} prompts: give one for each"
                )
        return cls(texts, embeds, negatives, negative_embeds)

    def __len__(self) -> int:
        return len(self.texts or self.embeds or ())


def check_embeds(t5: Array, loa: Array, mask: Array, unet: UNetConfig) -> Condition | None:
    """A condition from the caller's embeddings, or None if there are none.

    Raises:
        ValueError: one of them is missing, not finite, or of another shape than this UNet takes.
    """
    if t5 is None and loa is None and mask is None:
        return None
    if t5 is None or loa is None or not 0 < len(t5) == len(loa):
        raise ValueError(
            "give both T5's prompt_embeds and GPT-2's generated_prompt_embeds, one entry a prompt"
        )
    t5, loa = as_finite("prompt_embeds", t5), as_finite("generated_prompt_embeds", loa)
    for name, tensor, width in (
        ("prompt_embeds", t5, unet.t5_dim),
        ("generated_prompt_embeds", loa, unet.loa_dim),
    ):
        if tensor.ndim != 3 or tensor.shape[2] != width:
            raise ValueError(f"{name} {tuple(tensor.shape)}: must be (prompts, tokens, {width})")
    if mask is None:
        return Condition(loa=loa, t5=t5)
    mask = torch.as_tensor(mask)
    if mask.shape != t5.shape[:2]:
        raise ValueError(
            f"attention_mask {tuple(mask.shape)} does not fit prompt_embeds {tuple(t5.shape)}"
        )
    return Condition(loa=loa, t5=t5, t5_mask=mask)
