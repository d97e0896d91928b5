"""A real server on a free port, in this process."""

import contextlib
import threading
import time
from collections.abc import Iterator

import uvicorn

from audiolitefocus.cli.serving import address, listen


@contextlib.contextmanager
def serving(app) -> Iterator[str]:
    """The address of a server of this ASGI application, which ends with the block."""
    with listen("127.0.0.1", 0) as listening:
        config = uvicorn.Config(app, log_level="critical", lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield address(listening)
        server.should_exit = True
        thread.join()


def wait_for(reached, seconds: float = 30.0) -> None:
    """Return when `reached()` is true; fail after so many seconds."""
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.01)
