"""The strategies by name: each is called as `denoise` is, with the networks of all devices."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from torch import Tensor

from audiolitefocus.diffusion.denoise import denoise
from audiolitefocus.diffusion.network import Network
from audiolitefocus.options import GenerationOptions
from audiolitefocus.parallel.asyncdiff import denoise_parts
from audiolitefocus.parallel.batch import denoise_clips
from audiolitefocus.parallel.guidance import denoise_halves
from audiolitefocus.parallel.settings import (
    AsyncDiff,
    Parallel,
    check_parallel,
    choose_parallel,
)
from audiolitefocus.reuse.settings import reuse_text

Denoise: TypeAlias = Callable[..., Iterator[Tensor]]


def choose_strategy(
    options: GenerationOptions,
    networks: Sequence[Network],
    clips: int,
    seconds: float,
    *,
    windowed: bool = False,
    drafted: bool = False,
) -> Parallel:
    """The strategy for a call; what "auto" means is decided here.

    Args:
        clips, seconds: their number and length.
        windowed: True for clips in windows, which are shared out like clips.
        drafted: True if a second model takes some of the steps, which has one device.

    Raises:
        ValueError: one that does not fit the networks' devices or the other options.
    """
    if drafted:
        if options.parallel not in ("auto", "off"):
            raise ValueError("parallel: a drafter works on one device; leave out one of them")
        return "off"
    guided, clips = options.guided, clips + windowed
    shareable = guided or clips > 1  # one clip in one branch is not shared without being changed
    chosen = choose_parallel(
        options.parallel,
        devices=len(networks) if shareable else 1,
        clips=clips,
        seconds=seconds,
        compiled=networks[0].is_compiled,
    )
    check_parallel(
        chosen,
        devices=[network.device for network in networks],
        guided=guided,
        reuse=reuse_text(options.reuse),
        refresh=options.refresh,
        compiled=networks[0].is_compiled,
    )
    return chosen


def strategy(parallel: Parallel) -> Denoise:
    """The function of a strategy that has been chosen."""
    return denoise_parts if isinstance(parallel, AsyncDiff) else STRATEGIES[parallel]


def denoise_first(networks: Sequence[Network], *others, **named) -> Iterator[Tensor]:
    """`denoise` by the first network alone."""
    first = networks[0]
    return denoise(first.unet, *others, **named, evaluate=first.evaluate)


STRATEGIES: dict[str, Denoise] = {
    "off": denoise_first,
    "batch": denoise_clips,
    "guidance": denoise_halves,
}
