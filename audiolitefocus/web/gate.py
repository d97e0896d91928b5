"""What a request passes before it is looked at: the key, the size of its body, and its patience."""

import asyncio
import hmac
import json
import logging

from fastapi import HTTPException, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from audiolitefocus.validation import parse_object
from audiolitefocus.web.errors import busy

BODY_SECONDS = 60.0  # for a whole body to arrive
SEND_SECONDS = 60.0  # for a part of an answer to be taken
SEPARATORS = 10_000  # of JSON in a body: each may become an object of a hundred bytes
SPARE = 16  # requests that may be read or answered besides those that wait or run

log = logging.getLogger("uvicorn.error")


class Gate:
    """Bounds how many requests to `path` are open, and how slowly they may take their answers."""

    def __init__(self, app: ASGIApp, *, path: str, most: int):
        self.app, self.path, self.most, self.open = app, path, most, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self.path:
            await self.app(scope, receive, send)
            return
        if self.open >= self.most:
            await busy("too many requests are open; try again in 1 s", 1)(scope, receive, send)
            return

        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        self.open += 1
        try:
            await self.app(scope, receive, send_in_time)
        except TimeoutError:
            log.warning("dropped a client that took nothing for %g s", SEND_SECONDS)
        except ConnectionAbortedError:
            pass  # said and logged where it happened; the answer ends without its last part
        finally:
            self.open -= 1


class KeyCheck:
    """A dependency that lets a request pass with the right key, or with any where there is none."""

    def __init__(self, key: str | None):
        self.key = None if key is None else key.encode()

    async def __call__(self, request: Request) -> None:
        if self.key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # compared in constant time: how long it takes must not say how much of it was right
        if not hmac.compare_digest(given.strip().encode(), self.key) or scheme.lower() != "bearer":
            raise HTTPException(401, "give the key as Authorization: Bearer KEY")


async def read_body(request: Request, most: int) -> dict:
    """The JSON object of a request. Raises HTTPException for one that is too large or too slow."""
    # a browser sends no JSON to another site without asking it first
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "send JSON, with Content-Type: application/json")
    said = request.headers.get("content-length", "0")
    if not said.isdecimal() or int(said) > most:
        raise HTTPException(413, f"the body must have {most} bytes at most")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                if len(body) + len(part) > most:
                    raise HTTPException(413, f"the body must have {most} bytes at most")
                body += part
    except TimeoutError:
        raise HTTPException(408, f"the body took more than {BODY_SECONDS:g} s") from None
    return await asyncio.to_thread(parse_body, bytes(body))


def parse_body(body: bytes) -> dict:
    """The JSON object in these bytes. Raises HTTPException."""
    if sum(body.count(mark) for mark in (b",", b":", b"[", b"{")) > SEPARATORS:
        raise HTTPException(400, "the body has too many entries")
    try:
        return parse_object(body.decode())
    except (ValueError, json.JSONDecodeError) as error:
        reason = str(error) if not isinstance(error, UnicodeDecodeError) else "not UTF-8"
        raise HTTPException(400, f"the body is {reason}") from None
