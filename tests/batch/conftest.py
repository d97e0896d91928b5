"""A pipeline and files of prompts, for all tests of batches."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write_prompts(tmp_path) -> Callable[..., Path]:
    """Writes lines into a file of prompts."""

    def write(*lines: str) -> Path:
        path = tmp_path / "prompts.txt"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write
