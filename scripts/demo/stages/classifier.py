"""Stage "classifier": which families a sound of the synthetic world is of, for the KL divergence of
`evaluate.py`. A small audio spectrogram transformer (Gong et al., "AST", 2021), transformers' own.

A sound of two families is half of each, so that the classes' probabilities are one distribution.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from audiolitefocus.atomic import atomic_file
from scripts.demo.loop import Losses, Run, train
from scripts.demo.world.clips import CHUNK, FRAMES, chunk, stored
from scripts.demo.world.sounds import FAMILIES, HELD_OUT, RATE, draw

CHUNKS = 10  # thousands of clips
STEPS, RATE_OF_LEARNING, BATCH = 3000, 1.5e-3, 48
GAIN = 1.0  # nats of power, about 4 dB: the loudness of a training clip varies by this deviation
HELD_OUT_CLIPS = 500
EXTRACTOR = ASTFeatureExtractor(num_mel_bins=64, max_length=FRAMES, sampling_rate=RATE)


def build() -> ASTForAudioClassification:
    torch.manual_seed(0)
    config = ASTConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        frequency_stride=16,
        time_stride=16,
        max_length=FRAMES,
        num_mel_bins=EXTRACTOR.num_mel_bins,
        id2label=dict(enumerate(FAMILIES)),
        label2id={family: index for index, family in enumerate(FAMILIES)},
    )
    return ASTForAudioClassification(config)


def features(waveforms: np.ndarray) -> np.ndarray:
    """Clips (n, samples) as the network takes them: float16 (n, 256, 64)."""
    made = [EXTRACTOR(w.astype(np.float32), sampling_rate=RATE) for w in waveforms]
    return np.concatenate([m["input_values"] for m in made]).astype(np.float16)


def features_of_chunk(run: Run, index: int) -> np.ndarray:
    """Those of a chunk of the training clips."""
    return features(chunk(run.out / "clips", index)[0])


def stored_features(run: Run) -> np.ndarray:
    """Those of all of them, (1000 chunks, 256, 64); made and kept the first time."""
    parts = []
    for index in tqdm(range(CHUNKS), desc="features", unit="chunk"):
        path = run.folder("classifier") / f"features-{index:03d}.npy"
        parts.append(stored(path, partial(features_of_chunk, run, index)))
    return np.concatenate(parts)


def targets(seeds: range) -> Tensor:
    """The share of each family in the sounds of these seeds: (n, families)."""
    shares = torch.zeros(len(seeds), len(FAMILIES))
    for row, seed in zip(shares, seeds, strict=True):
        families = draw(seed).families
        row[[FAMILIES.index(family) for family in families]] = 1 / len(families)
    return shares


def classifier_loss(run: Run, network, inputs: np.ndarray, shares: Tensor) -> Losses:
    index = torch.randint(len(inputs), (BATCH,))
    values = torch.from_numpy(inputs[index.numpy()]).float()
    values += GAIN / (2 * EXTRACTOR.std) * torch.randn(BATCH, 1, 1)
    with run.autocast():
        logits = network(values.to(run.device)).logits
    return {"loss": F.cross_entropy(logits.float(), shares[index].to(run.device))}


@torch.no_grad()
def accuracy(network) -> dict[str, float]:
    """On sounds that nothing was trained on: how often the family of a single one comes first, and
    how often both of a pair come before all others.
    """
    seeds = range(HELD_OUT, HELD_OUT + HELD_OUT_CLIPS)
    waveforms = np.stack([draw(seed).render(FRAMES / 100) for seed in seeds])
    device = next(network.parameters()).device
    logits = network(torch.from_numpy(features(waveforms)).float().to(device)).logits.cpu()
    shares = targets(seeds)
    right: dict[int, list[bool]] = {1: [], 2: []}
    for row, share in zip(logits, shares, strict=True):
        families = set(share.nonzero().flatten().tolist())
        right[len(families)].append(set(row.topk(len(families)).indices.tolist()) == families)
    return {"single": float(np.mean(right[1])), "pair": float(np.mean(right[2]))}


def save(folder: Path, network: ASTForAudioClassification) -> None:
    """In transformers' layout, in half precision."""
    network.half().save_pretrained(folder)
    EXTRACTOR.save_pretrained(folder)


def train_classifier(run: Run) -> None:
    """Write the network to classifier/model, and its accuracy to classifier/accuracy.json."""
    inputs, shares = stored_features(run), targets(range(CHUNK * CHUNKS))
    network = build()
    averaged = train(
        run,
        "classifier",
        network,
        lambda: classifier_loss(run, network, inputs, shares),
        steps=STEPS,
        rate=RATE_OF_LEARNING,
    )
    found = accuracy(averaged)
    folder = run.folder("classifier")
    save(folder / "model", averaged.cpu())
    with atomic_file(folder / "accuracy.json") as part:
        part.write_text(json.dumps(found) + "\n")
    print(
        f"held-out accuracy: {found['single']:.1%} of single sounds, {found['pair']:.1%} of pairs"
    )
