"""Files of prompts: a line, or an entry of a JSON array, for each clip, with options of its own."""

import functools
import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from audiolitefocus.audio.files import check_writable
from audiolitefocus.batch.names import check_name, key, slug
from audiolitefocus.batch.requests import ClipRequest, check_target, prepare
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.options import SHORT, GenerationOptions
from audiolitefocus.validation import check_texts, parse_object, shown

EXPECTED = 'TEXT, TEXT|NAME or {"prompt": TEXT}'
RECENT_RECORDINGS = 1024  # of whose files the digests are kept


@dataclass(frozen=True)
class Entry:
    """A clip as a file of prompts asks for it.

    Attributes:
        where: in the file, for messages.
        name: of the sound file as it was given, or None.
        options: of this clip, with a seed.
    """

    where: str
    prompt: str
    name: str | None
    options: GenerationOptions


class Notes:
    """What is kept of a file of prompts while it is read: here in memory, in `ledger` on disk.

    Attributes:
        entries: read so far, in order.
        names: key of a name -> which entry has it.
        numbers: key of a name made from a prompt -> the last number that it was given.
        repeats: prompt -> how many entries have it.
        sources: recordings, resolved -> which entry named it first.
    """

    def __init__(self, entries: Any = None, table: Callable[[str], MutableMapping] = lambda _: {}):
        self.entries = [] if entries is None else entries
        self.names: MutableMapping[str, str] = table("names")
        self.numbers: MutableMapping[str, int] = table("numbers")
        self.repeats: MutableMapping[str, int] = table("repeats")
        self.sources: MutableMapping[str, str] = table("sources")


def read_prompts(
    file: Path, folder: Path, options: GenerationOptions, *, bits: int | None = None
) -> list[ClipRequest]:
    """The clips of `plan_prompts` as a list, and their folder, which is made if need be.

    Raises:
        ValueError, OSError: as `plan_prompts`; or a folder that cannot be written to.
    """
    clips = list(plan_prompts(file, folder, options, Notes(), bits=bits))
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
    return clips


def plan_prompts(
    file: Path,
    folder: Path,
    options: GenerationOptions,
    notes: Notes,
    *,
    bits: int | None = None,
) -> Iterator[ClipRequest]:
    """The clips of a file of prompts, to be written into a folder, one after another.

    A line is TEXT, or TEXT|NAME, or a JSON object: {"prompt": TEXT, "name": NAME, ...} with any
    option, by either of its names, for this clip alone. Blank lines and lines that start with # are
    skipped. Or the file is one JSON array of texts and such objects. Recordings are named relative
    to the current folder. Given names are kept, .wav unless they end otherwise; names made from
    prompts get a number where they are taken.

    Args:
        options: of entries that do not say otherwise. Without a seed, one is made from the text:
            the same whenever the file is read, and another one where a text is repeated.
        notes: new ones, which hold all that grows with the file; an array is parsed in memory.
        bits: a sample of every sound file, as in `audio.files.write_sound`.

    Raises:
        ValueError: an invalid entry, by its number; a name that no file can have, or that two ask
            for; a clip that would replace a recording. Some are found at the last clip.
    """
    # 1. Every entry, and all names that are given: one that is made from a prompt can be another's
    empty = True
    for entry in _entries(file, options, notes.repeats):
        empty = False
        with _located(file, entry.where):
            _note(entry, notes)
    if empty:
        raise ValueError(f"{file} holds no prompts")
    # 2. Names for the others
    digest = functools.lru_cache(RECENT_RECORDINGS)(sha256)
    for entry in notes.entries:
        with _located(file, entry.where):
            name = _name_made(entry, notes) if entry.name is None else check_name(entry.name)
            clip = prepare(entry.prompt, folder / name, entry.options, digest, bits=bits)
        check_target(clip, notes.sources)
        yield clip


def _note(entry: Entry, notes: Notes) -> None:
    """Keep an entry. Raises ValueError for a name that is taken."""
    if entry.name is not None:
        taken = key(Path(check_name(entry.name)).stem)
        if other := notes.names.get(taken):
            raise ValueError(f"name {entry.name!r} is taken by {other}, on some systems or on all")
        notes.names[taken] = entry.where
    if isinstance(entry.options.recording, str):
        notes.sources.setdefault(str(Path(entry.options.recording).resolve()), entry.where)
    notes.entries.append(entry)


def _name_made(entry: Entry, notes: Notes) -> str:
    """A name made from the prompt and the seed, with a number where it is taken."""
    stem = f"{slug(entry.prompt)}-{entry.options.seed}"
    first = notes.numbers.get(key(stem), 1)  # names are never given back
    for number in itertools.count(first):
        name = stem if number == 1 else f"{stem}-{number}"
        if key(name) not in notes.names:
            notes.names[key(name)], notes.numbers[key(stem)] = entry.where, number
            return f"{name}.wav"
    raise AssertionError("unreachable: numbers do not end")


def _entries(
    file: Path, options: GenerationOptions, repeats: MutableMapping[str, int]
) -> Iterator[Entry]:
    for where, raw in _raw_entries(file):
        with _located(file, where):
            prompt, name, changes = parse_line(raw) if isinstance(raw, str) else parse_entry(raw)
            chosen = GenerationOptions.make(options, changes, called=SHORT)
            repeat = repeats.get(prompt, 0)
            repeats[prompt] = repeat + 1
            if chosen.seed is None:
                chosen = replace(chosen, seed=_seed_of(prompt, repeat))
            entry = Entry(where, prompt, name, chosen)
        yield entry


def _raw_entries(file: Path) -> Iterator[tuple[str, str | dict]]:
    """Lines with something in them, or objects of a JSON array; and where each of them is."""
    try:
        with open(file, encoding="utf-8-sig") as opened:
            start = _start(opened)
            if start.lstrip().startswith("["):  # an array, or a line as "[rain] on a roof"
                start += opened.read()
            if (array := _array(start)) is not None:
                for number, entry in enumerate(array, 1):
                    yield (
                        f"entry {number}",
                        {"prompt": entry} if isinstance(entry, str) else entry,
                    )
                return
            rest = itertools.chain.from_iterable(map(str.splitlines, opened))
            yield from _prompt_lines(file, itertools.chain(start.splitlines(), rest))
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not a text file in UTF-8") from None


def _start(opened: Iterable[str]) -> str:
    """A text up to its first line with something in it."""
    start = ""
    for line in opened:
        start += line
        if line.strip():
            break
    return start


def _prompt_lines(file: Path, lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Lines that are neither blank nor comments; what is skipped is said at the end."""
    comments, first = 0, 0
    for number, line in enumerate(lines, 1):
        if line.lstrip().startswith("#"):
            comments, first = comments + 1, first or number
        elif line.strip():
            yield f"line {number}", line.strip()
    if comments:
        which = f"line {first}" if comments == 1 else f"{comments} lines"
        warnings.warn(
            f'{file}: {which} starting with # skipped; a prompt that does is written {{"prompt": '
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
