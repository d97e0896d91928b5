"""CLAP, T5 and GPT-2 of an original checkpoint: settings inferred from shapes, CLAP's key table.

T5 and GPT-2 are transformers' own modules there too. What shapes do not tell is as in the networks
that the authors built on: RoBERTa-base, HTSAT-base, flan-t5-large and GPT-2.
"""

from typing import Any

from audiolitefocus.checkpoints.convert.mapping import compose
from audiolitefocus.checkpoints.convert.original_config import Shapes
from audiolitefocus.checkpoints.convert.shared import take_third

TEXT_HEAD_WIDTH = 64  # channels of an attention head in RoBERTa and GPT-2

# Leaf tables: transformers' module (or parameter) -> LAION's.
ROBERTA = {
    name: name
    for name in (
        *(f"embeddings.{kind}_embeddings" for kind in ("word", "position", "token_type")),
        *("embeddings.LayerNorm", "pooler.dense"),
    )
}
ROBERTA_LAYER = {
    name: name
    for name in (
        *(f"attention.self.{name}" for name in ("query", "key", "value")),
        *("attention.output.dense", "attention.output.LayerNorm"),
        *("intermediate.dense", "output.dense", "output.LayerNorm"),
    )
}
CLAP = {
    "logit_scale_a": "logit_scale_a",
    "logit_scale_t": "logit_scale_t",
    "text_projection.linear1": "text_projection.0",
    "text_projection.linear2": "text_projection.2",
    "audio_projection.linear1": "audio_projection.0",
    "audio_projection.linear2": "audio_projection.2",
}
HTSAT = {
    "patch_embed.proj": "patch_embed.proj",
    "patch_embed.norm": "patch_embed.norm",
    "batch_norm": "bn0",
    "norm": "norm",
}
HTSAT_BLOCK = {  # query, key and value are stacked, and CLAP_EDITS takes them apart
    "layernorm_before": "norm1",
    "attention.self.query": "attn.qkv",
    "attention.self.key": "attn.qkv",
    "attention.self.value": "attn.qkv",
    "attention.self.relative_position_bias_table": "attn.relative_position_bias_table",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
HTSAT_STEP = {"reduction": "reduction", "norm": "norm"}
CLAP_EDITS = {
    "audio_model.*.attention.self.query.*": take_third(0),
    "audio_model.*.attention.self.key.*": take_third(1),
    "audio_model.*.attention.self.value.*": take_third(2),
}


def clap_modules(clap: Any) -> dict[str, str]:
    """transformers' modules -> LAION's, by transformers' config."""
    audio, theirs = "audio_model.audio_encoder", "audio_branch"
    blocks = [
        ("", "", CLAP),
        ("text_model", "text_branch", ROBERTA),
        (audio, theirs, HTSAT),
        *(
            (f"text_model.encoder.layer.{i}", f"text_branch.encoder.layer.{i}", ROBERTA_LAYER)
            for i in range(clap.text_config.num_hidden_layers)
        ),
    ]
    for stage, depth in enumerate(clap.audio_config.depths):
        here, there = f"{audio}.layers.{stage}", f"{theirs}.layers.{stage}"
        blocks.append((f"{here}.downsample", f"{there}.downsample", HTSAT_STEP))
        blocks += [(f"{here}.blocks.{i}", f"{there}.blocks.{i}", HTSAT_BLOCK) for i in range(depth)]
    return compose(*blocks)


def settings_from_shapes(name: str, shapes: Shapes) -> dict:
    """The entries of transformers' config.json of a tower."""
    return {"clap": _clap, "t5": _t5, "gpt2": _gpt2}[name](shapes)


def _clap(shapes: Shapes) -> dict:
    return {
        "model_type": "clap",
        "projection_dim": shapes.size("text_projection.0.weight", 0),
        "text_config": _roberta(shapes, "text_branch"),
        "audio_config": _htsat(shapes, "audio_branch"),
    }


def _roberta(shapes: Shapes, at: str) -> dict:
    tables = f"{at}.embeddings.{{}}_embeddings.weight"
    width = shapes.size(tables.format("word"), 1)
    return {
        "model_type": "clap_text_model",
        "vocab_size": shapes.size(tables.format("word"), 0),
        "max_position_embeddings": shapes.size(tables.format("position"), 0),
        "type_vocab_size": shapes.size(tables.format("token_type"), 0),
        "hidden_size": width,
        "num_hidden_layers": shapes.count(at + ".encoder.layer.{}.output.dense.weight"),
        "num_attention_heads": max(width // TEXT_HEAD_WIDTH, 1),
        "intermediate_size": shapes.size(f"{at}.encoder.layer.0.intermediate.dense.weight", 0),
        "layer_norm_eps": 1e-5,  # RoBERTa's, as trained; transformers' CLAP has 1e-12 by default
        "pad_token_id": 1,
    }


def _htsat(shapes: Shapes, at: str) -> dict:
    stages = shapes.count(at + ".layers.{}.blocks.0.norm1.weight")
    blocks = [f"{at}.layers.{stage}.blocks" for stage in range(stages)]
    table = "0.attn.relative_position_bias_table"  # ((2 window - 1)^2, heads)
    patches = shapes.size(f"{at}.patch_embed.proj.weight", 0)
    return {
        "model_type": "clap_audio_model",
        "num_mel_bins": shapes.size(f"{at}.bn0.weight", 0),
        "patch_size": shapes.size(f"{at}.patch_embed.proj.weight", 2),
        "patch_stride": [4, 4],
        "patch_embeds_hidden_size": patches,
        "hidden_size": shapes.size(f"{at}.norm.weight", 0),
        "depths": [shapes.count(block + ".{}.norm1.weight") for block in blocks],
        "num_attention_heads": [shapes.size(f"{block}.{table}", 1) for block in blocks],
        "window_size": (round(shapes.size(f"{at}.layers.0.blocks.{table}", 0) ** 0.5) + 1) // 2,
        "mlp_ratio": shapes.size(f"{at}.layers.0.blocks.0.mlp.fc1.weight", 0) / patches,
        "enable_fusion": False,
    }


def _t5(shapes: Shapes) -> dict:
    first = "encoder.block.0.layer.0.SelfAttention"
    heads = shapes.size(f"{first}.relative_attention_bias.weight", 1)
    return {
        "model_type": "t5",
        "vocab_size": shapes.size("shared.weight", 0),
        "d_model": shapes.size("shared.weight", 1),
        "d_kv": shapes.size(f"{first}.q.weight", 0) // heads,
        "d_ff": shapes.size("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 0),
        "num_heads": heads,
        "num_layers": shapes.count(f"{first}.q.weight".replace("0", "{}", 1)),
        "relative_attention_num_buckets": shapes.size(f"{first}.relative_attention_bias.weight", 0),
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu",
        "layer_norm_epsilon": 1e-6,
    }


def _gpt2(shapes: Shapes) -> dict:
    width = shapes.size("wte.weight", 1)
    return {
        "model_type": "gpt2",
        "vocab_size": shapes.size("wte.weight", 0),
        "n_positions": shapes.size("wpe.weight", 0),
        "n_embd": width,
        "n_head": max(width // TEXT_HEAD_WIDTH, 1),
        "n_layer": shapes.count("h.{}.ln_1.weight"),
        "n_inner": shapes.size("h.0.mlp.c_fc.weight", 1),
        "bos_token_id": shapes.size("wte.weight", 0) - 1,
        "eos_token_id": shapes.size("wte.weight", 0) - 1,
    }
