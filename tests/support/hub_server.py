"""A stand-in for the Hugging Face hub on this machine: the few endpoints that a download needs,
and a repository in diffusers layout.
"""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

REPO = "someone/audioldm2"
CLASSES = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "ClapModel"],
    "unet": ["audioldm2", "AudioLDM2UNet2DConditionModel"],
    "tokenizer": ["transformers", "RobertaTokenizerFast"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "feature_extractor": ["transformers", "ClapFeatureExtractor"],
    "safety_checker": [None, None],
}
INDEX = {"_class_name": "AudioLDM2Pipeline", "_diffusers_version": "0.21.0", **CLASSES}
WANTED = {
    "model_index.json": json.dumps(INDEX).encode(),
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": b"v" * 300,
    "text_encoder/config.json": b'{"shards": 2}',
    "text_encoder/model.safetensors.index.json": b'{"weight_map": {}}',
    "text_encoder/model-00001-of-00002.safetensors": b"1" * 400,
    "text_encoder/model-00002-of-00002.safetensors": b"2" * 500,
    "unet/config.json": b'{"unet": 1}',
    "unet/diffusion_pytorch_model.safetensors": bytes(range(256)) * 100,
    "tokenizer/vocab.json": b'{"a": 1}',
    "tokenizer/merges.txt": b"a b",
    "tokenizer/tokenizer_config.json": b'{"tokenizer": 1}',
    "scheduler/scheduler_config.json": b'{"scheduler": 1}',
    "feature_extractor/preprocessor_config.json": b'{"ears": 1}',
}
UNWANTED = {
    "README.md": b"card",
    "audio.wav": b"RIFF",
    "vae/diffusion_pytorch_model.fp16.safetensors": b"half",
    "vae/diffusion_pytorch_model.bin": b"pickle",
    "text_encoder/model.safetensors.index.fp16.json": b'{"half": 1}',
    "text_encoder/model-00001-of-00001.fp16.safetensors": b"half 1",
    "unet/diffusion_pytorch_model.onnx": b"onnx",
    "unet/nested/config.json": b'{"nested": 1}',
    "safety_checker/config.json": b'{"unused": 1}',
}
UNET = "unet/diffusion_pytorch_model.safetensors"


class FakeHub:
    """Serves repositories of `files[repo][commit][path]`; `branches[repo]` maps names to commits.

    Attributes:
        requests: (method, path, Range header, Authorization header) of all requests so far.
        refusals: repo, or repo and path -> (status, headers), answered instead of the content.
        cuts: paths whose next body breaks off in the middle.
    """

    def __init__(self):
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.requests: list[tuple[str, str, str | None, str | None]] = []
        self.refusals: dict[str, tuple[int, dict[str, str]]] = {}
        self.cuts: set[str] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            def do_HEAD(self):
                hub.answer(self)

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def add(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """A new commit on a branch; its name."""
        commit = hashlib.sha1(repr((repo, branch, sorted(files.items()))).encode()).hexdigest()
        self.files.setdefault(repo, {})[commit] = files
        self.branches.setdefault(repo, {})[branch] = commit
        return commit

    def bodies(self) -> list[str]:
        """The files whose content was asked for, each as often as it was."""
        return [
            path.split("/resolve/")[1].split("/", 1)[1]
            for method, path, _, _ in self.requests
            if method == "GET" and "/resolve/" in path
        ]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path, headers = urlsplit(request.path).path, request.headers
        describe, resolve = path.startswith("/api/models/"), "/resolve/" in path
        if not (describe or resolve):  # what else huggingface_hub likes to know is no matter here
            return send(request, 404, {})
        self.requests.append((request.command, path, headers["Range"], headers["Authorization"]))
        repo, rest = _split(path.removeprefix("/api/models/" if describe else "/"))
        (self._describe if describe else self._resolve)(request, repo, rest)

    def _describe(self, request: BaseHTTPRequestHandler, repo: str, rest: list[str]) -> None:
        if not self._allowed(request, repo, repo):
            return
        revision = rest[1] if rest else "main"
        commit = self.branches[repo].get(revision, revision)
        if commit not in self.files[repo]:
            send(request, 404, {"X-Error-Code": "RevisionNotFound"})
            return
        files = self.files[repo][commit]
        if rest and rest[0] == "tree":
            answer = [
                {"type": "file", "path": name, "size": len(content), "oid": etag(content)}
                for name, content in files.items()
            ]
        else:
            answer = {"id": repo, "sha": commit, "siblings": [{"rfilename": f} for f in files]}
        send(request, 200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _resolve(self, request: BaseHTTPRequestHandler, repo: str, rest: list[str]) -> None:
        commit, name = rest[1], "/".join(rest[2:])
        if not self._allowed(request, repo, f"{repo}/{name}"):
            return
        content = self.files[repo][commit][name]
        headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start = int((request.headers["Range"] or "bytes=0-")[len("bytes=") :].rstrip("-"))
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = request.command == "GET" and name in self.cuts
        self.cuts -= {name} if cut else set()
        send(request, 206 if start else 200, headers, content[start:], cut=cut)

    def _allowed(self, request: BaseHTTPRequestHandler, repo: str, what: str) -> bool:
        if repo not in self.files:
            send(request, 404, {"X-Error-Code": "RepoNotFound"})
        elif what in self.refusals:
            send(request, *self.refusals[what])
        return repo in self.files and what not in self.refusals


def _split(path: str) -> tuple[str, list[str]]:
    """The repository of a path, and the parts that follow."""
    parts = path.split("/")
    return "/".join(parts[:2]), parts[2:]


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def send(
    request: BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    content: bytes = b"",
    *,
    cut: bool = False,
) -> None:
    """An answer; with `cut` the connection closes after half of the content."""
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(content))}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content[: len(content) // 2] if cut else content)
    if cut:
        request.close_connection = True
