"""The server: POST /v1/audio/generate, GET /v1/models and GET /health over one worker."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from audiolitefocus import __version__
from audiolitefocus.output import AudioOutput
from audiolitefocus.pipeline import AudioLDM2Pipeline
from audiolitefocus.web.errors import answer_errors
from audiolitefocus.web.gate import SPARE, Gate, KeyCheck, read_body
from audiolitefocus.web.limits import Limits
from audiolitefocus.web.schema import Asked, read_request, request_schema
from audiolitefocus.web.sounds import FORMATS, encode, encode_stream
from audiolitefocus.web.worker import Cancelled, Job, Worker

GENERATE = "/v1/audio/generate"
PART_BYTES = 1 << 16  # of an answer, sent at once

log = logging.getLogger("uvicorn.error")


class Delivery(Job):
    """A job whose sound is handed to the event loop, part by part, as bytes of a file.

    Args:
        loop: of the request.
    """

    def __init__(self, asked: Asked, loop: asyncio.AbstractEventLoop):
        copies = asked.options.num_waveforms_per_prompt
        super().__init__(asked.prompt, asked.options, asked.seconds * copies)
        self.asked, self.loop = asked, loop
        # not bounded, so that a slow client does not keep the worker: a clip's length bounds it
        self.parts: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.score: float | None = None

    def on_made(self, output: AudioOutput) -> None:
        if output.scores is not None:
            self.score = float(output.scores[0])
        best: Any = output.audios[0]  # one waveform where there are candidates, else its blocks
        blocks, rate = (best if output.scores is None else [best]), output.sampling_rate
        if self.asked.stream:
            for part in encode_stream(self.asked.format, blocks, rate, self.asked.samples):
                if self.cancelled:
                    raise Cancelled
                self._put(part)
        else:
            self._put(encode(self.asked.format, self._while_wanted(blocks), rate))
        self._put(None)

    def on_error(self, error: Exception) -> None:
        self._put(error)

    def _while_wanted(self, blocks):
        for block in blocks:
            if self.cancelled:
                raise Cancelled
            yield block

    def _put(self, part: bytes | Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(self.parts.put_nowait, part)

    async def next_part(self) -> bytes | None:
        """The next bytes, or None after the last ones. Raises what went wrong."""
        part = await self.parts.get()
        if isinstance(part, Exception):
            raise part
        return part

    @property
    def headers(self) -> dict[str, str]:
        """What is needed to make the clip again, and to read raw samples."""
        score = {} if self.score is None else {"X-CLAP-Score": f"{self.score:.4f}"}
        return {"X-Seed": str(self.seed), **score}


def make_app(
    pipe: AudioLDM2Pipeline, *, model: str, limits: Limits | None = None, key: str | None = None
) -> FastAPI:
    """The ASGI application.

    Args:
        model: what the model is called in requests.
        key: that requests under /v1 must bring; None: none.
    """
    limits = limits or Limits()
    worker = Worker(pipe, waiting=limits.waiting, batch=limits.batch, seconds=limits.seconds)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.close)

    app = FastAPI(title="audiolitefocus", version=__version__, lifespan=lifespan)
    app.add_middleware(Gate, path=GENERATE, most=limits.waiting + limits.batch + SPARE)
    answer_errors(app)
    allowed = [Depends(KeyCheck(key))]
    _add_status(app, worker, model, allowed)
    _add_generate(app, worker, model, limits, allowed)
    return app


def _add_status(app: FastAPI, worker: Worker, model: str, allowed: list) -> None:
    """Add the paths that say how the server is, and what it serves."""

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether clips can be made, and how many wait."""
        status = "ok" if worker.alive else "the worker has ended"
        about = {"status": status, "model": model, "device": str(worker.pipe.device)}
        counts = {"running": worker.running, "waiting": worker.waiting}
        return JSONResponse({**about, **counts}, 200 if worker.alive else 503)

    @app.get("/v1/models", dependencies=allowed)
    async def models() -> dict:
        """The model that is served."""
        about = {"id": model, "object": "model", "created": 0, "owned_by": "audiolitefocus"}
        return {"object": "list", "data": [about]}


def _add_generate(app: FastAPI, worker: Worker, model: str, limits: Limits, allowed: list) -> None:
    """Add the path that makes sounds."""
    body = {"required": True, "content": {"application/json": {"schema": request_schema(limits)}}}
    sounds: dict = {media_type: {} for media_type in FORMATS.values()}

    @app.post(
        GENERATE,
        dependencies=allowed,
        response_class=Response,
        openapi_extra={"requestBody": body},
        responses={200: {"content": sounds, "description": "The sound."}},
    )
    async def generate(request: Request) -> Response:
        """Make a sound. It can be made again with the seed in the header X-Seed."""
        worker.check_room()
        data = await read_body(request, limits.body_bytes)
        asked = await asyncio.to_thread(read_request, data, worker.pipe, model, limits)
        job = Delivery(asked, asyncio.get_running_loop())
        worker.submit(job)
        try:
            return await _answer(request, job, worker)
        except BaseException:
            worker.cancel(job)
            raise


async def _answer(request: Request, job: Delivery, worker: Worker) -> Response:
    """The response, as soon as its first bytes are there: until then errors have a status."""
    first = await _unless_gone(request, job)
    headers = job.headers
    if not job.asked.stream:
        headers["Content-Length"] = str(len(first))
    media_type = FORMATS[job.asked.format]
    if job.asked.format == "pcm":
        media_type += f"; rate={worker.pipe.sampling_rate}; channels=1"
    return SoundResponse(job, worker, _parts(first, job), 200, headers, media_type)


class SoundResponse(StreamingResponse):
    """A sound, part by part; however that ends, the worker then forgets its job."""

    def __init__(self, job: Delivery, worker: Worker, *arguments: Any):
        super().__init__(*arguments)
        self.job, self.worker = job, worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.worker.cancel(self.job)


async def _parts(first: bytes, job: Delivery) -> AsyncIterator[bytes]:
    part: bytes | None = first
    try:
        while part is not None:
            for start in range(0, len(part), PART_BYTES):
                yield part[start : start + PART_BYTES]
            part = await job.next_part()
    except Exception as error:
        log.error("a clip broke off while it was sent: %s", error)
        raise ConnectionAbortedError from None  # the client must see that it is not whole


async def _unless_gone(request: Request, job: Delivery) -> bytes:
    """The first bytes of the sound. Raises ClientDisconnect if the client goes before."""
    part = asyncio.ensure_future(job.next_part())
    gone = asyncio.ensure_future(request.receive())  # all that comes after the body
    try:
        await asyncio.wait({part, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not part.done():
            raise ClientDisconnect
        first = part.result()
        assert first is not None, "a sound has at least its header"
        return first
    finally:
        part.cancel()
        gone.cancel()
