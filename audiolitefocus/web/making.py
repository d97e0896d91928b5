"""A clip of the page: what it is made of, and what is shown while it is made."""

import queue
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from audiolitefocus.audio.files import read_sound
from audiolitefocus.codec.tiling import TILE_FRAMES
from audiolitefocus.options import GenerationOptions
from audiolitefocus.output import AudioOutput
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.web.limits import Limits, check_for_model, check_prompt, check_size
from audiolitefocus.web.pictures import preview
from audiolitefocus.web.worker import Job, Worker

PREVIEW_SHARE = 0.1  # of the time that may go into previews
FIRST_PREVIEW = 0.02  # seconds that the first one is expected to take
LOOK = 0.2  # seconds between two updates


@dataclass(frozen=True)
class Update:
    """How far a clip is: in words, as a fraction, and perhaps a picture of what it is so far."""

    text: str
    fraction: float = 0.0
    picture: Image.Image | None = None


class PageJob(Job):
    """A job that reports to a queue, and decodes the latents to a preview now and then."""

    def __init__(self, prompt: str, options: GenerationOptions, seconds: float, pipe):
        super().__init__(prompt, options, seconds)
        self.pipe = pipe
        self.updates: queue.Queue[Update | AudioOutput | Exception] = queue.Queue()
        self._started = self._looked = 0.0
        self._cost = FIRST_PREVIEW

    def on_step(self, done: int, total: int, latents: Tensor) -> None:
        now = time.monotonic()
        if done == 1:
            self._started = self._looked = now
        left = (now - self._started) / max(done - 1, 1) * (total - done)
        text = f"step {done} of {total}" + (f", about {left:.0f} s left" if done > 1 else "")
        picture = None
        if now - self._looked > self._cost / PREVIEW_SHARE and not self.pipe.on_device.offload:
            picture = self._preview(latents)
            self._looked = time.monotonic()
            self._cost = self._looked - now
        self.updates.put(Update(text, done / total, picture))

    def on_tile(self, done: int, total: int) -> None:
        self.updates.put(Update(f"decoding: {done} of {total}", done / total))

    def on_made(self, output: AudioOutput) -> None:
        self.updates.put(Update("decoding", 1.0))
        if output.scores is None:  # blocks, which are decoded now
            sounds: Any = [torch.cat(list(blocks)).numpy() for blocks in output.audios]
            output = replace(output, audios=sounds)
        self.updates.put(output)

    def on_error(self, error: Exception) -> None:
        self.updates.put(error)

    def _preview(self, latents: Tensor) -> Image.Image:
        """The first ten seconds of the first candidate, as they are now."""
        part = latents[:1, :, :TILE_FRAMES].float() / self.pipe.config.vae.scale_factor
        return preview(self.pipe.vae.decode(part)[0].float().cpu().numpy())


def plan(
    pipe: AudioLDM2Pipeline, prompt: str, options: GenerationOptions, limits: Limits
) -> PageJob:
    """A job that has been checked. Raises ValueError for what cannot be made, in one line."""
    check_prompt("prompt", prompt)
    negative = options.negative_prompt
    check_size("negative_prompt", negative if isinstance(negative, str) else None)
    recorded = None
    if options.recording is not None:
        assert isinstance(options.recording, str), "the form has recordings as files"
        waveform = read_sound(options.recording, pipe.sampling_rate, max_seconds=limits.seconds)
        recorded = len(waveform)
    seconds = check_for_model(pipe, options, recorded, limits)
    return PageJob(prompt, options, seconds * options.num_waveforms_per_prompt, pipe)


def follow(job: PageJob, worker: Worker) -> Iterator[Update | AudioOutput]:
    """The newest update every now and then, and in the end the clips. Raises what went wrong."""
    started = False
    while True:
        newest: Mapping[str, Any] = {}
        try:
            newest = _newest(job)
        except queue.Empty:
            before = worker.before(job)
            if before is not None:
                yield Update(f"waiting: {before} before this one")
            elif not started:
                yield Update("reading the prompt")
            continue
        started = True
        if "update" in newest:
            yield newest["update"]
        if isinstance(newest.get("end"), Exception):
            raise newest["end"]
        if "end" in newest:
            yield newest["end"]
            return


def _newest(job: PageJob) -> dict[str, Any]:
    """What has come since the last look: the newest update with the newest picture, and the end."""
    found: dict[str, Any] = {}
    event, picture = job.updates.get(timeout=LOOK), None
    while True:
        if isinstance(event, Update):
            picture = event.picture or picture
            found["update"] = replace(event, picture=picture)
        else:
            found["end"] = event
        try:
            event = job.updates.get_nowait()
        except queue.Empty:
            return found
