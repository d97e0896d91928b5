"""The text towers, transformers' own networks: CLAP, T5's encoder and GPT-2's trunk.

With the converter, which uses it, this is the only file that imports transformers. Bundles may come
from anywhere: configs are compared with the weights file before anything of their size is
allocated, and nothing in them can make transformers run code.
"""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from audiolitefocus.checkpoints.bundle import TOWERS, check_sha256, load_component
from audiolitefocus.checkpoints.limits import mismatches
from audiolitefocus.checkpoints.tensors import check_tensors, open_safetensors
from audiolitefocus.config import BundleConfig
from audiolitefocus.models.text_encoder import TextEncoder
from audiolitefocus.validation import Number, check_rule, read_json, shown

transformers_version: str = transformers.__version__

MAX_NUMBER = 1 << 20  # in a tower's config: more than any vocabulary has tokens
MAX_SPECTROGRAM = 1 << 12  # rows of CLAP's input, which no weight's shape depends on
FEATURE_EXTRACTOR_LIMITS = {  # as far as memory depends on it; CLAP was trained at 48 kHz
    "sampling_rate": Number(48000, 48000),
    "max_length_s": Number(1, 60),
    "nb_max_samples": Number(48000, 60 * 48000),
    "feature_size": Number(1, 1 << 9),
    "fft_window_size": Number(16, 1 << 13),
    "hop_length": Number(16, 1 << 13),
}
# What a config could ask of transformers beyond a network: quantisers, and code from the hub.
REQUESTS = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config")


def tower_class(name: str):
    """The transformers class of a tower: "clap", "t5" or "gpt2"."""
    return {
        "clap": transformers.ClapModel,
        "t5": transformers.T5EncoderModel,
        "gpt2": transformers.GPT2Model,
    }[name]


def transformers_config(name: str, settings: Mapping, tensors: int) -> Any:
    """transformers' config of a tower, from a config.json.

    Args:
        tensors: in the weights file; a tower with more layers than that is refused.

    Raises:
        ValueError: an invalid config, or absurd sizes.
    """
    settings = without(settings, REQUESTS)
    _check_numbers("config", settings, MAX_NUMBER)
    if isinstance(audio := settings.get("audio_config"), dict):
        _check_numbers("spec_size", audio.get("spec_size"), MAX_SPECTROGRAM)
    cls = tower_class(name)
    try:
        config = cls.config_class.from_dict(settings)
        layers = _layers(name, config)
    except Exception as error:  # transformers validates with many kinds of error
        raise ValueError(f"no {cls.__name__} has this config: {_first_line(error)}") from None
    if layers > tensors:
        raise ValueError(f"{layers} layers, but the weights are {tensors} tensors")
    return config


def tower_state(name: str, config: Any) -> dict[str, Tensor]:
    """A tower's weights on the meta device: names, shapes and dtypes. Raises ValueError."""
    cls = tower_class(name)
    try:
        with torch.device("meta"):
            state = cls(config).state_dict()
    except Exception as error:  # as above
        raise ValueError(f"no {cls.__name__} can be built of it: {_first_line(error)}") from None
    state.pop("encoder.embed_tokens.weight", None)  # T5's second name for shared.weight
    return state


def _layers(name: str, config: Any) -> int:
    if name == "clap":
        return config.text_config.num_hidden_layers + sum(config.audio_config.depths)
    return config.num_hidden_layers  # GPT-2's n_layer and T5's num_layers too


def without(settings: Mapping, names: Collection[str]) -> dict:
    """A config without the entries of these names, those of configs inside it included."""
    return {
        key: without(value, names) if isinstance(value, dict) else value
        for key, value in settings.items()
        if key not in names
    }


def _check_numbers(name: str, settings: object, largest: int) -> None:
    """Raise ValueError for a number below 0 or beyond `largest` anywhere in parsed JSON."""
    # -1 heads of -64 channels would fit the shapes. Only tokens have ids below 0, as "none".
    least = -1 if name.endswith("_id") else 0
    if isinstance(settings, (int, float)) and not least <= settings <= largest:
        raise ValueError(f"{name} = {shown(settings)}: must lie in {least} to {largest}")
    if isinstance(settings, dict):
        for key, value in settings.items():
            _check_numbers(shown(key).strip("'"), value, largest)
    if isinstance(settings, list):
        for value in settings:
            _check_numbers(name, value, largest)


def load_tower(folder: Path, name: str) -> Any:
    """One text tower of a bundle, float32, in eval mode. Raises ValueError unless all keys fit."""
    # 1. Compare config and weights, before anything is allocated
    path, weights = Path(folder) / name, Path(folder) / name / "model.safetensors"
    with open_safetensors(weights) as file:
        settings = read_json(path / "config.json")
        try:
            config = transformers_config(name, settings, len(file.keys()))
            state = tower_state(name, config)
        except ValueError as error:
            raise ValueError(f"{path / 'config.json'}: {error}") from None
        check_tensors(weights, file, state)
    # 2. Load, without transformers' warnings and progress bars
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, report = tower_class(name).from_pretrained(
            path,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # a damaged file makes transformers raise many kinds
        raise ValueError(f"{path} cannot be loaded: {_first_line(error)}") from None
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
    # 3. Check that no key was left over
    problems = {kind: keys for kind, keys in report.items() if keys}
    if problems:
        raise ValueError(f"{weights} does not fit its config: {problems}")
    return model.eval().requires_grad_(False)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_tokenizer(folder: Path, name: str):
    """The tokenizer of "clap" or "t5". Raises ValueError that says how to supply a missing one."""
    path = Path(folder) / name
    if not (path / "tokenizer_config.json").is_file():
        raise ValueError(
            f"{path} has no tokenizer, so prompts cannot be read: convert again with --tokenizers "
            f"FOLDER, a folder with clap/ and t5/ tokenizers, or where the hub can be reached"
        )
    read_json(path / "tokenizer_config.json")
    try:
        return transformers.AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False
        )
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # as above; a panic in Rust is not even an Exception
        raise ValueError(f"{path}: the tokenizer cannot be loaded: {_first_line(error)}") from None


def load_feature_extractor(folder: Path):
    """What makes CLAP's input of 48 kHz waveforms. Raises ValueError if missing or not CLAP's."""
    path = Path(folder) / "clap" / "preprocessor_config.json"
    settings = read_json(path)
    for name, rule in FEATURE_EXTRACTOR_LIMITS.items():
        if name in settings:
            check_rule(f"{path}: {name} =", settings[name], rule)
    try:
        return transformers.ClapFeatureExtractor.from_pretrained(path.parent, local_files_only=True)
    except Exception as error:  # as above
        raise ValueError(f"{path}: no feature extractor: {_first_line(error)}") from None


def text_positions(clap: Any) -> int:
    """Tokens that CLAP's text side can read: RoBERTa numbers positions after the padding's."""
    text = clap.text_config
    return text.max_position_embeddings - (text.pad_token_id or 0) - 1


def check_towers(config: BundleConfig, clap: Any, t5: Any, gpt2: Any, *, where: str) -> None:
    """Raise ValueError where the width or the length of a tower does not fit the bundle's config.

    Args:
        clap, t5, gpt2: transformers' configs.
        where: they come from, for messages.
    """
    # GPT-2 reads CLAP's token, T5's and four marks, and continues by its own.
    longest = config.text.t5_max_tokens + 5 + config.text.loa_tokens
    positions = text_positions(clap)
    if wrong := mismatches(
        ("CLAP's projection", clap.projection_dim, config.projection.clap_dim),
        ("T5", t5.d_model, config.projection.t5_dim),
        ("GPT-2", gpt2.n_embd, config.projection.loa_dim),
        ("CLAP's tokens", max(positions, config.text.clap_max_tokens), positions),
        ("GPT-2's tokens", max(gpt2.n_positions, longest), gpt2.n_positions),
    ):
        raise ValueError(f"{where}: the text towers do not fit the config: {wrong}")


def load_text_encoder(folder: Path, config: BundleConfig) -> TextEncoder:
    """The text side of a bundle, on the CPU; its tokenizers are loaded when first needed.

    Raises:
        ValueError: a tower that is missing, damaged, or does not fit the others.
    """
    folder = Path(folder)
    for name in TOWERS:
        check_sha256(folder / name / "model.safetensors", config)
    clap, t5, gpt2 = (load_tower(folder, name) for name in TOWERS)
    check_towers(config, clap.config, t5.config, gpt2.config, where=str(folder))
    return TextEncoder(
        clap,
        t5,
        gpt2,
        load_component(folder, "projection", dtype=torch.float32),
        config.text,
        partial(load_tokenizer, folder),
        partial(load_feature_extractor, folder),
    )
