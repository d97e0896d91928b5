"""The family of a sound, by the nearest of many sounds whose families are known."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.evaluate.embedders import Embedder, embed_all
from scripts.evaluate.references import sound_files


@dataclass(frozen=True)
class Judge:
    """Sounds of known families.

    Attributes:
        paths: n files.
        families: (n,) their names.
        embedded: (n, d).
    """

    paths: list[Path]
    families: np.ndarray
    embedded: np.ndarray

    @classmethod
    def read(cls, folder: Path, embedder: Embedder, cache: Path) -> "Judge":
        """From a folder of folders, whose names are the families.

        Raises:
            ValueError: fewer than two families with two sounds or more.
        """
        found = {path.name: sound_files(path) for path in sorted(folder.iterdir()) if path.is_dir()}
        if len(found) < 2 or min(map(len, found.values())) < 2:
            raise ValueError(f"{folder}: give two folders or more, each with two sounds or more")
        paths = [path for sounds in found.values() for path in sounds]
        names = [name for name, sounds in found.items() for _ in sounds]
        return cls(paths, np.array(names), embed_all(embedder, paths, cache))

    def family_of(self, embedded: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
        """Families of the nearest sounds, by the cosine of what differs from the mean: (m,) names.

        Args:
            embedded: (m, d).
            own: for each of them the number of the sound that it is made of, which does not count.
        """
        mean = self.embedded.mean(0)
        known, new = (_unit(x - mean) for x in (self.embedded, embedded))
        cosines = new @ known.T  # m n
        if own is not None:
            cosines[np.arange(len(new)), own] = -np.inf
        return self.families[cosines.argmax(1)]


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)
