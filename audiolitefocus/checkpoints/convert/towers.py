"""Weights files of the text towers (CLAP, T5, GPT-2) in transformers' layout, and their tokenizers.

Both layouts of a checkpoint end here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiolitefocus.checkpoints.convert.mapping import Edit, TargetFile, table_for
from audiolitefocus.checkpoints.towers import (
    tower_class,
    tower_state,
    transformers_config,
    without,
)

TOKENIZER_FILES = (
    *("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "tokenizer.model"),
)
TOKENIZER_REPOS = {"clap": "laion/clap-htsat-unfused", "t5": "google/flan-t5-large"}

DROPPED = {
    "clap": {
        "*position_ids": "0, 1, 2 …, computed",
        "*token_type_ids": "zeros, computed",
        "*relative_position_index": "computed from the window size",
    },
    "t5": {
        "shared.weight": "the token embedding, of which encoder.embed_tokens.weight is a copy",
        "encoder.embed_tokens.weight": "a copy of shared.weight",
    },
    "gpt2": {
        "lm_head.weight": "no token is predicted: hidden states are used",
        "h.*.attn.bias": "the causal mask",
        "h.*.attn.masked_bias": "the value of masked scores",
    },
}
# Settings that say where a config came from or how it was saved, not what the network is.
INCIDENTAL = (
    *("_name_or_path", "_commit_hash", "auto_map", "dtype", "torch_dtype", "transformers_version"),
)

FEATURE_EXTRACTOR = {  # of CLAP as trained: 10 s at 48 kHz, 64 mel bins, no fusion
    "feature_extractor_type": "ClapFeatureExtractor",
    "feature_size": 64,
    "sampling_rate": 48000,
    "hop_length": 480,
    "fft_window_size": 1024,
    "frequency_min": 50,
    "frequency_max": 14000,
    "max_length_s": 10,
    "padding": "repeatpad",
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
    "top_db": None,
    "truncation": "rand_trunc",
}


def tower_json(name: str, settings: Mapping) -> str:
    """The config.json of a tower, from transformers' or from settings inferred from shapes."""
    return to_json({**without(settings, INCIDENTAL), "architectures": [tower_class(name).__name__]})


def tower_config(name: str, settings: Mapping, tensors: Mapping[str, Tensor], where: str) -> Any:
    """transformers' config of a tower. Raises ValueError that names its file."""
    try:
        return transformers_config(name, without(settings, INCIDENTAL), len(tensors))
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


def tower_file(
    name: str,
    origin: str,
    tensors: Mapping[str, Tensor],
    config: Any,
    *,
    modules: Mapping[str, str] | None = None,
    edits: Mapping[str, Edit] | None = None,
    dropped: Mapping[str, str] | None = None,
) -> TargetFile:
    """The weights file of a tower. Without `modules` the source's names are transformers'.

    Raises:
        ValueError: transformers cannot build a tower of this config.
    """
    try:
        shapes = {key: tuple(t.shape) for key, t in tower_state(name, config).items()}
    except ValueError as error:
        raise ValueError(f"{origin}{error}") from None
    # transformers versions differ in whether these buffers are saved: they are always computed.
    computed = {key: _constant(key, shape) for key, shape in shapes.items()}
    constants = {key: tensor for key, tensor in computed.items() if tensor is not None}
    read = [key for key in shapes if key not in constants]
    table = {key: key for key in read} if modules is None else table_for(read, modules)
    if name == "t5" and "encoder.embed_tokens.weight" in tensors:  # loaded last, so it counts
        table["shared.weight"] = "encoder.embed_tokens.weight"
    return TargetFile(
        name=f"{name}/model.safetensors",
        origin=origin,
        tensors=tensors,
        shapes=shapes,
        table=table,
        edits=edits or {},
        dropped={**DROPPED[name], **(dropped or {})},
        constants=constants,
    )


def _constant(key: str, shape: tuple[int, ...]) -> Tensor | None:
    """A buffer of CLAP's that follows from its shape."""
    if key.endswith(".position_ids"):
        return torch.arange(shape[1])[None]
    if key.endswith(".token_type_ids"):
        return torch.zeros(shape, dtype=torch.long)
    if key.endswith(".relative_position_index"):
        return window_positions(round(shape[0] ** 0.5))
    return None


def window_positions(window: int) -> Tensor:
    """Swin's index (window^2, window^2) of the offset between two cells of a square window.

    Offsets are numbered row by row from the most negative one (Liu et al. 2021).
    """
    cells = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    rows, columns = (cells[:, None] - cells[None] + window - 1).unbind(-1)
    return rows * (2 * window - 1) + columns


def tokenizer_files(folder: Path, name: str) -> dict[str, Path]:
    """The tokenizer in `folder`, by the names of its files in a bundle; empty if there is none."""
    if not (folder / "tokenizer_config.json").is_file():
        return {}
    present = (folder / file for file in TOKENIZER_FILES)
    return {f"{name}/{path.name}": path for path in present if path.is_file()}


def to_json(data: dict) -> str:
    """Text that does not depend on the order of keys."""
    return json.dumps(data, indent=2, sort_keys=True) + "\n"
