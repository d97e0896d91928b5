"""generate --ray: what is refused before Ray is started, and what it does not load."""

import importlib.util
import socket
import subprocess
import sys

import pytest

from tests.support.command import QUICK, assert_refused, run

COMMAND = ("generate", "--prompts", "prompts", "--out", "out", *QUICK)
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the extra ray is not installed"
)


def test_an_absent_extra_is_named_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "prompts").write_text("rain")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run(*COMMAND, "--ray", "local", cwd=tmp_path)
    assert_refused(
        result, "--ray needs ray and pyarrow: pip install 'audiolitefocus[ray]'", tmp_path
    )


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@needs_ray
@pytest.mark.parametrize(
    "line, options, message",
    [
        ("rain", ("--ray", "PORT"), "no Ray cluster at 127.0.0.1:"),
        ("rain", ("--ray", "ray://head:10001"), "must be local, auto or HOST:PORT of a head node"),
        ("rain", ("--ray", "anywhere"), "must be local, auto or HOST:PORT"),
        ('{"prompt": "x", "steps": 0}', ("--ray", "local"), "prompts, line 1: steps 0"),
        ("rain", ("--ray", "local", "--model", "nonesuch"), "model 'nonesuch': no such folder"),
        ("rain", ("--ray", "local", "--device", "cuda:1"), "device 'cuda:1': must be one of auto"),
        ("rain", ("--ray", "local", "--out", "https://x/y"), "https://x/y: must be a folder or"),
        ("rain", ("--ray", "local", "--batch-size", "0"), "batch_size 0"),
        ("rain", ("--ray", "local", "--workers", "0"), "workers"),
    ],
)
def test_mistakes_are_found_before_ray_is_started(line, options, message, tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("started"))
    (tmp_path / "prompts").write_text(line)
    given = [f"127.0.0.1:{closed_port()}" if option == "PORT" else option for option in options]
    assert_refused(run(*COMMAND, *given, cwd=tmp_path), message, tmp_path)


@needs_ray
def test_a_cluster_that_ray_does_not_find_is_an_error_of_one_line(tmp_path, monkeypatch):
    import ray

    def init(*_, **__):
        raise ConnectionError("Could not find any running Ray instance.\nStart one")

    monkeypatch.setattr(ray, "init", init)
    (tmp_path / "prompts").write_text("rain")
    result = run(*COMMAND, "--ray", "auto", cwd=tmp_path)
    assert_refused(result, "no Ray cluster (auto): ", tmp_path)


def test_help_and_the_command_load_no_ray():
    program = "import audiolitefocus, audiolitefocus.cli, sys; "
    program += "assert not {'ray', 'pyarrow', 'fsspec', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", program], check=True)
