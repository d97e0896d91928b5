"""A limit on memory for tests with hostile files."""

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SPARE = 3 << 29  # bytes that a command may allocate beyond what the tests have already


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Absurd sizes meet a limit, and fail the test, instead of filling the machine's memory."""
    if not sys.platform.startswith("linux"):
        yield
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
