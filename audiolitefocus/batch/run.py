"""Runs of many clips: what is still missing is made in batches of clips with equal options.

Processes of one machine share a run by torchrun's RANK and WORLD_SIZE alone, without talking to
each other: where one dies, only its share stays undone, and the next run makes it.
"""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from audiolitefocus.batch.clips import is_missing, make_clips, save_clip
from audiolitefocus.batch.requests import ClipRequest
from audiolitefocus.diffusion.distilled import options_for
from audiolitefocus.options import GenerationOptions
from audiolitefocus.output import AudioOutput
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.validation import check_number


def rank_and_world() -> tuple[int, int]:
    """Which process this is of how many, as torchrun says; 0 of 1 without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def own_share(clips: list[ClipRequest]) -> list[ClipRequest]:
    """The clips that this process makes."""
    rank, world = rank_and_world()
    return clips[rank::world]


def own_device(device: str) -> str:
    """The device of this process: each of several on a machine has a CUDA device of its own."""
    rank, world = rank_and_world()
    if world > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', rank)}"
    return device


def group(clips: list[ClipRequest], size: int) -> list[list[ClipRequest]]:
    """Batches of at most `size` clips that differ in prompt and seed alone.

    "empty_prompt" pads the texts of a batch together, so that a clip would depend on its batch:
    there every clip is a batch of its own.
    """
    alike: dict[GenerationOptions, list[ClipRequest]] = {}
    for clip in clips:
        alike.setdefault(replace(clip.options, seed=None), []).append(clip)
    batches = []
    for options, same in alike.items():
        step = 1 if options.unconditional == "empty_prompt" else size
        batches += [same[start : start + step] for start in range(0, len(same), step)]
    return batches


@dataclass
class Report:
    """How a run ended, by path: clips made, clips found finished, and why others failed."""

    made: list[str] = dataclasses.field(default_factory=list)
    kept: list[str] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


class BatchRun:
    """Makes those clips that are not finished yet.

    Args:
        pipe: makes the clips.
        clips: of this process.
        batch_size: clips per batch; does not change the results.
        force: make finished clips again, and replace clips that were made with other settings.
        drafter: takes some of the steps of every clip, if there is one.

    Raises:
        ValueError: a file that is in the way of a clip (`check_replaceable`).

    Attributes:
        batches: what will be made.
        steps: denoising steps of all clips and candidates together.
    """

    def __init__(
        self,
        pipe: AudioLDM2Pipeline,
        clips: list[ClipRequest],
        *,
        batch_size: int = 1,
        force: bool = False,
        drafter: AudioLDM2Pipeline | None = None,
    ):
        check_number("batch_size", batch_size, 1, 10000)
        self.pipe, self.drafter, self.report, missing = pipe, drafter, Report(), []
        for clip in clips:
            second = None if drafter is None else drafter.config
            if is_missing(pipe.config, clip, force=force, drafter=second):
                missing.append(clip)
            else:
                self.report.kept.append(str(clip.path))
        self.batches = group(missing, batch_size)
        self.steps = sum(map(self._steps, self.batches))

    def run(
        self,
        on_progress: Callable[[int], object] = lambda steps: None,
        on_clip: Callable[[ClipRequest, AudioOutput], object] = lambda clip, output: None,
    ) -> Report:
        """Make what is missing; a clip that fails does not stop the others.

        Args:
            on_progress: called with the number of steps just made; all add up to `steps`.
            on_clip: called with each clip that has been written.
        """
        for batch in self.batches:
            self._make_counting(batch, on_progress, on_clip)
        return self.report

    def _make_counting(self, batch: list[ClipRequest], on_progress, on_clip) -> None:
        """`_make`, with progress that adds up to `_steps(batch)` whatever fails or is repeated."""
        left = self._steps(batch)

        def on_step(step, timestep, latents):
            nonlocal left
            count = min(len(latents), left)
            left -= count
            on_progress(count)

        self._make(batch, on_step, on_clip)
        on_progress(left)

    def _make(self, batch: list[ClipRequest], on_step, on_clip) -> None:
        """Make clips together; if that fails, one by one, so that only those fail that must."""
        # 1. Together
        outputs, reason = [], ""
        try:
            outputs = make_clips(self.pipe, batch, on_step, drafter=self.drafter)
        except Exception as error:  # whatever it is, the run goes on and reports it at its end
            reason = reason_of(error)
        # 2. Or one by one, or not at all
        if reason and len(batch) > 1:
            for clip in batch:
                self._make([clip], on_step, on_clip)
        elif reason:
            self.report.failed[str(batch[0].path)] = reason
        # 3. Written, and with that decoded, one after another
        for clip, output in zip(batch, outputs, strict=not reason):
            self._save(clip, output, on_clip)

    def _steps(self, batch: list[ClipRequest]) -> int:
        used = [options_for(self.pipe.config, clip.options) for clip in batch]
        return sum(options.steps_taken * options.num_waveforms_per_prompt for options in used)

    def _save(self, clip: ClipRequest, output: AudioOutput, on_clip) -> None:
        try:
            save_clip(self.pipe, clip, output, self.drafter)
        except Exception as error:  # of decoding too
            self.report.failed[str(clip.path)] = reason_of(error)
        else:
            self.report.made.append(str(clip.path))
            on_clip(clip, output)


def reason_of(error: Exception) -> str:
    """One line for an error, with its type unless the user can mend it."""
    text = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, (ValueError, OSError, MemoryError))
    return text if known else f"{type(error).__name__}: {text}"


def describe_made(clip: ClipRequest, output: AudioOutput) -> str:
    """What is said of a clip that has been made, besides its name."""
    copies = clip.options.num_waveforms_per_prompt
    best = "" if output.scores is None else f", CLAP {output.scores[0]:.3f}, best of {copies}"
    return f"(seed {clip.seed}{best})"
