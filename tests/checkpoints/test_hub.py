"""Fetching from the hub: from a cache built by hand and, where that cannot tell, from a server."""

import time

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from audiolitefocus.checkpoints.hub import fetch, fetch_files, wanted
from tests.support.hub_server import (
    COMMIT,
    REPO,
    UNET,
    UNWANTED,
    WANTED,
    FakeHub,
    files_of,
    fill_cache,
    set_endpoint,
)


@pytest.fixture
def hub(monkeypatch):
    """A server with all of the repository's files."""
    with FakeHub({**WANTED, **UNWANTED}) as server:
        set_endpoint(monkeypatch, server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        close_session()
        yield server
        close_session()
        server.shutdown()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def assert_fails(kind: type[Exception], *words: str, repo: str = REPO, **options) -> None:
    """`fetch` fails with one line that names the repository and has all the words."""
    with pytest.raises(kind) as caught:
        fetch(repo, **options)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in (repo, *words)), message


# With a server


def test_each_file_that_conversion_needs_is_downloaded_once(hub, cache):
    folder = fetch(REPO, cache_dir=cache, token="hf_mine")
    assert folder.name == COMMIT and files_of(folder) == WANTED
    assert sorted(hub.bodies()) == sorted(WANTED)
    ours = [headers for _, path, headers in hub.requests if REPO in path]
    assert {headers["Authorization"] for headers in ours} == {"Bearer hf_mine"}
    assert sum("/tree/" in path for _, path, _ in hub.requests) == 1
    del hub.requests[:]
    assert fetch(REPO, cache_dir=cache) == folder
    asked = [path for _, path, _ in hub.requests if REPO in path]
    assert asked == [f"/api/models/{REPO}/revision/main"]
    assert fetch(REPO, cache_dir=cache, local_files_only=True) == folder
    (folder / UNET).unlink()
    assert_fails(OSError, "incomplete", UNET, cache_dir=cache, local_files_only=True)


def test_a_broken_download_resumes_where_it_broke_off(hub, cache, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cut = UNET
    assert files_of(fetch(REPO, cache_dir=cache)) == WANTED
    asked = [h["Range"] for method, p, h in hub.requests if method == "GET" and UNET in p]
    assert asked == [None, "bytes=12000-"]  # of 25600 bytes, 12800 came, 12 whole chunks of them


@pytest.mark.parametrize(
    ("status", "headers", "word"),
    [
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "token"),
        (403, {"X-Error-Message": "Forbidden"}, "token"),
        (403, {"X-Error-Code": "GatedRepo"}, "accept its terms"),
    ],
)
def test_refused_access_says_how_to_log_in(hub, cache, status, headers, word):
    hub.refusal = status, headers
    assert_fails(PermissionError, word, "hf auth login", cache_dir=cache, token="hf_wrong")


def test_what_the_hub_does_not_have(hub, cache):
    assert_fails(OSError, "no such repository", "private", repo="some/other", cache_dir=cache)
    assert_fails(ValueError, "'v9': no such revision", revision="v9", cache_dir=cache)
    hub.refusal = 500, {}
    assert_fails(OSError, "500", cache_dir=cache)


def test_another_pipeline_is_refused_before_its_weights_are_downloaded(hub, cache):
    hub.files["model_index.json"] = b'{"_class_name": "MusicLDMPipeline"}'
    assert_fails(ValueError, "MusicLDMPipeline", cache_dir=cache)
    assert hub.bodies() == ["model_index.json"]


# With a cache alone


def test_offline_the_cache_is_enough(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_fails(OSError, "HF_HUB_OFFLINE", cache_dir=cache)
    folder = fill_cache(cache, WANTED)
    assert fetch(REPO, cache_dir=cache) == folder
    newer = fill_cache(cache, {**WANTED, "vae/config.json": b"[]"}, commit="1" * 40, branch="new")
    assert fetch(REPO, revision="new", cache_dir=cache) == newer
    assert fetch(REPO, revision=COMMIT, cache_dir=cache, local_files_only=True) == folder
    assert fetch_files(REPO, ["tokenizer/vocab.json"], cache_dir=cache) == folder


def test_the_cache_replaces_a_hub_that_cannot_be_reached(cache, monkeypatch):
    set_endpoint(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between huggingface_hub's attempts
    folder = fill_cache(cache, WANTED)
    assert fetch(REPO, cache_dir=cache) == folder
    assert_fails(OSError, "connection", revision="other", cache_dir=cache)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model_index.json", None, "no model_index.json"),
        ("model_index.json", b"{", "not JSON"),
        ("model_index.json", b"[]", "no JSON object"),
        ("model_index.json", b"{}", "no pipeline"),
        (UNET, None, "unet/ lacks"),
        ("vae/config.json", None, "vae/ lacks"),
    ],
)
def test_what_is_not_audioldm2_is_refused(cache, name, content, words):
    files = {key: value for key, value in WANTED.items() if key != name}
    fill_cache(cache, files if content is None else {**files, name: content})
    assert_fails(ValueError, words, cache_dir=cache, local_files_only=True)


def test_names_that_are_no_repository():
    assert_fails(ValueError, "neither a folder nor a repository", repo="no/such/name")


ONE_SET = {
    "model.bin model.fp16.safetensors": "model.fp16.safetensors",
    "pytorch_model.bin pytorch_model.fp16.bin": "pytorch_model.bin",
    "model.safetensors model.non_ema.safetensors": "model.safetensors",
    "model.safetensors model.safetensors.index.json model-00001-of-00001.safetensors": (
        "model.safetensors"
    ),
    "model.fp16-00001-of-00001.safetensors model.safetensors.index.fp16.json": (
        "model.safetensors.index.fp16.json model.fp16-00001-of-00001.safetensors"
    ),
    "pytorch_model-00001-of-00001.bin pytorch_model.bin.index.json": (
        "pytorch_model.bin.index.json pytorch_model-00001-of-00001.bin"
    ),
}


@pytest.mark.parametrize("names", ONE_SET)
def test_one_set_of_weights_is_chosen(names):
    files = [f"unet/{name}" for name in ["config.json", *names.split()]]
    chosen = [f"unet/{name}" for name in ["config.json", *ONE_SET[names].split()]]
    assert wanted(files, ["unet"]) == chosen
