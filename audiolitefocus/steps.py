"""What happens after a denoising step: callbacks, a progress bar, and stopping early."""

import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from tqdm import tqdm

from audiolitefocus.runtime import check_finite
from audiolitefocus.validation import shown

Callback = Callable[[int, int, Tensor], object]  # step, timestep, latents
OnStepEnd = Callable[[Any, int, int, dict[str, Tensor]], Mapping[str, Tensor] | None]
BAR_OPTIONS = frozenset(inspect.signature(tqdm.__init__).parameters) - {"self", "iterable"}


class StepEnd:
    """Called with step, timestep and latents after every step; gives the latents to go on with.

    Args:
        pipe: given to `on_step_end`.
        total: steps of all clips together, for the bar.
        bar: tqdm's options.
        callback, callback_steps: called as callback(step, timestep, latents), once in so many
            steps.
        on_step_end: called as on_step_end(pipe, step, timestep, {"latents": latents}) after every
            step; "latents" in what it returns take the place of the current ones.
    """

    def __init__(
        self,
        pipe: object,
        total: int,
        bar: Mapping[str, Any],
        callback: Callback | None,
        callback_steps: int,
        on_step_end: OnStepEnd | None,
    ):
        self.pipe, self.callback, self.callback_steps = pipe, callback, callback_steps
        self.on_step_end, self.left = on_step_end, total
        self.bar = tqdm(**{"total": total, "unit": "step", **bar})

    def __enter__(self) -> "StepEnd":
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def __call__(self, step: int, timestep: int, latents: Tensor) -> Tensor:
        if self.callback is not None and step % self.callback_steps == 0:
            self.callback(step, timestep, latents)
        if self.on_step_end is not None:
            returned = self.on_step_end(self.pipe, step, timestep, {"latents": latents})
            latents = _replaced(latents, returned)
        done = min(len(latents), self.left)  # a batch that is halved repeats steps
        self.left -= done
        self.bar.update(done)
        return latents


def _replaced(latents: Tensor, returned: object) -> Tensor:
    """The latents in what a callback returned, in the dtype and on the device of the current."""
    if returned is None:
        return latents
    if not isinstance(returned, Mapping):
        raise ValueError(f"callback_on_step_end returned {shown(returned)}: must be a dict or None")
    new = returned.get("latents", latents)
    if not isinstance(new, Tensor) or new.shape != latents.shape:
        shape = tuple(new.shape) if isinstance(new, Tensor) else shown(new)
        raise ValueError(f"callback_on_step_end: latents {shape}: must be {tuple(latents.shape)}")
    check_finite("latents of callback_on_step_end", new)
    return new.to(latents)


def check_bar_options(options: Mapping[str, object]) -> None:
    """Raise ValueError for the first option that tqdm does not have."""
    for name in options:
        if name not in BAR_OPTIONS:
            raise ValueError(f"progress bar: tqdm has no option {name!r}")


class RunningCalls:
    """The calls of one pipeline that are in progress, and which of them are to stop."""

    def __init__(self):
        self._calls: list[RunningCall] = []
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self) -> "Iterator[RunningCall]":
        """A block in which a call of this thread is in progress."""
        call = RunningCall()
        with self._lock:
            self._calls.append(call)
        try:
            yield call
        finally:
            with self._lock:
                self._calls.remove(call)

    @property
    def interrupt(self) -> bool:
        """True if this thread's call is to stop; outside of calls, if any call is."""
        return any(call.stopped for call in self._meant())

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        for call in self._meant():
            call.stopped = bool(value)

    def _meant(self) -> "list[RunningCall]":
        """The call in which this thread is, or all calls where it is in none."""
        with self._lock:
            own = [call for call in self._calls if call.thread == threading.get_ident()]
            return own[-1:] or list(self._calls)


class RunningCall:
    """Attributes: thread, in which it runs; stopped, True if it is to end after its step."""

    def __init__(self):
        self.thread, self.stopped = threading.get_ident(), False
