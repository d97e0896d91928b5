"""The plan and the results of a run on disk, for runs whose clips do not fit into memory.

A ledger is one SQLite file, gone with its folder. SQLite holds at most `CACHE_KIB` of it in memory.
"""

import pickle
import sqlite3
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from audiolitefocus.batch.prompts import Notes
from audiolitefocus.batch.requests import ClipRequest

CACHE_KIB = 8192
PAGE_ROWS = 256  # read at a time
NOTES = ("entries", "names", "numbers", "repeats", "sources")  # tables while prompts are read

Numbered = tuple[int, ClipRequest]


class Ledger:
    """Clips by number, whether each is to be made, and what became of it.

    One process writes. Others may read `missing` with ledgers of their own on the same path once
    the plan is complete, for it stays as it is while results are written.
    """

    def __init__(self, path: Path):
        self.path, self.database = path, sqlite3.connect(path, isolation_level=None)
        self.database.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self.database.execute("PRAGMA synchronous = OFF")  # it does not outlive the process

    def close(self) -> None:
        self.database.close()

    def plan(self, clips: Iterable[ClipRequest]) -> int:
        """Write the clips of a new ledger down, and return their number; notes are dropped."""
        self.database.execute(
            "CREATE TABLE clips (number INTEGER PRIMARY KEY, clip, made, failure)"
        )
        rows = ((number, pickle.dumps(clip)) for number, clip in enumerate(clips))
        # 1. In one transaction; an invalid prompt ends the run, so that there is no journal
        self.database.execute("PRAGMA journal_mode = OFF")
        with self._written():
            self.database.execute("BEGIN")
            self.database.executemany("INSERT INTO clips (number, clip) VALUES (?, ?)", rows)
            self.database.execute("COMMIT")
        for name in NOTES:
            self.database.execute(f"DROP TABLE IF EXISTS {name}")
        # 2. From here on, one writes while others read
        self.database.execute("PRAGMA journal_mode = WAL")
        return self._count("TRUE")

    def notes(self) -> Notes:
        """Notes for `plan_prompts`, in tables of this file."""
        return Notes(_List(self.database, "entries"), lambda name: _Table(self.database, name))

    def missing(self) -> Iterator[Numbered]:
        """The clips to make, with their numbers, in order."""
        last = -1
        query = (
            "SELECT number, clip FROM clips WHERE number > ? AND made IS NOT 0 "
            f"ORDER BY number LIMIT {PAGE_ROWS}"
        )
        while rows := self.database.execute(query, (last,)).fetchall():
            for number, clip in rows:
                yield number, pickle.loads(clip)
            last = rows[-1][0]

    def keep(self, number: int) -> None:
        """A clip need not be made: it is there."""
        with self._written():
            self.database.execute("UPDATE clips SET made = 0 WHERE number = ?", (number,))

    def finish(self, number: int, failure: str | None) -> bool:
        """Write down that a clip was made, or why not; False if that was known already."""
        query = "UPDATE clips SET made = 1, failure = ? WHERE number = ? AND made IS NULL"
        with self._written():
            return self.database.execute(query, (failure, number)).rowcount == 1

    @contextmanager
    def _written(self) -> Iterator[None]:
        """A block in which a full disk is an OSError."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(f"the plan of the run in {self.path.parent}: {error}") from None

    def failures(self) -> Iterator[str]:
        """Why clips were not made, each line with the clip."""
        query = (
            "SELECT clip, failure FROM clips WHERE made IS NULL OR failure IS NOT NULL "
            "ORDER BY number"
        )
        for clip, reason in self.database.execute(query):
            yield reason or f"{pickle.loads(clip).path.name}: no worker answered for it"

    @property
    def kept(self) -> int:
        return self._count("made = 0")

    @property
    def made(self) -> int:
        return self._count("made = 1 AND failure IS NULL")

    @property
    def failed(self) -> int:
        return self._count("made IS NULL OR failure IS NOT NULL")

    def _count(self, condition: str) -> int:
        return self.database.execute(f"SELECT COUNT(*) FROM clips WHERE {condition}").fetchone()[0]


class _Table(MutableMapping):
    """A dict from text to text or numbers, in a table."""

    def __init__(self, database: sqlite3.Connection, name: str):
        self.database, self.name = database, name
        database.execute(f"CREATE TABLE {name} (key TEXT PRIMARY KEY, value) WITHOUT ROWID")

    def __getitem__(self, key: str) -> Any:
        query = f"SELECT value FROM {self.name} WHERE key = ?"
        if (row := self.database.execute(query, (key,)).fetchone()) is None:
            raise KeyError(key)
        return row[0]

    def __setitem__(self, key: str, value: Any) -> None:
        self.database.execute(f"INSERT OR REPLACE INTO {self.name} VALUES (?, ?)", (key, value))

    def __delitem__(self, key: str) -> None:
        if not self.database.execute(f"DELETE FROM {self.name} WHERE key = ?", (key,)).rowcount:
            raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (row[0] for row in self.database.execute(f"SELECT key FROM {self.name}"))

    def __len__(self) -> int:
        return self.database.execute(f"SELECT COUNT(*) FROM {self.name}").fetchone()[0]


class _List:
    """A list of objects, in a table."""

    def __init__(self, database: sqlite3.Connection, name: str):
        self.database, self.name = database, name
        database.execute(f"CREATE TABLE {name} (number INTEGER PRIMARY KEY, value)")

    def append(self, value: object) -> None:
        query = f"INSERT INTO {self.name} (value) VALUES (?)"
        self.database.execute(query, (pickle.dumps(value),))

    def __iter__(self) -> Iterator[Any]:
        for (value,) in self.database.execute(f"SELECT value FROM {self.name} ORDER BY number"):
            yield pickle.loads(value)
