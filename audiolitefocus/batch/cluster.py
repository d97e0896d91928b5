"""Connecting to a Ray cluster, and how its executor is set up and its errors are told."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions
from ray.data import Dataset

CONNECT_SECONDS = 10
STORE_BYTES = 256 << 20  # of a local Ray's objects: units and results are small
STARTS = 3  # of a worker that dies while it loads the model, before the run ends


def check_address(address: str) -> None:
    """Raise ValueError or OSError for an address at which there is no cluster."""
    if address in ("local", "auto"):
        return
    host, colon, port = address.rpartition(":")
    if "//" in address or not (host and port.isdecimal()):
        raise ValueError(
            f"Ray's address {address!r}: must be local, auto or HOST:PORT of a head node; run the "
            f"command on a machine of the cluster"
        )
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise OSError(f"no Ray cluster at {address}: {error}") from None


@contextmanager
def connected(address: str) -> Iterator[None]:
    """A block in which this process is connected to a cluster; an existing connection is kept.

    Raises:
        ValueError, OSError: no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    check_address(address)
    local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        ray.init(
            address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            **(local if address == "local" else {}),
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise OSError(f"no Ray cluster ({address}): {_one_line(error)}") from None
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def set_up(dataset: Dataset) -> None:
    """Have units and results pass one by one, and no fault of a worker pass unnoticed.

    What is left as it is by default in Ray Data matters as much: actors are restarted, and their
    tasks repeated, without limit (`max_restarts`, `max_task_retries`), for the tally ends what
    would go on forever; and no block may fail (`max_errored_blocks`), as blocks that do are dropped
    with their clips.
    """
    context = dataset.context
    context.target_max_block_size = 1  # bytes: every row is a block
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1  # a long clip may take hours on a CPU
    context.max_consecutive_actor_init_deaths = STARTS - 1


def explained(error: Exception, tally: Any) -> Exception:
    """What a user should read of an error of Ray: why a worker could not start, if that is it."""
    try:
        refused = ray.get(tally.refused.remote(), timeout=CONNECT_SECONDS)
    except ray.exceptions.RayError:
        refused = None
    if refused:
        return ValueError(f"a worker could not start {refused}")
    return OSError(
        f"Ray ended the run ({_one_line(error)}); clips that are finished stay: run it again"
    )


def _one_line(error: BaseException) -> str:
    """The last line with something in it: below a traceback stands what was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
