"""Files of the page, in temporary folders that are deleted when the process ends."""

import atexit
import os
import shutil
import tempfile
import threading
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from audiolitefocus.batch.clips import ClipRequest, recipe_path, save_clip
from audiolitefocus.batch.names import slug
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.options import OPTIONS, SOUND, GenerationOptions
from audiolitefocus.output import AudioOutput
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.web.pictures import spectrogram
from audiolitefocus.web.worker import Job

KEPT = 100  # clips of all visitors; older ones are deleted
CACHE_VARIABLE = "GRADIO_TEMP_DIR"  # where Gradio has uploads, and copies of what it sends


@dataclass(frozen=True)
class Kept:
    """What was made at once: the candidates of a prompt, best first.

    Attributes:
        sounds, recipes, pictures: a WAV file, its JSON and its spectrogram for each.
        scores: CLAP's, where there are several.
    """

    prompt: str
    seed: int
    sounds: list[str]
    recipes: list[str]
    pictures: list[str]
    scores: list[float] | None


def own_cache() -> None:
    """Let Gradio use a folder of this process, unless it has been given one."""
    if not os.environ.get(CACHE_VARIABLE):
        folder = tempfile.mkdtemp(prefix="audiolitefocus-cache-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ[CACHE_VARIABLE] = folder


class Shelf:
    """Clips made on the page: writes them into folders, and deletes the oldest of them."""

    def __init__(self, pipe: AudioLDM2Pipeline):
        self.pipe = pipe
        self._root = tempfile.TemporaryDirectory(prefix="audiolitefocus-")  # gone with the process
        self._folders: deque[str] = deque()
        self._lock = threading.Lock()

    @property
    def root(self) -> str:
        return self._root.name

    def keep(self, job: Job, output: AudioOutput) -> Kept:
        """Write the candidates of a job, which `output` has as waveforms."""
        folder = Path(tempfile.mkdtemp(dir=self.root))
        with self._lock:
            self._folders.append(str(folder))
            while len(self._folders) > KEPT:
                shutil.rmtree(self._folders.popleft(), ignore_errors=True)
        kept = Kept(job.prompt, job.seed, [], [], [], None)
        for number, waveform in enumerate(output.audios, start=1):
            suffix = f"-{number}" if len(output.audios) > 1 else ""
            path = folder / f"{slug(job.prompt)}-{job.seed}{suffix}.wav"
            samples = np.asarray(waveform)
            save_clip(self.pipe, _request(job, path), replace(output, audios=samples[None]))
            picture = path.with_suffix(".png")
            spectrogram(samples, output.sampling_rate).save(picture)
            kept.sounds.append(str(path))
            kept.recipes.append(str(recipe_path(path)))
            kept.pictures.append(str(picture))
        scores = None if output.scores is None else [float(score) for score in output.scores]
        return replace(kept, scores=scores)


def _request(job: Job, path: Path) -> ClipRequest:
    """The clip as its recipe has it: a recording without the folder where the server has it."""
    recording = job.options.recording
    if not isinstance(recording, str):
        return ClipRequest(job.prompt, path, job.options)
    names = {
        name: Path(recording).name
        for name, option in OPTIONS.items()
        if option.rule is SOUND and getattr(job.options, name) is not None
    }
    options = GenerationOptions.make(job.options, names)
    return ClipRequest(job.prompt, path, options, sha256(Path(recording)))
