"""A repository in diffusers layout, in a cache built by hand and on a stand-in for the hub."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from huggingface_hub import constants

REPO = "someone/audioldm2"
COMMIT = "c0ffee" * 6 + "c0de"
CLASSES = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "ClapModel"],
    "unet": ["audioldm2", "AudioLDM2UNet2DConditionModel"],
    "tokenizer": ["transformers", "RobertaTokenizerFast"],
    "safety_checker": [None, None],
}
UNET = "unet/diffusion_pytorch_model.safetensors"
WANTED = {
    "model_index.json": json.dumps({"_class_name": "AudioLDM2Pipeline", **CLASSES}).encode(),
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"v" * 300,
    "text_encoder/config.json": b'{"shards": 2}',
    "text_encoder/model.safetensors.index.json": b'{"weight_map": {}}',
    "text_encoder/model-00001-of-00002.safetensors": b"1" * 400,
    "text_encoder/model-00002-of-00002.safetensors": b"2" * 500,
    "unet/config.json": b'{"unet": 1}',
    UNET: bytes(range(256)) * 100,
    "tokenizer/vocab.json": b'{"a": 1}',
    "tokenizer/merges.txt": b"a b",
}
UNWANTED = {
    "README.md": b"card",
    "vae/diffusion_pytorch_model.fp16.safetensors": b"half",
    "vae/diffusion_pytorch_model.bin": b"pickle",
    "text_encoder/model.safetensors.index.fp16.json": b'{"half": 1}',
    "text_encoder/model-00001-of-00001.fp16.safetensors": b"half 1",
    "unet/nested/config.json": b'{"nested": 1}',
    "safety_checker/config.json": b'{"unused": 1}',
}


def set_endpoint(monkeypatch, endpoint: str) -> None:
    """What importing huggingface_hub with HF_ENDPOINT in the environment does."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def files_of(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def fill_cache(cache: Path, files: dict[str, bytes], *, commit=COMMIT, branch="main") -> Path:
    """The snapshot's folder of a cache that holds `files`, in the layout of huggingface_hub."""
    folder = cache / f"models--{REPO.replace('/', '--')}"
    for name, content in {f"snapshots/{commit}/{name}": files[name] for name in files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / branch).write_text(commit)
    return folder / "snapshots" / commit


class FakeHub(ThreadingHTTPServer):
    """Serves `files` as REPO at COMMIT, and 404 for every other repository.

    Attributes:
        requests: (method, path, headers) so far.
        refusal: status and headers that are answered instead, if set.
        cut: a file whose next body breaks off in the middle.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.requests = files, []
        self.refusal: tuple[int, dict[str, str]] | None = None
        self.cut = ""
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def bodies(self) -> list[str]:
        """The files whose content was asked for, each as often as it was."""
        asked = [path for method, path, _ in self.requests if method == "GET"]
        return [path.partition(f"/resolve/{COMMIT}/")[2] for path in asked if "/resolve/" in path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def do_GET(self):
        hub, path = self.server, self.path.partition("?")[0]
        hub.requests.append((self.command, path, self.headers))
        api, name = f"/api/models/{REPO}/", path.partition(f"/{REPO}/resolve/{COMMIT}/")[2]
        if hub.refusal:
            self.answer(*hub.refusal)
        elif path in (api + "revision/main", api + "revision/" + COMMIT):
            self.answer(200, {}, json.dumps({"id": REPO, "sha": COMMIT, "siblings": []}).encode())
        elif path == f"{api}tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": etag(content)}
                for name, content in hub.files.items()
            ]
            self.answer(200, {}, json.dumps(tree).encode())
        elif name in hub.files:
            self.send_file(name, hub.files[name])
        else:
            kind = "RevisionNotFound" if path.startswith(api) else "RepoNotFound"
            self.answer(404, {"X-Error-Code": kind})

    do_HEAD = do_GET

    def send_file(self, name: str, content: bytes) -> None:
        headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        start = int((self.headers["Range"] or "bytes=0-")[len("bytes=") :].rstrip("-"))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.command == "GET" and name == self.server.cut
        self.server.cut = "" if cut else self.server.cut
        self.answer(206 if start else 200, headers, content[start:], cut=cut)

    def answer(self, status: int, headers: dict[str, str], content: bytes = b"", *, cut=False):
        """Send it; with `cut` the connection closes after half of the content."""
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = cut

    def log_message(self, *arguments):
        pass


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
