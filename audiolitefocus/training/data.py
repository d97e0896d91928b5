"""Sounds and their captions, as Hugging Face's "audiofolder" lays them out."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from audiolitefocus.validation import parse_object, shown

TABLES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMNS = ("file_name", "audio", "path")
CAPTION_COLUMNS = ("caption", "text", "prompt", "transcription")
LAYOUT = (
    f"a folder of sounds with {' or '.join(TABLES)}, or such a table: a column "
    f"{FILE_COLUMNS[0]} with names relative to it, and one of {', '.join(CAPTION_COLUMNS)}"
)


@dataclass(frozen=True)
class Example:
    """A sound file and what is heard in it."""

    path: Path
    caption: str


def read_examples(source: Path) -> list[Example]:
    """The sounds of a folder or a table, in its order.

    Raises:
        ValueError: no table, a line without sound or caption, or a sound that is not there.
    """
    table = source
    if source.is_dir():
        found = [source / name for name in TABLES if (source / name).is_file()]
        if len(found) != 1:
            raise ValueError(f"{source} has {len(found)} tables of captions: give {LAYOUT}")
        (table,) = found
    if not table.is_file():
        raise ValueError(f"{table}: no such file; give {LAYOUT}")
    if table.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{table}: must be .csv or .jsonl; give {LAYOUT}")
    examples = []
    for place, entry in _entries(table):
        name, caption = (_one_of(entry, names, place) for names in (FILE_COLUMNS, CAPTION_COLUMNS))
        path = table.parent / name
        if not path.is_file():
            raise ValueError(f"{place}: no such sound: {shown(name)}")
        examples.append(Example(path, " ".join(caption.split())))
    if not examples:
        raise ValueError(f"{table} names no sounds; give {LAYOUT}")
    return examples


def _entries(table: Path) -> Iterator[tuple[str, dict]]:
    """Lines of a table, and where they stand."""
    with open(table, encoding="utf-8", newline="") as file:
        try:
            if table.suffix == ".csv":
                reader = csv.DictReader(file)
                for entry in reader:
                    yield f"{table}, line {reader.line_num}", entry
            else:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield f"{table}, line {number}", parse_object(line)
        except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
            raise ValueError(f"{table} cannot be read: {error}") from None


def _one_of(entry: dict, names: tuple[str, ...], place: str) -> str:
    """The text in the first of some columns that there is."""
    value = next((entry[name] for name in names if name in entry), None)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {names[0]} is {shown(value)}; give {LAYOUT}")
    return value
