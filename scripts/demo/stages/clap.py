"""Stage "clap": a small CLAP (Wu et al. 2023) of sounds and their captions, by a contrastive loss.

Its text side conditions the diffusion model and stays as it is from here on; its audio side ranks
candidates.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from tqdm import tqdm

from audiolitefocus.atomic import atomic_file, atomic_folder
from audiolitefocus.audio.resample import resample
from scripts.demo.loop import Losses, Run, train
from scripts.demo.world.captions import clap_tokenizer
from scripts.demo.world.clips import CHUNK, chunk, clip, stored
from scripts.demo.world.sounds import HELD_OUT, LOUDNESS, RATE, WORLD, Sound, draw

WIDTH = 64
CHUNKS = 5  # thousands of clips
HELD_OUT_CLIPS = 500
STEPS, RATE_OF_LEARNING, BATCH = 4000, 1e-3, 64
# 3 s of sound at 48 kHz are 251 frames of 64 bands, which HTSAT folds to 128 x 128.
WINDOW_SECONDS, HOP, SPECTROGRAM = 3, 576, 128
HIGHEST_HZ = 8000


def clap_tower(vocabulary: int) -> transformers.ClapModel:
    """A CLAP of the usual make: RoBERTa for text, HTSAT for sound."""
    text = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    audio = {
        "patch_embeds_hidden_size": WIDTH // 4,
        "hidden_size": 2 * WIDTH,  # after the three doublings between four stages
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 4],
        "spec_size": SPECTROGRAM,
        "window_size": 4,  # the deepest stage has 4 x 4 tokens
    }
    return transformers.ClapModel(
        transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=WIDTH)
    )


def clap_extractor() -> transformers.ClapFeatureExtractor:
    """Shorter clips are repeated up to the window: there is no silence that tells their length."""
    return transformers.ClapFeatureExtractor(
        max_length_s=WINDOW_SECONDS,
        hop_length=HOP,
        fft_window_size=2048,
        frequency_max=HIGHEST_HZ,
        padding="repeat",
        truncation="rand_trunc",
    )


def features_of(waveforms: np.ndarray) -> np.ndarray:
    """(n, samples) at 16 kHz -> what CLAP sees of them, (n, 1, 251, 64) float16."""
    extractor, features_list = clap_extractor(), []
    for part in tqdm(torch.from_numpy(waveforms.astype(np.float32)).split(50), desc="features"):
        samples = list(resample(part, RATE, extractor.sampling_rate).numpy())
        features = extractor(samples, sampling_rate=extractor.sampling_rate, return_tensors="np")
        features_list.append(features["input_features"].astype(np.float16))
    return np.concatenate(features_list)


def stored_features(folder: Path, index: int, waveforms: np.ndarray) -> np.ndarray:
    return stored(folder / f"features-{index:03d}.npy", lambda: features_of(waveforms))


def meaning(sound: Sound) -> tuple:
    """What two sounds share whose captions may be the same: families and, of each attribute, the
    word whose range it lies in.
    """
    ranges = {"loudness": LOUDNESS}
    for family in sound.families:
        ranges |= WORLD[family].attributes
    words = (
        word
        for name, value in sound.attributes.items()
        for word, (low, high) in ranges[name].items()
        if low <= value <= high
    )
    return (*sound.families, *words)


def numbered(meanings: list[tuple]) -> Tensor:
    """A number for each, the same for equal ones."""
    numbers = {meaning: index for index, meaning in enumerate(dict.fromkeys(meanings))}
    return torch.tensor([numbers[meaning] for meaning in meanings])


def embed(
    clap: transformers.ClapModel, ids: Tensor, mask: Tensor, features: Tensor
) -> tuple[Tensor, Tensor]:
    """Unit embeddings (b, d) of texts and of sounds."""
    text = clap.get_text_features(ids, attention_mask=mask).pooler_output
    audio = clap.get_audio_features(input_features=features).pooler_output
    return F.normalize(text, dim=-1), F.normalize(audio, dim=-1)


def contrastive(clap: transformers.ClapModel, text: Tensor, audio: Tensor, same: Tensor) -> Tensor:
    """Cross-entropy both ways; sounds that mean the same share the target.

    Args:
        same: (b,) numbers, equal where sounds mean the same.
    """
    scale = 0.5 * (clap.logit_scale_a + clap.logit_scale_t)
    logits = scale.exp().clamp(max=100.0) * text @ audio.T
    target = (same[:, None] == same).float()
    target = target / target.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


class Pairs:
    """Captions as token ids, with the features of their sounds."""

    def __init__(self, sounds: list[Sound], features: np.ndarray):
        tokens = clap_tokenizer()([s.caption for s in sounds], padding=True, return_tensors="pt")
        self.ids, self.mask = tokens["input_ids"], tokens["attention_mask"]
        self.features, self.same = features, numbered([meaning(s) for s in sounds])

    def batch(self, indices: Tensor, device: str) -> tuple[Tensor, ...]:
        length = int(self.mask[indices].sum(1).max())
        features = torch.from_numpy(self.features[indices.numpy()]).float()
        parts = (self.ids[indices, :length], self.mask[indices, :length], features)
        return tuple(part.to(device) for part in (*parts, self.same[indices]))


def training_pairs(folder: Path, chunks: int) -> Pairs:
    features = [
        stored_features(folder / "clap", index, chunk(folder / "clips", index)[0])
        for index in range(chunks)
    ]
    return Pairs([draw(seed) for seed in range(CHUNK * chunks)], np.concatenate(features))


def clap_loss(run: Run, clap: transformers.ClapModel, pairs: Pairs) -> Losses:
    indices = torch.randperm(len(pairs.same))[:BATCH]
    ids, mask, features, same = pairs.batch(indices, run.device)
    with run.autocast():
        text, audio = embed(clap, ids, mask, features)
    return {"loss": contrastive(clap, text.float(), audio.float(), same)}


@torch.no_grad()
def retrieval(
    clap: transformers.ClapModel, device: str, clips: int = HELD_OUT_CLIPS
) -> dict[str, float]:
    """How often a held-out sound is closest to a caption that means the same, among those of 20
    sounds; and to a caption of its family or families, among those of all.
    """
    seeds = range(HELD_OUT, HELD_OUT + clips)
    sounds = [draw(seed) for seed in seeds]
    pairs = Pairs(sounds, features_of(np.stack([clip(seed)[0] for seed in seeds])))
    text: list[Tensor] = []
    audio: list[Tensor] = []
    for indices in torch.arange(clips).split(50):
        ids, mask, features, _ = pairs.batch(indices, device)
        for kind, found in zip((text, audio), embed(clap, ids, mask, features), strict=True):
            kind.append(found.cpu())
    scores = torch.cat(audio) @ torch.cat(text).T
    same = pairs.same[:, None] == pairs.same
    family = numbered([sound.families for sound in sounds])
    best, groups = scores.argmax(1), torch.arange(clips).split(20)
    own = [same[i][:, i].gather(1, scores[i][:, i].argmax(1)[:, None]) for i in groups]
    return {
        "clips": clips,
        "of_20": round(torch.cat(own).float().mean().item(), 3),
        "family": round((family[best] == family).float().mean().item(), 3),
    }


def train_clap(run: Run) -> None:
    folder = run.folder("clap")
    pairs = training_pairs(run.out, CHUNKS)
    torch.manual_seed(run.seed)
    tokenizer = clap_tokenizer()
    clap = clap_tower(len(tokenizer))
    for scale in (clap.logit_scale_a, clap.logit_scale_t):
        scale.data.fill_(math.log(10.0))
    averaged = train(
        run,
        "clap",
        clap,
        lambda: clap_loss(run, clap, pairs),
        steps=STEPS,
        rate=RATE_OF_LEARNING,
    )
    with atomic_folder(folder / "tower", force=True) as tower:
        for part in (averaged, tokenizer, clap_extractor()):
            part.save_pretrained(tower)
    report = json.dumps(retrieval(averaged, run.device), indent=2)
    with atomic_file(folder / "report.json") as beside:
        beside.write_text(report + "\n")
    print(report)
