"""How the devices of a pipeline share a call: settings, and the grammar that names them. No torch.

"auto" | "off" | "batch" | "guidance" | "asyncdiff" | "asyncdiff:4" |
"asyncdiff:2:warmup=6:last=2:stride=1": a name, a number of parts, and any other field of the
settings as KEY=VALUE.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from audiolitefocus.validation import Number

NAMES = ("auto", "off", "batch", "guidance")
GRAMMAR = "auto, off, batch, guidance, asyncdiff:PARTS or asyncdiff:2:warmup=6:last=2:stride=1"
BOUNDS = {
    "parts": Number(2, 16, whole=True),
    "warmup": Number(1, 1000, whole=True),
    "last": Number(0, 1000, whole=True),
    "stride": Number(1, 2, whole=True),
}


@dataclass(frozen=True)
class AsyncDiff:
    """AsyncDiff (Chen et al., NeurIPS 2024): parts of the UNet that run at once.

    Each part works on what the part before it made one step earlier.

    Attributes:
        parts: of the UNet, each on a device of its own, with nearly equal operations.
        warmup, last: the first and the last steps in which parts wait for each other.
        stride: 2 runs the parts once for two steps, all but the last part, which runs for both at
            once, on one more device.
    """

    parts: int = 2
    warmup: int = 6
    last: int = 2
    stride: int = 1

    @property
    def devices(self) -> int:
        """How many it needs."""
        return self.parts + self.stride - 1

    def is_whole(self, step: int, steps: int) -> bool:
        """True for a step of `steps` in which parts wait for each other."""
        return step < self.warmup or step >= steps - self.last


# Of clips together, for each device that "auto" uses: with less to compute, one thread takes longer
# to launch the kernels of all devices than one device to run its own (predicted by
# scripts/benchmark/parallel.py for an H100, not measured). Compiled, launches cost little.
SECONDS_A_DEVICE = 125.0

Parallel: TypeAlias = AsyncDiff | str  # one of NAMES once parsed


def choose_parallel(
    choice: Parallel, *, devices: int, clips: int, seconds: float, compiled: bool = False
) -> Parallel:
    """A strategy; what "auto" means for so many devices and clips of a length is decided here.

    It is one that makes the clips of one device, where there is enough to compute: "batch" for
    several clips, "guidance" for one.
    """
    if choice != "auto":
        return choice
    used = min(devices, clips if clips > 1 else 2)
    worth = compiled or clips * seconds >= SECONDS_A_DEVICE * used
    if used == 1 or not worth:
        return "off"
    return "batch" if clips > 1 else "guidance"


def check_parallel(
    parallel: Parallel,
    *,
    devices: Sequence[object],
    guided: bool,
    reuse: str,
    refresh: int,
    compiled: bool,
) -> None:
    """Raise ValueError for a strategy that does not fit the pipeline or the call.

    Args:
        devices: of the pipeline.
        guided: False for a call without guidance.
        reuse, refresh: the options, one of them as text.
        compiled: True for a pipeline that was compiled.
    """
    name = f"parallel {parallel_text(parallel)}"
    needed = needed_devices(parallel)
    if len(devices) < needed:
        raise ValueError(
            f"{name} needs {needed} devices, and the pipeline has {', '.join(map(str, devices))}: "
            f"load it with as many, as cuda:0,cuda:1"
        )
    if parallel == "guidance" and not guided:
        raise ValueError(f"{name} needs guidance: set guidance_scale above 1, or parallel to off")
    if not isinstance(parallel, AsyncDiff):
        return
    if reuse != "off" or refresh > 1:
        raise ValueError(
            f"{name} has parts from earlier steps already: leave out reuse and refresh"
        )
    if compiled:
        raise ValueError(f"{name} does not run compiled: leave out compile, or choose guidance")


def needed_devices(parallel: Parallel) -> int:
    """How many devices a strategy needs at least."""
    if isinstance(parallel, AsyncDiff):
        return parallel.devices
    return 2 if parallel == "guidance" else 1


def parse_parallel(value: Parallel) -> Parallel:
    """Settings from their text; names and settings objects are returned as they are.

    Raises:
        ValueError: anything else; the message gives the grammar or the wrong part.
    """
    if isinstance(value, AsyncDiff) or value in NAMES:
        return value
    name, *parts = value.split(":") if isinstance(value, str) else [""]
    if name != "asyncdiff":
        raise ValueError(f"must be {GRAMMAR}")
    if parts and "=" not in parts[0]:
        parts[0] = f"parts={parts[0]}"
    return dataclasses.replace(AsyncDiff(), **dict(_field(part) for part in parts))


def parallel_text(parallel: Parallel) -> str:
    """The text that `parse_parallel` turns into these settings."""
    if isinstance(parallel, str):
        return parallel
    parts = ["asyncdiff", str(parallel.parts)]
    for setting in dataclasses.fields(parallel)[1:]:
        if (entry := getattr(parallel, setting.name)) != setting.default:
            parts.append(f"{setting.name}={entry}")
    return ":".join(parts)


def _field(part: str) -> tuple[str, int]:
    key, _, text = part.partition("=")
    if key not in BOUNDS:
        raise ValueError(f"{part!r} is not KEY=VALUE with one of {', '.join(BOUNDS)}")
    try:
        return key, int(BOUNDS[key](int(text)))
    except ValueError:
        raise ValueError(f"{key} {text!r}: must be {BOUNDS[key]}") from None
