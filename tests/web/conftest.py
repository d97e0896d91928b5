"""The demo model and a server of it, for all tests of this folder."""

import pytest

from audiolitefocus import AudioLDM2Pipeline


@pytest.fixture(scope="session")
def demo() -> AudioLDM2Pipeline:
    """The bundled model on the CPU."""
    return AudioLDM2Pipeline.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="session")
def client(demo):
    """A client of a server of the demo model, without a key."""
    from fastapi.testclient import TestClient

    from audiolitefocus.web.server import make_app

    with TestClient(make_app(demo, model="demo"), raise_server_exceptions=False) as client:
        yield client
