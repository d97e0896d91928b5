"""Files of prompts: a line, or an entry of a JSON array, for each clip, with options of its own."""

import functools
import hashlib
import itertools
import json
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from audiolitefocus.audio.files import check_writable
from audiolitefocus.batch.names import check_name, key, slug
from audiolitefocus.batch.requests import ClipRequest, check_sources, prepare
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.options import SHORT, GenerationOptions
from audiolitefocus.validation import check_texts, parse_object, shown

EXPECTED = 'TEXT, TEXT|NAME or {"prompt": TEXT}'


@dataclass(frozen=True)
class Entry:
    """A clip as a file of prompts asks for it.

    Attributes:
        where: in the file, for messages.
        name: of the sound file as it was given, or None.
        options: of this clip.
        repeat: how many entries before have the same prompt.
    """

    where: str
    prompt: str
    name: str | None
    options: GenerationOptions
    repeat: int


def read_prompts(
    file: Path, folder: Path, options: GenerationOptions, *, bits: int | None = None
) -> list[ClipRequest]:
    """The clips of a file of prompts, to be written into a folder, which is made if need be.

    A line is TEXT, or TEXT|NAME, or a JSON object: {"prompt": TEXT, "name": NAME, ...} with any
    option, by either of its names, for this clip alone. Blank lines and lines that start with # are
    skipped. Or the file is one JSON array of texts and such objects. Recordings are named relative
    to the current folder. Given names are kept, .wav unless they end otherwise; names made from
    prompts get a number where they are taken.

    Args:
        options: of entries that do not say otherwise. Without a seed, one is made from the text:
            the same whenever the file is read, and another one where a text is repeated.
        bits: a sample of every sound file, as in `audio.files.write_sound`.

    Raises:
        ValueError, OSError: an invalid entry, by its number; a name that no file can have, or that
            two ask for; a folder that cannot be written to.
    """
    entries = _entries(file, options)
    if not entries:
        raise ValueError(f"{file} holds no prompts")
    # Given names first: one that is made from a prompt can be another.
    taken: dict[str, str] = {}
    names = {}
    for entry in sorted(entries, key=lambda entry: entry.name is None):
        with _located(file, entry.where):
            names[entry.where] = name = _file_name(entry, taken)
            taken[key(Path(name).stem)] = entry.where
    clips, digest = [], functools.cache(sha256)
    for entry in entries:
        with _located(file, entry.where):
            path = folder / names[entry.where]
            clips.append(prepare(entry.prompt, path, entry.options, digest, bits=bits))
    check_sources(clips)
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
    return clips


def _entries(file: Path, options: GenerationOptions) -> list[Entry]:
    entries: list[Entry] = []
    repeats: Counter[str] = Counter()
    for where, raw in _raw_entries(file):
        with _located(file, where):
            prompt, name, changes = parse_line(raw) if isinstance(raw, str) else parse_entry(raw)
            chosen = GenerationOptions.make(options, changes, called=SHORT)
            if chosen.seed is None:
                chosen = replace(chosen, seed=_seed_of(prompt, repeats[prompt]))
            entries.append(Entry(where, prompt, name, chosen, repeats[prompt]))
            repeats[prompt] += 1
    return entries


def _raw_entries(file: Path) -> Iterator[tuple[str, str | dict]]:
    """Lines with something in them, or objects of a JSON array; and where each of them is."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not a text file in UTF-8") from None
    if (array := _array(text)) is not None:
        yield from (
            (f"entry {number}", {"prompt": entry} if isinstance(entry, str) else entry)
            for number, entry in enumerate(array, 1)
        )
        return
    comments = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            comments.append(number)
        elif line.strip():
            yield f"line {number}", line.strip()
    if comments:
        lines = f"line {comments[0]}" if len(comments) == 1 else f"{len(comments)} lines"
        warnings.warn(
            f'{file}: {lines} starting with # skipped; a prompt that does is written {{"prompt": '
            f'"# ..."}}',
            stacklevel=2,
        )


def _array(text: str) -> list | None:
    """A text's JSON array; None if it is none, as "[rain] on a roof" is not."""
    if not text.lstrip().startswith("["):
        return None
    try:
        data = parse_object(f'{{"entries": {text}}}')["entries"]
    except ValueError:
        return None
    return data if isinstance(data, list) else None


def parse_line(line: str) -> tuple[str, str | None, dict]:
    """Prompt, name if there is one, and the options of this line alone. Raises ValueError."""
    if line.startswith("{"):
        return parse_entry(parse_object(line))
    prompt, bar, name = line.rpartition("|") if "|" in line else (line, "", None)
    return parse_entry({"prompt": prompt, **({"name": name.strip()} if name is not None else {})})


def parse_entry(entry: object) -> tuple[str, str | None, dict]:
    """The same of a JSON object."""
    if not isinstance(entry, dict):
        raise ValueError(f"expected a text or an object, got {shown(entry)}")
    changes = dict(entry)
    prompt, name = changes.pop("prompt", ""), changes.pop("name", None)
    for text in (prompt, "no name" if name is None else name):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"expected {EXPECTED}, got {shown(json.dumps(entry))}")
    check_texts("prompt", prompt, empty=False)
    return prompt.strip(), name, changes


@contextmanager
def _located(file: Path, where: str) -> Iterator[None]:
    """A block whose ValueErrors say where in the file they arose."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}, {where}: {error}") from None


def _seed_of(prompt: str, repeat: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{repeat} {prompt}".encode()).digest()[:4], "big")


def _file_name(entry: Entry, taken: dict[str, str]) -> str:
    """A name that is not taken. Raises ValueError for a given one that is, or is not allowed."""
    if entry.name is not None:
        name = check_name(entry.name)
        if other := taken.get(key(Path(name).stem)):
            raise ValueError(f"name {entry.name!r} is taken by {other}, on some systems or on all")
        return name
    stem = f"{slug(entry.prompt)}-{entry.options.seed}"
    numbers = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    return next(f"{name}.wav" for name in numbers if key(name) not in taken)
