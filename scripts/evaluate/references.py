"""The sounds that generated ones are compared with: a folder, a CSV in AudioCaps' layout, or the
synthetic world.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from audiolitefocus.audio.files import write_sound
from audiolitefocus.audio.formats import SOUND_SUFFIXES
from scripts.demo.world.sounds import HELD_OUT, RATE, draw

DEMO_WORLD = "demo-world"
AUDIOCAPS_COLUMNS = ("youtube_id", "start_time", "caption")
# Names that AudioCaps' sounds go by, of a row of the CSV, without the ending.
AUDIOCAPS_NAMES = (
    "{audiocap_id}",
    "{youtube_id}",
    "Y{youtube_id}",
    "{youtube_id}_{start_time}",
    "Y{youtube_id}_{start_time}",
    "{youtube_id}_{start_time}_{end_time}",
    "{youtube_id}_{start_time}000_{end_time}000",
)
AUDIOCAPS_SECONDS = 10


@dataclass(frozen=True)
class Reference:
    """A sound file and, if it is known, its caption. Its name pairs it with a generated one."""

    path: Path
    caption: str | None = None

    @property
    def name(self) -> str:
        return self.path.stem


def read_references(
    source: str,
    *,
    sounds: Path | None = None,
    cache: Path | None = None,
    seconds: float | None = None,
    count: int | None = None,
) -> list[Reference]:
    """The first `count` sounds of a reference set; None for all.

    Args:
        source: a folder, a CSV file, or "demo-world".
        sounds: where the files of a CSV are; None: beside it.
        cache: a folder for the synthetic world's sounds, which are rendered when they are missing.
        seconds: how long those are; files are as long as they are.

    Raises:
        ValueError: nothing there, or not what it should be.
    """
    if source == DEMO_WORLD:
        if cache is None or seconds is None or count is None:
            raise ValueError(f"{DEMO_WORLD} has no end: say how many --clips of how many --seconds")
        return demo_world(cache / f"{DEMO_WORLD}-{seconds:g}", seconds, count)
    path = Path(source)
    if path.is_dir():
        found = sound_files(path)
        references = [Reference(file, recorded_caption(file)) for file in found]
    elif path.is_file() and path.suffix == ".csv":
        references = read_audiocaps(path, sounds or path.parent)
    else:
        raise ValueError(f"reference {source!r}: give a folder, a .csv file or {DEMO_WORLD}")
    if len(references) < 2:
        raise ValueError(f"reference {source!r}: {len(references)} sounds; two are the least")
    return references[:count]


def sound_files(folder: Path) -> list[Path]:
    """By name. Raises ValueError where two differ in their endings alone."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SOUND_SUFFIXES)
    by_name = {path.stem: path for path in found}
    if doubled := [path.name for path in found if by_name[path.stem] != path]:
        raise ValueError(f"{folder} has {doubled[0]} with another ending too; keep one of them")
    return found


def recorded_caption(sound: Path) -> str | None:
    """The prompt in the JSON file that is written beside a generated sound."""
    try:
        prompt = json.loads(sound.with_suffix(".json").read_text(encoding="utf-8"))["prompt"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return prompt if isinstance(prompt, str) else None


def read_audiocaps(table: Path, folder: Path) -> list[Reference]:
    """The clips of a CSV with the columns audiocap_id, youtube_id, start_time and caption whose
    sounds are in `folder`. Of several captions of a clip the first is taken.
    """
    files = {path.stem: path for path in sound_files(folder)} if folder.is_dir() else {}
    references: dict[Path, Reference] = {}
    missing = set()
    for row in _rows(table):
        names = [name.format(**row) for name in AUDIOCAPS_NAMES]
        path = next((files[name] for name in names if name in files), None)
        if path is None:
            missing.add(row["youtube_id"])
        else:
            references.setdefault(path, Reference(path, row["caption"]))
    if not references:
        raise ValueError(
            f"{folder} has none of the {len(missing)} sounds of {table}; they should be called "
            f"{', '.join(AUDIOCAPS_NAMES[:5])} and end in {', '.join(SOUND_SUFFIXES)}"
        )
    return list(references.values())


def _rows(table: Path) -> Iterator[dict[str, str]]:
    try:
        with open(table, newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            if absent := set(AUDIOCAPS_COLUMNS) - set(reader.fieldnames or ()):
                raise ValueError(f"{table} lacks the columns {', '.join(sorted(absent))}")
            for row in reader:
                start = row["start_time"] or ""
                if not start.isdecimal() or not row["youtube_id"] or not row["caption"]:
                    raise ValueError(f"{table}, line {reader.line_num}: not a row of AudioCaps")
                end = int(start) + AUDIOCAPS_SECONDS
                yield {"audiocap_id": "", **row, "end_time": str(end)}
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} is no CSV in UTF-8: {error}") from None


def demo_world(folder: Path, seconds: float, count: int) -> list[Reference]:
    """Sounds that nothing was trained on."""
    folder.mkdir(parents=True, exist_ok=True)
    references = []
    for seed in range(HELD_OUT, HELD_OUT + count):
        sound, path = draw(seed), folder / f"{seed}.wav"
        if not path.is_file():
            write_sound(path, sound.render(seconds), RATE)
        references.append(Reference(path, sound.caption))
    return references
