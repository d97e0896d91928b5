"""A pipeline and files of prompts, for all tests of batches."""

from collections.abc import Callable
from pathlib import Path

import pytest

from audiolitefocus import AudioLDM2Pipeline


@pytest.fixture(scope="module")
def pipe(tiny_bundle) -> AudioLDM2Pipeline:
    return AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu")


@pytest.fixture
def write_prompts(tmp_path) -> Callable[..., Path]:
    """Writes lines into a file of prompts."""

    def write(*lines: str) -> Path:
        path = tmp_path / "prompts.txt"
        path.write_text("\n".join(lines), encoding="utf-8")
        return path

    return write
