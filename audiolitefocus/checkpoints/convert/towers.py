"""The text towers (CLAP, T5, GPT-2) in transformers' own layout: config, shapes, constants, and the
keys that are no weights. Both layouts of a checkpoint end here.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from audiolitefocus.checkpoints.convert.mapping import Edit, Part, table_for
from audiolitefocus.checkpoints.towers import tower_class, tower_state, transformers_config
from audiolitefocus.config import BundleConfig

TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
)
TOKENIZER_REPOS = {"clap": "laion/clap-htsat-unfused", "t5": "google/flan-t5-large"}

DROPPED = {
    "clap": {
        "*position_ids": "0, 1, 2 …, written afresh",
        "*token_type_ids": "zeros, written afresh",
        "*relative_position_index": "follows from the window size, written afresh",
    },
    "t5": {
        "shared.weight": "the token embedding, of which encoder.embed_tokens.weight is a copy",
        "encoder.embed_tokens.weight": "a copy of shared.weight",
    },
    "gpt2": {
        "lm_head.weight": "no token is predicted, hidden states are read",
        "h.*.attn.bias": "the causal mask",
        "h.*.attn.masked_bias": "what masked scores are filled with",
    },
}
# Settings that say where a config came from or how it was saved, not what the network is.
INCIDENTAL = ("_name_or_path", "_commit_hash", "auto_map", "dtype", "torch_dtype")

FEATURE_EXTRACTOR = {  # CLAP's ears as trained: 10 s at 48 kHz, 64 mel bins, no fusion
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


def tower_config(name: str, settings: Mapping) -> dict:
    """The config.json of a tower, from one of transformers' or from settings found in shapes."""
    config = _without_incidentals(settings)
    config.pop("transformers_version", None)
    return {**config, "architectures": [tower_class(name).__name__]}


def _without_incidentals(settings: Mapping) -> dict:
    return {
        key: _without_incidentals(value) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in INCIDENTAL
    }


def text_positions(clap: Mapping) -> int:
    """How many tokens CLAP's text side can read: RoBERTa's positions start after the padding's."""
    text = clap.get("text_config")
    numbers = {"max_position_embeddings": 514, "pad_token_id": 1}  # RoBERTa's
    for key in numbers:
        if isinstance(text, dict) and type(text.get(key)) is int:
            numbers[key] = text[key]
    return numbers["max_position_embeddings"] - numbers["pad_token_id"] - 1


def check_widths(config: BundleConfig, towers: Mapping[str, Mapping]) -> None:
    """Raise ValueError where one network's output is not as wide as the next one's input."""
    clap, t5, gpt2 = (towers[name] for name in ("clap", "t5", "gpt2"))
    joints = (
        ("CLAP's projection", clap.get("projection_dim", 512), config.projection.clap_dim),
        ("T5", t5.get("d_model", 512), config.projection.t5_dim),
        ("GPT-2", gpt2.get("n_embd", gpt2.get("hidden_size", 768)), config.projection.loa_dim),
    )
    wrong = [f"{what}: {one} against {other}" for what, one, other in joints if one != other]
    if wrong := [*wrong, *config.misfits()]:
        raise ValueError(f"the networks' widths do not fit together: {'; '.join(wrong)}")


def tower_part(
    name: str,
    origin: str,
    tensors: Mapping[str, Tensor],
    config: dict,
    *,
    modules: Mapping[str, str] | None = None,
    edits: Mapping[str, Edit] | None = None,
    dropped: Mapping[str, str] | None = None,
) -> Part:
    """The weights file of a tower. Without `modules` the source's names are transformers' own.

    Raises:
        ValueError: transformers cannot build a tower of this config.
    """
    shapes = _shapes(name, config, origin, tensors)
    computed = {key: _constant(key, shape) for key, shape in shapes.items()}
    constants = {key: tensor for key, tensor in computed.items() if tensor is not None}
    read = [key for key in shapes if key not in constants]
    table = {key: key for key in read} if modules is None else table_for(read, modules)
    if name == "t5" and "encoder.embed_tokens.weight" in tensors:  # loaded last, so it counts
        table["shared.weight"] = "encoder.embed_tokens.weight"
    return Part(
        file=f"{name}/model.safetensors",
        origin=origin,
        tensors=tensors,
        shapes=shapes,
        table=table,
        edits=edits or {},
        dropped={**DROPPED[name], **(dropped or {})},
        constants=constants,
    )


def _shapes(
    name: str, settings: dict, origin: str, tensors: Mapping[str, Tensor]
) -> dict[str, tuple[int, ...]]:
    try:
        state = tower_state(name, transformers_config(name, settings, len(tensors)))
    except ValueError as error:
        raise ValueError(f"{origin}{error}") from None
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


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
    """Swin's (Liu et al. 2021) index of the offset between any two cells of a square window.

    (window^2, window^2), offsets numbered row by row from the most negative.
    """
    cells = torch.cartesian_prod(torch.arange(window), torch.arange(window))
    rows, columns = (cells[:, None] - cells[None] + window - 1).unbind(-1)
    return rows * (2 * window - 1) + columns


def tokenizer_files(folder: Path, name: str) -> dict[str, Path]:
    """The tokenizer in `folder`, by the names it has in a bundle: empty if there is none."""
    if not (folder / "tokenizer_config.json").is_file():
        return {}
    present = (folder / file for file in TOKENIZER_FILES)
    return {f"{name}/{path.name}": path for path in present if path.is_file()}


def to_json(data: dict) -> str:
    return json.dumps(data, indent=2, sort_keys=True) + "\n"
