"""From prompts to `Condition`: CLAP and T5 -> projection -> GPT-2; and CLAP's score of a clip.

Text is encoded in float32 whatever the UNet's dtype: it runs once a prompt.
"""

import threading
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolitefocus.audio.resample import resample
from audiolitefocus.config import ProjectionConfig, TextConfig
from audiolitefocus.models.condition import Condition, stack_conditions

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
        """(b, 1, 512), (b, s, 1024), (b, s) -> GPT-2's input (b, s + 5, 768), mask (b, s + 5)."""
        batch, one = clap.shape[0], t5_mask.new_ones(clap.shape[0], 1)
        edges = (self.clap_start, self.clap_end, self.t5_start, self.t5_end)
        clap_start, clap_end, t5_start, t5_end = (edge.expand(batch, 1, -1) for edge in edges)
        tokens = [clap_start, self.clap(clap), clap_end, t5_start, self.t5(t5), t5_end]
        return torch.cat(tokens, dim=1), torch.cat([one, one, one, one, t5_mask, one], dim=1)


class TextEncoder(nn.Module):
    """The text towers of AudioLDM2, given loaded; their tokenizers are loaded when first needed.

    Any number of threads may use one: the tokenizers, which are not safe for that, are locked.

    Args:
        clap, t5, gpt2: transformers' `ClapModel`, `T5EncoderModel` and `GPT2Model`.
        projection: from CLAP and T5 into the width of GPT-2.
        limits: how many tokens are read and generated.
        load_tokenizer: gives the tokenizer of "clap" or "t5".
        load_feature_extractor: gives CLAP's feature extractor.
    """

    def __init__(
        self,
        clap: Any,
        t5: Any,
        gpt2: Any,
        projection: Projection,
        limits: TextConfig,
        load_tokenizer: Callable[[str], Any],
        load_feature_extractor: Callable[[], Any],
    ):
        super().__init__()
        self.clap, self.t5, self.gpt2, self.projection = clap, t5, gpt2, projection
        self.limits = limits
        self.vocabularies = {"clap": clap.config.text_config.vocab_size, "t5": t5.config.vocab_size}
        self._load_tokenizer, self._load_feature_extractor = load_tokenizer, load_feature_extractor
        self._tokenizers: dict[str, Any] = {}
        self._tokenizing = threading.Lock()

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

    def negative(
        self, negatives: list[str] | None, condition: Condition, unconditional: str
    ) -> Condition:
        """The condition that guidance steers away from.

        Args:
            negatives: negative prompts, if there are any.
            condition: the other one.
            unconditional: "trained", or "empty_prompt", which is diffusers' way for both.
        """
        batch = len(condition)
        if unconditional == "empty_prompt" and condition.t5 is not None:
            texts = negatives or [""] * batch
            return self.encode(texts, pad_together=True, t5_length=condition.t5.shape[1])
        return self.encode(negatives) if negatives else self.unconditional(batch)

    def unconditional(self, batch: int) -> Condition:
        """The condition trained as unconditional: GPT-2's tokens zero, T5's encoding of ""."""
        ids, mask = self._tokens("t5", [""], "longest", self.limits.t5_max_tokens)
        t5 = self.t5(input_ids=ids, attention_mask=mask).last_hidden_state
        loa = t5.new_zeros(1, self.limits.loa_tokens, self.gpt2.config.n_embd)
        return stack_conditions([Condition(loa=loa, t5=t5, t5_mask=mask)] * batch)

    def similarity(self, prompts: list[str], waveforms: Tensor, rate: int) -> Tensor:
        """CLAP's cosine similarity between prompt i and waveform i: (b,).

        CLAP reads 10 s at 48 kHz: longer clips are embedded in windows, whose embeddings are
        averaged with their lengths as weights.

        Args:
            waveforms: (b, samples) at `rate`.
        """
        audio = torch.stack([self.embed_audio(waveform, rate) for waveform in waveforms])
        return (self.embed_text(prompts) * audio).sum(-1)

    def embed_text(self, prompts: list[str]) -> Tensor:
        """CLAP's text embeddings (b, 512), unit length."""
        ids, mask = self._tokens("clap", prompts, "max_length", self.limits.clap_max_tokens)
        text = self.clap.get_text_features(ids, attention_mask=mask)
        return F.normalize(getattr(text, "pooler_output", text), dim=-1)

    def embed_audio(self, waveform: Tensor, rate: int) -> Tensor:
        """(samples,) at `rate` -> CLAP's audio embedding, unit length."""
        extractor, device = self.feature_extractor, next(self.clap.parameters()).device
        resampled = resample(waveform.float().cpu(), rate, extractor.sampling_rate)
        embeddings = []
        for window in resampled.split(extractor.nb_max_samples):  # so that memory does not grow
            # Never longer than CLAP's input, so nothing is cropped at random and no random state is
            # touched.
            features = extractor(
                window.numpy(),
                sampling_rate=extractor.sampling_rate,
                truncation="rand_trunc",
                return_tensors="pt",
            )
            audio = self.clap.get_audio_features(
                input_features=features["input_features"].to(device, torch.float32),
                is_longer=features["is_longer"].to(device),
            )
            unit = F.normalize(getattr(audio, "pooler_output", audio), dim=-1)
            embeddings.append(len(window) * unit)
        return F.normalize(torch.cat(embeddings).sum(0), dim=-1)

    @cached_property
    def feature_extractor(self) -> Any:
        return self._load_feature_extractor()

    def _encode(self, prompts: list[str], t5_length: int | None) -> Condition:
        # 1. CLAP's one token, T5's many
        clap = self.embed_text(prompts)[:, None]  # b 1 512
        padding = "longest" if t5_length is None else "max_length"
        ids, mask = self._tokens("t5", prompts, padding, t5_length or self.limits.t5_max_tokens)
        t5 = self.t5(input_ids=ids, attention_mask=mask).last_hidden_state
        # 2. Both, in GPT-2's width -> the eight tokens that it goes on with
        inputs, inputs_mask = self.projection(clap, t5, mask)
        loa = generate_loa(self.gpt2, inputs, inputs_mask, self.limits.loa_tokens)
        return Condition(loa=loa, t5=t5, t5_mask=mask)

    def _tokens(
        self, name: str, prompts: list[str], padding: str, limit: int
    ) -> tuple[Tensor, Tensor]:
        """Token ids (b, s) and their mask; warns of what is cut from a prompt."""
        texts = [prompt[:MAX_CHARACTERS] for prompt in prompts]
        with self._tokenizing:
            tokenizer = self._tokenizers.get(name) or self._load_tokenizer(name)
            self._tokenizers[name] = tokenizer
            # twice: all of the text, to say what does not fit, and as much as the network reads
            whole = tokenizer(texts, add_special_tokens=True, verbose=False)["input_ids"]
            cut = tokenizer(texts, padding=padding, max_length=limit, truncation=True)
            for prompt, text, ids in zip(prompts, texts, whole, strict=True):
                if unknown := _unknown_characters(tokenizer, text, ids):
                    warnings.warn(_unknown_message(name, prompt, unknown), stacklevel=2)
                if len(ids) > limit or text != prompt:
                    rest = tokenizer.decode(ids[limit - 1 :], skip_special_tokens=True)
                    rest += prompt[len(text) :]
                    warnings.warn(_cut_message(name, limit, prompt, rest), stacklevel=2)
        if max(map(max, cut["input_ids"])) >= self.vocabularies[name]:
            raise ValueError(f"the tokenizer of {name} has more tokens than its network")
        device = next(getattr(self, name).parameters()).device
        ids, mask = torch.tensor(cut["input_ids"]), torch.tensor(cut["attention_mask"])
        return ids.to(device), mask.to(device)


def generate_loa(gpt2: Any, embeddings: Tensor, mask: Tensor, count: int) -> Tensor:
    """The "language of audio": hidden states of GPT-2, each of them fed back as the next input.

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


def _unknown_characters(tokenizer: Any, text: str, ids: list[int]) -> str:
    """The characters of a text that the tokenizer has no token for."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown not in ids:
        return ""

    def lacks(character: str) -> bool:
        return unknown in tokenizer(character, add_special_tokens=False)["input_ids"]

    return "".join(filter(lacks, dict.fromkeys(text)))


def _unknown_message(name: str, prompt: str, unknown: str) -> str:
    who = {"clap": "CLAP", "t5": "T5"}[name]
    return f"{who} cannot read {_short(unknown)!r} in {_short(prompt)!r}; it was trained on English"


def _cut_message(name: str, limit: int, prompt: str, rest: str) -> str:
    who = {"clap": "CLAP", "t5": "T5"}[name]
    return (
        f"{who} reads the first {limit} tokens of {_short(prompt)!r}; it does not see "
        f"{len(rest)} characters: {_short(rest)!r}"
    )


def _short(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
