"""Files of prompts: a line each, with options of its own if need be."""

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from audiolitefocus.audio.files import SOUND_SUFFIXES, check_writable
from audiolitefocus.batch.clips import ClipRequest, prepare, slug
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.options import SHORT, GenerationOptions
from audiolitefocus.validation import parse_object, shown


def read_prompts(file: Path, folder: Path, options: GenerationOptions) -> list[ClipRequest]:
    """The clips of a file of prompts, to be written into a folder, which is made if need be.

    A line is TEXT, or TEXT|NAME, or a JSON object: {"prompt": TEXT, "name": NAME, ...} with any
    option, by either of its names, for this clip alone. Blank lines and lines that start with # are
    skipped. Sound files are named relative to the current folder. Names become safe file names,
    .wav unless they end otherwise.

    Args:
        options: of lines that do not say otherwise. Without a seed, a line's seed is made from its
            text: the same whenever the file is read, and another one where a text is repeated.

    Raises:
        ValueError, OSError: an invalid line, by its number; a folder that cannot be written to.
    """
    clips: dict[str, ClipRequest] = {}
    digest = functools.cache(sha256)
    repeats: Counter[str] = Counter()
    for number, line in _lines(file):
        try:
            prompt, name, changes = parse_line(line)
            chosen = GenerationOptions.make(options, changes, called=SHORT)
            if chosen.seed is None:
                chosen = replace(chosen, seed=_seed_of(prompt, repeats[prompt]))
            path = folder / _file_name(prompt, name, chosen.seed)
            # by stem: the JSON files beside a.wav and a.flac would be the same
            if path.stem in clips:
                raise ValueError(f"{path.stem} is taken already; name it: TEXT|NAME")
            clips[path.stem] = prepare(prompt, path, chosen, digest)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
        repeats[prompt] += 1
    if not clips:
        raise ValueError(f"{file} holds no prompts")
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
    return list(clips.values())


def parse_line(line: str) -> tuple[str, str | None, dict]:
    """Prompt, name if there is one, and the options of this line alone. Raises ValueError."""
    changes: dict = {}
    if line.startswith("{"):
        changes = parse_object(line)
        prompt, name = changes.pop("prompt", ""), changes.pop("name", None)
    else:
        prompt, bar, name = line.rpartition("|") if "|" in line else (line, "", None)
    for text in (prompt, "no name" if name is None else name):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f'expected TEXT, TEXT|NAME or {{"prompt": TEXT}}, got {shown(line)}')
    return prompt.strip(), name, changes


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines with something in them, and their numbers."""
    try:
        with open(file, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip() and not line.lstrip().startswith("#"):
                    yield number, line.strip()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not a text file in UTF-8") from None


def _seed_of(prompt: str, repeat: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{repeat} {prompt}".encode()).digest()[:4], "big")


def _file_name(prompt: str, name: str | None, seed: int | None) -> str:
    if name is None:
        return f"{slug(prompt)}-{seed}.wav"
    suffix = Path(name).suffix.lower()
    if suffix in SOUND_SUFFIXES:
        return slug(name[: -len(suffix)]) + suffix
    return slug(name) + ".wav"
