"""From prompts to `Condition`: CLAP and T5 -> projection -> GPT-2, and the ranking of candidates by
CLAP.

Text is read in float32 whatever the denoiser's dtype: it runs once a prompt.
"""

import os
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolitefocus.audio.resample import resample
from audiolitefocus.checkpoints.towers import (
    TOWERS,
    check_towers,
    load_feature_extractor,
    load_tokenizer,
    load_tower,
)
from audiolitefocus.config import BundleConfig, ProjectionConfig
from audiolitefocus.models.condition import Condition, stack_conditions
from audiolitefocus.runtime import Workplace

MAX_CHARACTERS = 1 << 16  # of a prompt: as many as 512 tokens can hold, and quick to tokenise


class Projection(nn.Module):
    """CLAP's and T5's tokens in the width of GPT-2, each framed by learnt start and end tokens."""

    def __init__(self, config: ProjectionConfig):
        super().__init__()
        self.clap = nn.Linear(config.clap_dim, config.loa_dim)
        self.t5 = nn.Linear(config.t5_dim, config.loa_dim)
        self.clap_start = nn.Parameter(torch.ones(config.loa_dim))
        self.clap_end = nn.Parameter(torch.ones(config.loa_dim))
        self.t5_start = nn.Parameter(torch.ones(config.loa_dim))
        self.t5_end = nn.Parameter(torch.ones(config.loa_dim))

    def forward(self, clap: Tensor, t5: Tensor, t5_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 1, 512), (b, s, 1024), (b, s) -> GPT-2's input (b, s + 5, 768) and its mask (b, s +
        5).
        """
        batch, one = clap.shape[0], t5_mask.new_ones(clap.shape[0], 1)
        edges = (self.clap_start, self.clap_end, self.t5_start, self.t5_end)
        clap_start, clap_end, t5_start, t5_end = (edge.expand(batch, 1, -1) for edge in edges)
        tokens = [clap_start, self.clap(clap), clap_end, t5_start, self.t5(t5), t5_end]
        return torch.cat(tokens, dim=1), torch.cat([one, one, one, one, t5_mask, one], dim=1)


class TextEncoder:
    """The text towers and tokenizers of a bundle.

    Args:
        folder: of the bundle.
        config: of the bundle.
        projection: loaded already.
        device: where everything runs.
        offload: whether a tower is there only while it runs.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        config: BundleConfig,
        projection: Projection,
        device: torch.device | str = "cpu",
        *,
        offload: bool = False,
    ):
        self.folder, self.limits = Path(folder), config.text
        self.device, self.at_work = torch.device(device), Workplace(device, offload=offload)
        place = "cpu" if offload else self.device
        self.projection = projection.float().to(place)
        self.clap, self.t5, self.gpt2 = (load_tower(self.folder, n).to(place) for n in TOWERS)
        configs = [tower.config for tower in (self.clap, self.t5, self.gpt2)]
        check_towers(config, *configs)
        self.vocabularies = {"clap": configs[0].text_config.vocab_size, "t5": configs[1].vocab_size}
        self._tokenizers: dict = {}

    def tokenizer(self, name: str):
        if name not in self._tokenizers:
            self._tokenizers[name] = load_tokenizer(self.folder, name)
        return self._tokenizers[name]

    @cached_property
    def feature_extractor(self):
        return load_feature_extractor(self.folder)

    def encode(
        self, prompts: list[str], *, pad_together: bool = False, t5_length: int | None = None
    ) -> Condition:
        """The condition for a batch of prompts.

        Args:
            prompts: one a clip.
            pad_together: as diffusers: T5's tokens of all prompts are padded to the longest before
                GPT-2 reads them, whose positions then depend on it. Default: every prompt is read
                alone, as the original does, so that a clip does not depend on its batch.
            t5_length: with `pad_together`, pad or cut T5's tokens to this many.

        Returns:
            float32; T5's tokens padded to the longest, with their mask.
        """
        if not pad_together:
            unique = {prompt: self._encode([prompt], None) for prompt in dict.fromkeys(prompts)}
            return stack_conditions([unique[prompt] for prompt in prompts])
        return self._encode(prompts, t5_length)

    def _encode(self, prompts: list[str], t5_length: int | None) -> Condition:
        clap = self.embed_text(prompts)[:, None]
        padding = "longest" if t5_length is None else "max_length"
        ids, mask = self._tokens("t5", prompts, padding, t5_length or self.limits.t5_max_tokens)
        with self.at_work(self.t5):
            t5 = self.t5(input_ids=ids, attention_mask=mask).last_hidden_state
        with self.at_work(self.projection, self.gpt2):
            inputs, inputs_mask = self.projection(clap, t5, mask)
            loa = write_loa(self.gpt2, inputs, inputs_mask, self.limits.loa_tokens)
        return Condition(loa=loa, t5=t5, t5_mask=mask)

    def _tokens(
        self, name: str, prompts: list[str], padding: str, limit: int
    ) -> tuple[Tensor, Tensor]:
        tokenizer = self.tokenizer(name)
        texts = [prompt[:MAX_CHARACTERS] for prompt in prompts]
        whole = tokenizer(texts, add_special_tokens=True, verbose=False)["input_ids"]
        cut = tokenizer(
            texts, padding=padding, max_length=limit, truncation=True, return_tensors="pt"
        )
        if cut["input_ids"].max() >= self.vocabularies[name]:
            raise ValueError(f"{self.folder / name}: tokenizer and network do not fit together")
        for prompt, text, ids in zip(prompts, texts, whole, strict=True):
            if len(ids) > limit or text != prompt:
                rest = tokenizer.decode(ids[limit - 1 :], skip_special_tokens=True)
                rest += prompt[len(text) :]
                warnings.warn(_cut_message(name, limit, prompt, rest), stacklevel=2)
        return cut["input_ids"].to(self.device), cut["attention_mask"].to(self.device)

    def negative(
        self, negatives: list[str] | None, condition: Condition, unconditional: str
    ) -> Condition:
        """The other side of the guidance: of negative prompts or, without any, as `unconditional`
        says: "trained", or "empty_prompt", which is diffusers' way for both.
        """
        batch = len(condition.loa)
        if unconditional == "empty_prompt" and condition.t5 is not None:
            texts = negatives or [""] * batch
            return self.encode(texts, pad_together=True, t5_length=condition.t5.shape[1])
        return self.encode(negatives) if negatives else self.unconditional(batch)

    def unconditional(self, batch: int) -> Condition:
        """The unconditional condition of training: zeros for GPT-2's tokens, and T5's encoding of
        "" (one token).
        """
        ids, mask = self._tokens("t5", [""], "longest", self.limits.t5_max_tokens)
        with self.at_work(self.t5):
            t5 = self.t5(input_ids=ids, attention_mask=mask).last_hidden_state
        loa = t5.new_zeros(1, self.limits.loa_tokens, self.gpt2.config.n_embd)
        condition = Condition(loa=loa, t5=t5, t5_mask=mask)
        return stack_conditions([condition] * batch)

    def rank(self, prompts: list[str], audios: Tensor, rate: int) -> tuple[Tensor, Tensor]:
        """Order the candidates of every prompt by CLAP, best first.

        Args:
            audios: (prompts * candidates, samples) at `rate`, those of one prompt together.

        Returns:
            The audios and their scores, in the new order.
        """
        each = len(audios) // len(prompts)
        scores = self.similarity([p for p in prompts for _ in range(each)], audios, rate).cpu()
        order = scores.view(-1, each).argsort(dim=1, descending=True, stable=True)
        index = (order + each * torch.arange(len(prompts))[:, None]).flatten()
        return audios[index], scores[index]

    def similarity(self, prompts: list[str], waveforms: Tensor, rate: int) -> Tensor:
        """CLAP's cosine similarity between prompt i and waveform i: (b,).

        CLAP hears 10 s at 48 kHz: longer clips are heard in windows, whose embeddings are averaged
        with their lengths as weights.

        Args:
            waveforms: (b, samples) at `rate`.
        """
        with self.at_work(self.clap):
            audio = torch.stack([self.embed_audio(waveform, rate) for waveform in waveforms])
            return (self.embed_text(prompts) * audio).sum(-1)

    def embed_text(self, prompts: list[str]) -> Tensor:
        """CLAP's text embeddings (b, 512), unit length."""
        ids, mask = self._tokens("clap", prompts, "max_length", self.limits.clap_max_tokens)
        with self.at_work(self.clap):
            text = self.clap.get_text_features(ids, attention_mask=mask)
        return F.normalize(getattr(text, "pooler_output", text), dim=-1)

    def embed_audio(self, waveform: Tensor, rate: int) -> Tensor:
        """(samples,) at `rate` -> CLAP's audio embedding, unit length."""
        extractor = self.feature_extractor
        heard = resample(waveform.float().cpu(), rate, extractor.sampling_rate)
        embeddings = []
        with self.at_work(self.clap):
            for window in heard.split(extractor.nb_max_samples):  # so that memory does not grow
                # Never longer than CLAP's input, so nothing is cropped at random and no random
                # state is touched.
                features = extractor(
                    window.numpy(),
                    sampling_rate=extractor.sampling_rate,
                    truncation="rand_trunc",
                    return_tensors="pt",
                )
                audio = self.clap.get_audio_features(
                    input_features=features["input_features"].to(self.device, torch.float32),
                    is_longer=features["is_longer"].to(self.device),
                )
                unit = F.normalize(getattr(audio, "pooler_output", audio), dim=-1)
                embeddings.append(len(window) * unit)
        return F.normalize(torch.cat(embeddings).sum(0), dim=-1)


def _cut_message(name: str, limit: int, prompt: str, rest: str) -> str:
    who = {"clap": "CLAP", "t5": "T5"}[name]
    return (
        f"{who} reads the first {limit} tokens of {_short(prompt)!r}; it does not see "
        f"{len(rest)} characters: {_short(rest)!r}"
    )


def _short(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def write_loa(gpt2: Any, embeddings: Tensor, mask: Tensor, count: int) -> Tensor:
    """The "language of audio": GPT-2 continues its input by `count` hidden states, each fed back as
    the next input.

    Positions count padding too and no token ids are sampled, as in training (Liu et al., "AudioLDM
    2", 2023).

    Args:
        embeddings: (b, s, 768), `Projection`'s.
        mask: (b, s).

    Returns:
        (b, count, 768).
    """
    for _ in range(count):
        hidden = gpt2(
            inputs_embeds=embeddings, attention_mask=mask, use_cache=False
        ).last_hidden_state
        embeddings = torch.cat([embeddings, hidden[:, -1:]], dim=1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return embeddings[:, -count:]
