"""The text towers, which are transformers' own: CLAP, T5's encoder and GPT-2's trunk.

With `convert`, which needs their configs, this is the only file that imports transformers.
"""

from pathlib import Path
from typing import Any

import torch
import transformers

TOWERS = ("clap", "t5", "gpt2")
transformers_version: str = transformers.__version__


def tower_class(name: str):
    """The transformers class of a tower: "clap", "t5" or "gpt2"."""
    return {
        "clap": transformers.ClapModel,
        "t5": transformers.T5EncoderModel,
        "gpt2": transformers.GPT2Model,
    }[name]


def load_tower(folder: Path, name: str) -> Any:
    """One text tower of a bundle, float32, in eval mode. Raises ValueError unless its weights fit
    exactly.
    """
    path = Path(folder) / name
    if not (path / "model.safetensors").is_file():
        raise ValueError(f"{path / 'model.safetensors'}: no such file")
    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, report = tower_class(name).from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (
        Exception
    ) as error:  # transformers and safetensors raise many kinds, of whatever a damaged file causes
        raise ValueError(f"{path} cannot be loaded: {_first_line(error)}") from None
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()
    problems = {kind: keys for kind, keys in report.items() if keys}
    if problems:
        raise ValueError(f"{path / 'model.safetensors'} does not fit its config: {problems}")
    return model.eval().requires_grad_(False)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_tokenizer(folder: Path, name: str):
    """The tokenizer of "clap" or "t5". Raises ValueError that says how to supply one that is
    missing.
    """
    path = Path(folder) / name
    if not (path / "tokenizer_config.json").is_file():
        raise ValueError(
            f"{path} has no tokenizer, so prompts cannot be read: convert again with --tokenizers "
            f"FOLDER, a folder with clap/ and t5/ tokenizers, or where the hub can be reached"
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # as above
        raise ValueError(f"{path}: the tokenizer cannot be loaded: {_first_line(error)}") from None


def load_feature_extractor(folder: Path):
    """What turns 48 kHz waveforms into CLAP's input. Raises ValueError where it is missing."""
    try:
        return transformers.ClapFeatureExtractor.from_pretrained(
            Path(folder) / "clap", local_files_only=True
        )
    except Exception as error:  # as above
        raise ValueError(f"{folder}/clap: no feature extractor: {_first_line(error)}") from None
