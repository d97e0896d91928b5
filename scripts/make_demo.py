"""Make the bundled demo model: every part of a bundle, tiny, with seeded random weights.

It makes noise, not sounds. It is there so that every path through the code, from a prompt to a
sound file, runs without a download. Running it again writes the same bytes: weights are drawn from
a seeded uniform distribution alone, whose arithmetic is exact on every machine.
"""

import argparse
import dataclasses
import math
from pathlib import Path

import torch
import transformers
from demo_text import clap_tokenizer, t5_tokenizer
from torch import Tensor, nn

from audiolitefocus import atomic, checkpoint
from audiolitefocus.config import (
    BundleConfig,
    ProjectionConfig,
    UNetConfig,
    VAEConfig,
    VocoderConfig,
)
from audiolitefocus.weights import open_safetensors, save_tensors

SEED = 0
WIDTH = 64  # of the three text towers
VOCODER_GAIN = 3.0  # of the last convolution, for noise at a comfortable level
FOLDER = Path(__file__).resolve().parents[1] / "weights" / "demo"

CARD = """\
# The demo model

A tiny model with every part of AudioLDM2's design, bundled so that audiolitefocus can be tried and
tested without a download. **Its weights are random: whatever the prompt, it makes noise.** For
sounds that follow a prompt, convert a trained checkpoint (see `weights/README.md`).

| part | numbers stored |
|---|---|
{rows}

- Made by `scripts/make_demo.py` from seed {seed}; running it again gives the same files.
- No data was used. The two tokenizers were fitted to the sound descriptions of
  `scripts/demo_text.py`.
- Weights are stored in half precision, {megabytes:.1f} MB in all.
- Licence: Apache-2.0, as the rest of the repository.
"""


def demo_config() -> BundleConfig:
    """AudioLDM2's geometry (16 kHz, 64 mel bins, 4x VAE, 16 latent rows) in narrow networks."""
    return BundleConfig(
        name="demo",
        unet=UNetConfig(
            channels=(32, 32, 64, 64), heads=(1, 1, 2, 2), resnets=1, loa_dim=WIDTH, t5_dim=WIDTH
        ),
        vae=VAEConfig(channels=(32, 32, 32), resnets=1),
        vocoder=VocoderConfig(initial_channels=96),
        projection=ProjectionConfig(clap_dim=WIDTH, t5_dim=WIDTH, loa_dim=WIDTH),
        trained_seconds=2.56,
        provenance={
            "source": "scripts/make_demo.py",
            "seed": SEED,
            "note": "random weights: the model makes noise, whatever the prompt",
        },
    )


def random_tensor(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Uniform with the variance of 1 / fan-in, so that signals keep their size through layers."""
    bound = math.sqrt(3 * shape[0] / shape.numel())
    return (2 * torch.rand(shape, generator=generator) - 1) * bound


def random_network(
    name: str, config: BundleConfig, generator: torch.Generator
) -> dict[str, Tensor]:
    """Half-precision weights of one of our networks. Scales and edge tokens are 1, biases 0."""
    tensors = {}
    for key, tensor in checkpoint.build(name, config).state_dict().items():
        if tensor.ndim > 1:
            tensors[key] = random_tensor(tensor.shape, generator)
        else:
            tensors[key] = torch.full(tensor.shape, 0.0 if key.endswith("bias") else 1.0)
    if name == "vocoder":
        last = tensors["conv_post.weight"]
        tensors["conv_post.weight"] = VOCODER_GAIN * (last - last.mean(-1, keepdim=True))  # no DC
    return {key: tensor.half() for key, tensor in tensors.items()}


def randomize(tower: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw a tower's matrices anew; its vectors keep the values they were built with."""
    for parameter in tower.parameters():
        if parameter.ndim > 1:
            parameter.data = random_tensor(parameter.shape, generator)
    return tower


def clap_tower(vocabulary: int) -> transformers.ClapModel:
    """A CLAP of the usual make: RoBERTa for text, HTSAT for 10 s of sound at 48 kHz."""
    text = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    audio = {
        "patch_embeds_hidden_size": WIDTH // 8,
        "hidden_size": WIDTH,  # after the three doublings between four stages
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
    }
    return transformers.ClapModel(
        transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=WIDTH)
    )


def t5_tower(vocabulary: int) -> transformers.T5EncoderModel:
    return transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=vocabulary,
            d_model=WIDTH,
            d_kv=32,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def gpt2_tower() -> transformers.GPT2Model:
    """It reads embeddings and writes hidden states, so one row of token embeddings is enough."""
    return transformers.GPT2Model(
        transformers.GPT2Config(
            vocab_size=1,
            bos_token_id=0,
            eos_token_id=0,
            n_positions=256,
            n_embd=WIDTH,
            n_layer=2,
            n_head=2,
        )
    )


def save_tower(folder: Path, tower: nn.Module, *extras) -> None:
    """A text tower in half precision, with its tokenizer and what else goes beside it."""
    tower.half().save_pretrained(folder)
    for extra in extras:
        extra.save_pretrained(folder)


def write_towers(folder: Path, generator: torch.Generator) -> None:
    tokenizer = clap_tokenizer()
    tower = randomize(clap_tower(len(tokenizer)), generator)
    save_tower(folder / "clap", tower, tokenizer, transformers.ClapFeatureExtractor())
    tokenizer = t5_tokenizer()
    tower = randomize(t5_tower(len(tokenizer)), generator)
    save_tower(folder / "t5", tower, tokenizer)
    save_tower(folder / "gpt2", randomize(gpt2_tower(), generator))


def model_card(folder: Path) -> str:
    """The README of a bundle without its config, with the size of every part."""
    rows, size = [], 0
    for path in sorted(folder.rglob("*.safetensors")):
        with open_safetensors(path) as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]
        name = checkpoint.bundle_name(path).removesuffix("/model.safetensors").split(".")[0]
        rows.append(f"| {name} | {sum(map(math.prod, shapes)):,} |")
        size += path.stat().st_size
    return CARD.format(rows="\n".join(rows), seed=SEED, megabytes=size / 1e6)


def make_demo(destination: Path) -> None:
    """Write the bundle to `destination`, in place of what was there."""
    config = demo_config()
    generator = torch.Generator().manual_seed(SEED)
    with atomic.atomic_folder(destination, force=True) as folder:
        for name in checkpoint.COMPONENTS:
            tensors = random_network(name, config, generator)
            save_tensors(folder / f"{name}.safetensors", tensors)
        write_towers(folder, generator)
        weights = sorted(folder.rglob("*.safetensors"))
        files = {checkpoint.bundle_name(path): checkpoint.sha256(path) for path in weights}
        config = dataclasses.replace(config, files=files)
        (folder / "config.json").write_text(config.to_json(), encoding="utf-8")
        (folder / "README.md").write_text(model_card(folder), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the bundled demo model.")
    parser.add_argument("destination", nargs="?", type=Path, default=FOLDER)
    transformers.logging.disable_progress_bar()
    make_demo(parser.parse_args().destination)
