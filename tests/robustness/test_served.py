"""The page and the server as processes: they answer, end when they are told to, leave nothing."""

import os
import re
import signal
import sys
from pathlib import Path

import httpx
import pytest

pytest.importorskip("gradio", reason="needs the extra web")

from audiolitefocus.cli import INTERRUPTED  # noqa: E402
from tests.support.children import started, wait_until  # noqa: E402

KEY = "0123456789abcdef"
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
END_SECONDS = 60


def address_in(folder: Path) -> str | None:
    """What the process has said where it listens, if it has."""
    found = ADDRESS.search((folder / "said").read_text())
    return found and found[0]


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_page_that_is_told_to_end_leaves_no_files(name, tmp_path):
    place = tmp_path / "temporary"
    place.mkdir()
    command = ("web", "--model", "demo", "--device", "cpu", "--port", "0")
    with started(*command, cwd=tmp_path, TMPDIR=str(place), GRADIO_TEMP_DIR="") as page:
        wait_until(lambda: address_in(tmp_path), page, tmp_path)
        sound = {"files": ("mine.wav", b"RIFF")}
        upload = httpx.post(f"{address_in(tmp_path)}/gradio_api/upload", files=sound)
        assert Path(upload.json()[0]).is_relative_to(place)
        page.send_signal(getattr(signal, name))
        assert page.wait(END_SECONDS) in (0, INTERRUPTED)
    # other libraries leave empty folders
    assert [path for path in place.rglob("*") if path.is_file()] == []
    assert not any(name.startswith("audiolitefocus") for name in os.listdir(place))
    assert "Traceback" not in (tmp_path / "said").read_text()


def test_a_server_answers_and_ends_without_a_traceback(tmp_path):
    command = ("serve", "--model", "demo", "--device", "cpu", "--port", "0")
    with started(*command, cwd=tmp_path, AUDIOLITEFOCUS_API_KEY=KEY) as server:
        wait_until(lambda: address_in(tmp_path), server, tmp_path)
        models = f"{address_in(tmp_path)}/v1/models"
        assert httpx.get(models).status_code == 401
        right = {"Authorization": f"Bearer {KEY}"}
        assert httpx.get(models, headers=right).json()["data"][0]["id"] == "demo"
        server.send_signal(signal.SIGTERM)
        assert server.wait(END_SECONDS) in (0, -signal.SIGTERM)  # uvicorn raises it again
    said = (tmp_path / "said").read_text()
    assert "Application shutdown complete" in said and "Traceback" not in said, said
