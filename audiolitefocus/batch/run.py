"""Jobs of many clips: a file of prompts, what of it is still to be made, batches of clips with
equal settings, and what became of each.
"""

import dataclasses
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from audiolitefocus.atomic import check_writable
from audiolitefocus.audio.files import SOUND_SUFFIXES
from audiolitefocus.batch.clips import Clip, is_saved, make_clips, prepare, save_clip, slug
from audiolitefocus.batch.ranks import Ranks
from audiolitefocus.checkpoints.bundle import sha256
from audiolitefocus.checks import check_number
from audiolitefocus.options import Settings
from audiolitefocus.pipeline import AudioLDM2Pipeline, AudioOutput

FIELDS = frozenset(field.name for field in dataclasses.fields(Settings))


def read_prompts(
    file: Path, folder: Path, settings: Settings, *, seed: int | None = None
) -> list[Clip]:
    """The clips of a file of prompts, to be written into a folder, which is made if need be.

    A line is TEXT, or TEXT|NAME, or a JSON object: {"prompt": TEXT, "name": NAME, ...} with any
    field of `Settings` for this clip alone, sound files named as seen from the current folder.
    Blank lines and lines that start with # are passed over. Names become safe file names, .wav
    unless they end otherwise.

    Args:
        settings: of lines that do not say otherwise.
        seed: of lines without their own; None: one that follows from the text, so that it is the
            same whenever the file is read, and another one where a text is repeated.

    Raises:
        ValueError, OSError: a line that makes no sense, by its number; a folder that cannot be
            written to.
    """
    clips: dict[str, Clip] = {}
    digest = functools.cache(sha256)
    repeats: Counter[str] = Counter()
    for number, line in _lines(file):
        try:
            prompt, name, chosen = parse_line(line)
            own_seed = _seed_of(prompt, repeats[prompt]) if seed is None else seed
            clip_settings = replace(settings, **{"seed": own_seed, **chosen})
            path = folder / _file_name(prompt, name, clip_settings.seed)
            if path.stem in clips:
                raise ValueError(f"{path.stem} is taken already; name it: TEXT|NAME")
            clips[path.stem] = prepare(prompt, path, clip_settings, digest)
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
        repeats[prompt] += 1
    if not clips:
        raise ValueError(f"{file} holds no prompts")
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
    return list(clips.values())


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines with something in them, and their numbers."""
    try:
        with open(file, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip() and not line.lstrip().startswith("#"):
                    yield number, line.strip()
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not a text file in UTF-8") from None


def parse_line(line: str) -> tuple[str, str | None, dict]:
    """Prompt, name if there is one, and the settings of this line alone. Raises ValueError."""
    if line.startswith("{"):
        try:
            chosen = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not a JSON object: {error}") from None
        if unknown := sorted(set(chosen) - FIELDS - {"prompt", "name"}):
            raise ValueError(
                f"unknown fields {', '.join(map(repr, unknown))}; there are prompt, name, "
                f"{', '.join(sorted(FIELDS))}"
            )
        prompt, name = chosen.pop("prompt", ""), chosen.pop("name", None)
    else:
        prompt, bar, name = line.rpartition("|") if "|" in line else (line, "", None)
        chosen = {}
    for text in (prompt, "no name" if name is None else name):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"expected TEXT, TEXT|NAME or a JSON object, got {line[:80]!r}")
    return prompt.strip(), name, chosen


def _seed_of(prompt: str, repeat: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{repeat} {prompt}".encode()).digest()[:4], "big")


def _file_name(prompt: str, name: str | None, seed: int) -> str:
    if name is None:
        return f"{slug(prompt)}-{seed}.wav"
    suffix = Path(name).suffix.lower()
    if suffix in SOUND_SUFFIXES:
        return slug(name[: -len(suffix)]) + suffix
    return slug(name) + ".wav"


def group(clips: list[Clip], size: int) -> list[list[Clip]]:
    """Batches of at most `size` clips that differ in prompt and seed alone.

    The guidance of "empty_prompt" pads texts together, so that a clip would depend on its batch:
    there every clip is a batch of its own.
    """
    alike: dict[Settings, list[Clip]] = {}
    for clip in clips:
        alike.setdefault(replace(clip.settings, seed=0), []).append(clip)
    batches = []
    for settings, same in alike.items():
        step = 1 if settings.unconditional == "empty_prompt" else size
        batches += [same[start : start + step] for start in range(0, len(same), step)]
    return batches


@dataclass
class Report:
    """How a job has ended: clips made, clips that were there before, and why others failed, by
    path.
    """

    made: list[str] = dataclasses.field(default_factory=list)
    kept: list[str] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


class Job:
    """What is to be made, planned once by rank 0 for all.

    Args:
        pipe: makes the clips.
        clips: of the whole job, the same in every rank.
        ranks: who shares it.
        batch_size: clips that are made together; they sound the same whatever it is.
        force: make clips anew that are there already.
    """

    def __init__(
        self,
        pipe: AudioLDM2Pipeline,
        clips: list[Clip],
        ranks: Ranks,
        *,
        batch_size: int = 1,
        force: bool = False,
    ):
        check_number("batch_size", batch_size, 1, 10000)
        self.pipe, self.clips, self.ranks = pipe, clips, ranks
        missing = ranks.agree(
            lambda: [n for n, clip in enumerate(clips) if force or not is_saved(pipe, clip)]
        )
        self.batches = group([clips[n] for n in missing], batch_size)
        kept = sorted(set(range(len(clips))) - set(missing))
        self.report = Report(kept=[str(clips[n].path) for n in kept])

    @property
    def steps(self) -> int:
        """Denoising steps of all clips and candidates together, whoever makes them."""
        return sum(map(_steps, self.batches))

    def run(
        self,
        on_progress: Callable[[int], object] = lambda steps: None,
        on_clip: Callable[[Clip, AudioOutput], object] = lambda clip, output: None,
    ) -> Report:
        """Make what is missing; one clip's failure does not stop the others.

        Args:
            on_progress: hears of the steps that all ranks have made so far.
            on_clip: hears of each clip that this rank has written.

        Returns:
            In rank 0 the whole job's report, where a clip that no rank reports counts as failed; in
            the others their own.
        """
        while (number := self.ranks.take()) < len(self.batches):
            self._make_counting(self.batches[number], on_progress, on_clip)
        mine = dataclasses.asdict(self.report)
        reports = self.ranks.gather(mine, lambda: on_progress(self.ranks.advance(0)))
        return self._together(reports) if self.ranks.first else self.report

    def _make_counting(self, batch: list[Clip], on_progress, on_clip) -> None:
        """`_make`, with progress that adds up to `_steps(batch)` whatever happens."""
        left = _steps(batch)

        def on_step(step, timestep, latents):
            nonlocal left
            count = min(len(latents), left)
            left -= count
            on_progress(self.ranks.advance(count))

        self._make(batch, on_step, on_clip)
        on_progress(self.ranks.advance(left))

    def _make(self, batch: list[Clip], on_step, on_clip) -> None:
        """Make clips together; if that fails, one by one, so that only those fail that must."""
        outputs, reason = [], ""
        try:
            outputs = make_clips(self.pipe, batch, on_step)
        except Exception as error:  # whatever it is, the job goes on and says so at its end
            reason = _reason(error)
        if reason and len(batch) > 1:
            for clip in batch:
                self._make([clip], on_step, on_clip)
        elif reason:
            self.report.failed[str(batch[0].path)] = reason
        for clip, output in zip(batch, outputs, strict=not reason):
            self._save(clip, output, on_clip)

    def _save(self, clip: Clip, output: AudioOutput, on_clip) -> None:
        try:
            save_clip(self.pipe, clip, output)
        except Exception as error:  # of decoding too
            self.report.failed[str(clip.path)] = _reason(error)
        else:
            self.report.made.append(str(clip.path))
            on_clip(clip, output)

    def _together(self, reports: list[dict]) -> Report:
        made = [path for report in reports for path in report["made"]]
        failed = {path: why for report in reports for path, why in report["failed"].items()}
        for path in (str(clip.path) for batch in self.batches for clip in batch):
            if path not in failed and path not in made:
                failed[path] = "its process has stopped"
        return Report(made, self.report.kept, failed)


def _steps(batch: list[Clip]) -> int:
    return sum(clip.settings.steps_taken * clip.settings.candidates for clip in batch)


def _reason(error: Exception) -> str:
    """One line for an error; errors that are not the user's are named."""
    text = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, (ValueError, OSError, MemoryError))
    return text if known else f"{type(error).__name__}: {text}"
