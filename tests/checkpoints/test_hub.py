"""Fetching from the hub, against a small server on this machine that stands in for it."""

import os
import subprocess
import sys

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from audiolitefocus.checkpoints.hub import fetch, fetch_files, wanted
from tests.support.hub_server import REPO, UNET, UNWANTED, WANTED, FakeHub


def set_endpoint(monkeypatch, endpoint: str) -> None:
    """What importing huggingface_hub with HF_ENDPOINT in the environment does."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(monkeypatch):
    fake = FakeHub()
    set_endpoint(monkeypatch, fake.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    close_session()
    yield fake
    close_session()
    fake.close()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def files_of(folder) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def complaint(kind: type[Exception], **arguments) -> str:
    """The message of a failing fetch, which must be one line that names the repository."""
    with pytest.raises(kind) as caught:
        fetch(REPO, **arguments)
    message = str(caught.value)
    assert REPO in message and "\n" not in message
    return message


def test_fetches_what_conversion_needs_and_no_more(hub, cache):
    commit = hub.add(REPO, {**WANTED, **UNWANTED})
    folder = fetch(REPO, cache_dir=cache)
    assert folder.name == commit
    assert files_of(folder) == WANTED
    assert sorted(hub.bodies()) == sorted(WANTED)


def test_fetches_the_named_files_that_exist(hub, cache):
    hub.add(REPO, WANTED)
    folder = fetch_files(REPO, ["tokenizer/vocab.json", "tokenizer/spiece.model"], cache_dir=cache)
    assert set(files_of(folder)) == {"tokenizer/vocab.json"}
    with pytest.raises(OSError, match="no such repository"):
        fetch_files("some/other", ["a.json"], cache_dir=cache)


def test_second_fetch_asks_for_no_file(hub, cache):
    hub.add(REPO, WANTED)
    first = fetch(REPO, cache_dir=cache)
    asked = len(hub.requests)
    assert fetch(REPO, cache_dir=cache) == first
    assert len(hub.bodies()) == len(set(hub.bodies()))
    assert [path for _, path, *_ in hub.requests[asked:]] == [f"/api/models/{REPO}/revision/main"]


def test_revisions_are_branches_and_commits(hub, cache):
    old = hub.add(REPO, WANTED)
    new = hub.add(REPO, {**WANTED, "vae/config.json": b'{"new": 1}'}, branch="next")
    assert fetch(REPO, cache_dir=cache).name == old
    folder = fetch(REPO, revision="next", cache_dir=cache)
    assert folder.name == new and (folder / "vae/config.json").read_bytes() == b'{"new": 1}'
    assert fetch(REPO, revision=old, cache_dir=cache).name == old
    # Files that both commits have are asked for once.
    assert sorted(hub.bodies()) == sorted([*WANTED, "vae/config.json"])


def test_a_cut_download_resumes_where_it_broke_off(hub, cache, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.add(REPO, WANTED)
    hub.cuts.add(UNET)
    folder = fetch(REPO, cache_dir=cache)
    assert files_of(folder) == WANTED
    ranges = [r for method, path, r, _ in hub.requests if method == "GET" and path.endswith(UNET)]
    assert ranges == [None, "bytes=12000-"]  # of 25600 bytes, 12800 came, 12 chunks of them whole


def test_the_token_goes_to_the_hub(hub, cache):
    hub.add(REPO, WANTED)
    fetch(REPO, cache_dir=cache, token="hf_mine")
    assert {authorization for *_, authorization in hub.requests} == {"Bearer hf_mine"}


def test_missing_repository(hub, cache):
    assert "no such repository" in complaint(OSError, cache_dir=cache)
    with pytest.raises(ValueError, match="neither a folder nor a repository"):
        fetch("no/such/name", cache_dir=cache)


def test_missing_revision(hub, cache):
    hub.add(REPO, WANTED)
    assert "no revision 'v9'" in complaint(ValueError, revision="v9", cache_dir=cache)


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "the token"),
        (403, {"X-Error-Message": "Forbidden"}, "the token"),
        (403, {"X-Error-Code": "GatedRepo"}, "gated"),
    ],
)
def test_refused_access_says_how_to_log_in(hub, cache, status, headers, said):
    hub.add(REPO, WANTED)
    hub.refusals[REPO] = (status, headers)
    message = complaint(PermissionError, cache_dir=cache, token="hf_wrong")
    assert said in message and "hf auth login" in message


def test_gated_files_of_a_visible_repository(hub, cache):
    hub.add(REPO, WANTED)
    hub.refusals[f"{REPO}/{UNET}"] = (403, {"X-Error-Code": "GatedRepo"})
    assert "gated" in complaint(PermissionError, cache_dir=cache)


def test_a_hub_in_trouble(hub, cache):
    hub.add(REPO, WANTED)
    hub.refusals[REPO] = (500, {})
    assert "answered 500" in complaint(OSError, cache_dir=cache)


def test_without_network_the_cache_will_do(hub, cache):
    hub.add(REPO, WANTED)
    assert "not in the cache" in complaint(OSError, cache_dir=cache, local_files_only=True)
    folder = fetch(REPO, cache_dir=cache)
    asked = len(hub.requests)
    assert fetch(REPO, cache_dir=cache, local_files_only=True) == folder
    assert len(hub.requests) == asked
    (folder / UNET).unlink()
    message = complaint(OSError, cache_dir=cache, local_files_only=True)
    assert "only partly in the cache" in message and "switched off" in message


def test_a_hub_out_of_reach_is_replaced_by_the_cache(hub, cache, monkeypatch):
    hub.add(REPO, WANTED)
    folder = fetch(REPO, cache_dir=cache)
    set_endpoint(monkeypatch, "http://127.0.0.1:1")
    assert fetch(REPO, cache_dir=cache) == folder
    message = complaint(OSError, cache_dir=cache, revision="other")
    assert "cannot be reached" in message and "local folder" in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_index.json": None}, "no model_index.json"),
        ({"model_index.json": b"{"}, "not JSON"),
        ({"model_index.json": b"[]"}, "no JSON object"),
        ({"model_index.json": b'{"_class_name": "MusicLDMPipeline"}'}, "MusicLDMPipeline"),
        ({UNET: None}, "unet has no whole set of weights"),
        ({"text_encoder/model-00002-of-00002.safetensors": None}, "text_encoder has no whole set"),
        ({"vae/config.json": None}, "vae/config.json"),
    ],
)
def test_what_is_not_audioldm2_is_refused_before_its_weights_are_asked_for(
    hub, cache, changes, said
):
    files = {
        name: content for name, content in {**WANTED, **changes}.items() if content is not None
    }
    hub.add(REPO, files)
    assert said in complaint(ValueError, cache_dir=cache)
    assert set(hub.bodies()) <= {"model_index.json"}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("model.bin model.fp16.safetensors", "model.fp16.safetensors"),
        ("pytorch_model.bin pytorch_model.fp16.bin", "pytorch_model.bin"),
        ("model.safetensors model.non_ema.safetensors", "model.safetensors"),
        (
            "model.safetensors model.safetensors.index.json model-00001-of-00001.safetensors",
            "model.safetensors",
        ),
        (
            "model.fp16-00001-of-00001.safetensors model.safetensors.index.fp16.json",
            "model.fp16-00001-of-00001.safetensors model.safetensors.index.fp16.json",
        ),
        (
            "pytorch_model-00001-of-00001.bin pytorch_model.bin.index.json",
            "pytorch_model-00001-of-00001.bin pytorch_model.bin.index.json",
        ),
    ],
)
def test_one_set_of_weights_is_chosen(names, chosen):
    files = [f"unet/{name}" for name in ["config.json", *names.split()]]
    expected = {f"unet/{name}" for name in ["config.json", *chosen.split()]}
    assert set(wanted(files, ["unet"])) == expected


def test_environment_decides_endpoint_cache_and_offline_mode(hub, tmp_path):
    hub.add(REPO, WANTED)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    script = (
        "from audiolitefocus.checkpoints.hub import fetch\n"
        f"try: print(fetch({REPO!r}).name)\n"
        "except OSError as error: print(error)\n"
    )

    def run(**extra) -> str:
        command = [sys.executable, "-c", script]
        return subprocess.run(
            command, env={**environment, **extra}, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert "switched off" in run(HF_HUB_OFFLINE="1")
    assert hub.requests == []
    assert run() == hub.branches[REPO]["main"]
    asked = len(hub.requests)
    assert run(HF_HUB_OFFLINE="1") == hub.branches[REPO]["main"]
    assert len(hub.requests) == asked
