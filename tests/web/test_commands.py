"""The commands that serve: what they refuse before a model is loaded."""

import importlib.util
import socket

import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra web")

from audiolitefocus import AudioLDM2Pipeline  # noqa: E402
from audiolitefocus.checkpoints.adapters import write_adapter  # noqa: E402
from audiolitefocus.cli import serving  # noqa: E402
from audiolitefocus.cli.serving import KEY_VARIABLE, listen, read_key  # noqa: E402
from tests.support.command import assert_failed, run  # noqa: E402

KEY = "0123456789abcdef"
LOAD = serving.load  # which the tests replace


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    """Loading a model fails the test."""
    monkeypatch.setattr(serving, "load", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.delenv(KEY_VARIABLE, raising=False)


@pytest.mark.parametrize("command", ["serve", "web"])
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--port", "70000"), "port 70000: must be a whole number from 0 to 65535"),
        (("--queue", "0"), "queue 0: must be"),
        (("--max-seconds", "4000"), "max-seconds 4000.0: must be a number from 1 to 3600"),
        (("--host", "no such host"), "cannot listen on no such host"),
        (("--lora", "nowhere:0.5"), "nowhere is no adapter: it has no adapter_config.json"),
    ],
)
def test_values_out_of_bounds_are_refused_before_the_model_is_loaded(
    command, flags, words, tmp_path
):
    assert_failed(run(command, "--model", "demo", *flags, cwd=tmp_path), words)


@pytest.mark.parametrize("command", ["serve", "web"])
def test_adapters_are_on_the_model_that_serves(command, tiny_bundle, tmp_path, monkeypatch):
    unet = AudioLDM2Pipeline.from_pretrained(tiny_bundle, device="cpu").unet
    layer = "middle.stage.transformers.0.proj_in"
    width = unet.get_parameter(f"{layer}.weight").shape[0]
    factors = {"A": torch.ones(1, width), "B": torch.ones(width, 1)}
    (tmp_path / "mine").mkdir()
    tensors = {f"{layer}.lora_{name}.weight": factor for name, factor in factors.items()}
    write_adapter(tmp_path / "mine", "tiny", 1, tensors)
    loaded = []

    def note(*arguments):
        loaded.append(LOAD(*arguments))
        raise ValueError("loaded")

    monkeypatch.setattr(serving, "load", note)
    flags = ("--model", tiny_bundle, "--device", "cpu", "--port", "0", "--lora", "mine:0.5")
    assert_failed(run(command, *flags, cwd=tmp_path), "loaded")
    (pipe,) = loaded
    assert pipe.adapters == {"mine": 0.5}
    added = pipe.unet.get_parameter(f"{layer}.weight") - unet.get_parameter(f"{layer}.weight")
    torch.testing.assert_close(added, torch.full_like(added, 0.5))


@pytest.mark.parametrize("command", ["serve", "web"])
def test_a_port_in_use_is_named(command, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run(command, "--port", str(port), cwd=tmp_path)
    assert_failed(result, f"cannot listen on 127.0.0.1, port {port}", "in use")


@pytest.mark.parametrize(("command", "package"), [("serve", "fastapi"), ("web", "gradio")])
def test_a_missing_extra_is_named(command, package, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    missing = lambda name, *rest: None if name == package else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", missing)
    assert_failed(run(command, cwd=tmp_path), package, "pip install 'audiolitefocus[web]'")


def test_the_key_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    assert read_key(None) is None
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    assert read_key(None) == KEY
    (tmp_path / "key").write_text(f"{KEY}-file\n")
    assert read_key(tmp_path / "key") == f"{KEY}-file"


@pytest.mark.parametrize("key", ["", "short", "with a space in it", "ümlauts-are-no-header"])
def test_a_key_that_could_not_be_sent_or_is_guessed_is_refused(key, tmp_path):
    (tmp_path / "key").write_text(key, encoding="utf-8")
    result = run("serve", "--api-key-file", tmp_path / "key", cwd=tmp_path)
    assert_failed(result, "16 letters and digits or more")


def test_listening_to_strangers_without_a_key_warns(monkeypatch):
    with pytest.warns(UserWarning, match="anyone who reaches 0.0.0.0"):
        serving.warn_of_strangers("0.0.0.0", "give a key")


def test_any_free_port_and_ipv6_are_named():
    with listen("127.0.0.1", 0) as listening:
        assert serving.address(listening).startswith("http://127.0.0.1:")
    try:
        with listen("::1", 0) as listening:
            assert serving.address(listening).startswith("http://[::1]:")
    except OSError:
        pytest.skip("no IPv6 here")
