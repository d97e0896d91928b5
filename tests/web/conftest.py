"""The demo model and a server of it, for all tests of this folder."""

import pytest

pytest.importorskip("fastapi", reason="needs the extra web")

from fastapi.testclient import TestClient  # noqa: E402

from audiolitefocus import AudioLDM2Pipeline  # noqa: E402
from audiolitefocus.web.server import make_app  # noqa: E402


@pytest.fixture(scope="session")
def demo() -> AudioLDM2Pipeline:
    """The bundled model on the CPU."""
    return AudioLDM2Pipeline.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="session")
def client(demo):
    """A client of a server of the demo model, without a key."""
    with TestClient(make_app(demo, model="demo"), raise_server_exceptions=False) as client:
        yield client
