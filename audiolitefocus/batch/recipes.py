"""Recipes: the JSON beside a clip, and in its tags, that says how to make it again."""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from audiolitefocus import __version__
from audiolitefocus.attention.settings import attention_text
from audiolitefocus.audio.formats import BITS, COMMENT_BYTES, read_comment, sound_format
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.checkpoints.towers import transformers_version
from audiolitefocus.config import MODELS, BundleConfig
from audiolitefocus.lora import PREFIX, is_adapter
from audiolitefocus.options import DEFAULTS, NAMES, GenerationOptions
from audiolitefocus.output import AudioOutput
from audiolitefocus.parallel.settings import parallel_text
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.runtime import DTYPES
from audiolitefocus.validation import check_not_pointer, parse_object, shown

REQUIRED = {"prompt", "versions"}  # by which a recipe of this program is known
# What a recording is used for: a new recording takes the place of all of it.
RECORDING = ("init_audio", "strength", "inpaint", "continue_audio", "refresh")
NO_DRAFTER = {"drafter": None, "drafter_files": None}  # what recipes of older versions mean


def describe_pipeline(pipe: AudioLDM2Pipeline, output: AudioOutput) -> dict:
    """What a recipe says of how a clip was made, besides what was asked for."""
    return {
        "attention_ran": attention_text(output.attention),
        "parallel_ran": parallel_text(output.parallel),
        "scores": None if output.scores is None else output.scores.tolist(),
        "sampling_rate": output.sampling_rate,
        "dtype": str(pipe.unet.conv_in.weight.dtype).removeprefix("torch."),
        "device": pipe.device.type,
        "versions": {
            "audiolitefocus": __version__,
            "torch": torch.__version__,
            "transformers": transformers_version,
        },
    }


def describe_drafter(drafter: BundleConfig) -> dict:
    """What a recipe says of the second model, as of the first one."""
    return {"drafter": drafter.name, "drafter_files": drafter.files}


def recipe_path(path: Path) -> Path:
    """The JSON file beside a sound file."""
    return path.with_suffix(".json")


def read_recipe(path: Path) -> dict:
    """A clip's recipe, the JSON beside it; empty if the file is absent or something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def to_comment(recipe: dict) -> str:
    """A recipe for the tags of a sound file; empty if it is too long for them.

    In ASCII, because libsndfile takes the text of an MP3 for Latin-1.
    """
    text = json.dumps(recipe, separators=(",", ":"))
    return text if len(text) <= COMMENT_BYTES else ""


def recipe_inside(path: Path) -> dict:
    """The recipe in the tags of a sound file; empty if there is none, or only some of it."""
    try:
        found = parse_object(read_comment(path))
    except (OSError, ValueError):  # no sound file, no JSON, or cut short
        return {}
    return found if REQUIRED <= found.keys() else {}


def is_recipe(found: dict) -> bool:
    """True for the JSON beside a clip, which says what its sound file is."""
    return found.keys() >= REQUIRED | {"sha256"}


def find_recipe(path: Path) -> dict:
    """The recipe of a clip: the JSON beside it if that belongs to it, else that in its tags.

    Args:
        path: of the sound file, or of a recipe itself.

    Raises:
        ValueError: no such file, or no recipe.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    check_not_pointer(path)
    if path.suffix == ".json":
        found = read_recipe(path)
        if not found.keys() >= REQUIRED:
            raise ValueError(f"{path} is no recipe of a clip")
        return found
    beside = read_recipe(recipe_path(path))
    if is_recipe(beside) and beside["sha256"] == sha256(path):
        return beside
    if inside := recipe_inside(path):
        return inside
    read_comment(path)  # raises ValueError for what is no sound file
    raise ValueError(
        f"{path} has no recipe: none in its tags, and no JSON beside it that belongs to it"
    )


def options_of(recipe: Mapping, changes: Mapping[str, object] = {}) -> dict[str, object]:
    """The options in a recipe, by field, with changes; `GenerationOptions.make` checks them.

    A change of the recording drops how the former one was used, and the clip's length with it.
    """
    options = {NAMES[name]: value for name, value in recipe.items() if name in NAMES}
    replaced = {"init_audio", "continue_audio"} & changes.keys()
    dropped: set[str] = {*RECORDING, "audio_length_in_s"} if replaced else set()
    return {**{n: v for n, v in options.items() if n not in dropped}, **changes}


def describe_recipe(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Lines for people: the prompt, options that are not the default, and how it was made."""
    yield f"prompt: {recipe['prompt']}"
    for name, value in recipe.items():
        if name in NAMES and value != DEFAULTS[NAMES[name]]:
            yield f"  {name}: {shown(value) if isinstance(value, list) else value}"
    yield f"model: {recipe.get('model', 'unknown')}"
    names = ("drafter", "recording_sha256", "attention_ran", "scores", "dtype", "device", "bits")
    for name in names:
        if recipe.get(name) is not None:
            yield f"  {name}: {recipe[name]}"
    versions = recipe["versions"]
    if isinstance(versions, dict):
        yield f"made with {', '.join(f'{name} {version}' for name, version in versions.items())}"


def model_in(recipe: Mapping, path: Path) -> str:
    """The name of a recipe's model, if it is one of `config.MODELS`. Raises ValueError if not.

    A converted folder lies wherever it lies; and what anybody's sound file names is not downloaded.
    """
    return _known_model(recipe.get("model"), "model", path)


def drafter_in(recipe: Mapping, path: Path) -> str | None:
    """The same of its drafter; None if it has none."""
    name = recipe.get("drafter")
    return None if name is None else _known_model(name, "drafter", path)


def _known_model(name: object, flag: str, path: Path) -> str:
    known = {*MODELS, *(spec.repo for spec in MODELS.values() if spec.repo)}
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"{path} was made with the {flag} {shown(name)}: give it as --{flag}, a folder or a "
            f"hub repository OWNER/NAME"
        )
    return name


def check_adapters(recipe: Mapping, pipe: AudioLDM2Pipeline, path: Path) -> None:
    """Raise ValueError if the clip was made with adapters that the pipeline does not have.

    A recipe names them, and not where they lie.
    """
    files = recipe.get("model_files")
    known = files.items() if isinstance(files, dict) else ()
    if lacking := {
        name
        for name, digest in known
        if is_adapter(name) and (name, digest) not in pipe.config.files.items()
    }:
        names = ", ".join(sorted(name.removeprefix(PREFIX) for name in lacking))
        raise ValueError(f"{path} was made with the adapter {names}: give --lora FOLDER:SCALE")


def warn_of_changes(
    recipe: Mapping,
    pipe: AudioLDM2Pipeline,
    drafter: AudioLDM2Pipeline | None,
    recording_sha256: str | None,
) -> None:
    """Warn if what a recipe names by the same name is something else by now."""
    for kind, used in {"model": pipe, "drafter": drafter}.items():
        if used is None or recipe.get(kind) != used.config.name:
            continue
        if recipe.get(f"{kind}_files") != used.config.files:
            warnings.warn(f"the weights of {used.config.name} are others than then", stacklevel=2)
    before = recipe.get("recording_sha256")
    if before and recording_sha256 and before != recording_sha256:
        warnings.warn("the recording is another than then", stacklevel=2)


def bits_in(recipe: Mapping, path: Path | None = None) -> int | None:
    """Bits a sample of a recipe's file; None if it says none, or `path` has no such format."""
    bits = recipe.get("bits")
    known = bits in BITS and (path is None or bits in sound_format(path).subtypes)
    return bits if known else None


def dtype_in(recipe: Mapping) -> str:
    """The dtype of a recipe's networks, or "auto" where it does not say."""
    dtype = recipe.get("dtype")
    return dtype if isinstance(dtype, str) and dtype in DTYPES else "auto"


def made_options(recipe: Mapping) -> GenerationOptions | None:
    """The options of a recipe, of older versions too; None if they are invalid."""
    try:
        return GenerationOptions.make(None, {n: v for n, v in recipe.items() if n in NAMES})
    except (ValueError, TypeError):
        return None
