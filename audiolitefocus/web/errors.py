"""Errors as answers: one JSON object in the shape of OpenAI's servers, whatever went wrong."""

from collections.abc import Mapping

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from audiolitefocus.web.schema import RequestError
from audiolitefocus.web.worker import Closed, Full

TYPES = {
    401: ("authentication_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}
# Exception stands for every other one
ANSWERED = (HTTPException, ValueError, Full, Closed, MemoryError, ClientDisconnect, Exception)


def error_response(
    status: int, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as OpenAI's servers write it."""
    kind, code = TYPES.get(
        status, ("server_error" if status >= 500 else "invalid_request_error", None)
    )
    body = {"message": " ".join(message.split()), "type": kind, "param": param, "code": code}
    return JSONResponse({"error": body}, status, headers)


def busy(message: str, seconds: int) -> JSONResponse:
    """An answer that says when to try again."""
    return error_response(429, message, headers={"Retry-After": str(seconds)})


def response_to(error: Exception) -> Response:
    """The answer to a request that ended in this error."""
    match error:
        case RequestError():
            return error_response(error.status, str(error), error.param)
        case ValueError():
            return error_response(400, str(error))
        case HTTPException(status_code=401):
            challenge = {**(error.headers or {}), "WWW-Authenticate": "Bearer"}
            return error_response(401, str(error.detail), headers=challenge)
        case HTTPException():
            return error_response(error.status_code, str(error.detail), headers=error.headers)
        case Full():
            return busy(str(error), error.seconds)
        case Closed():
            return error_response(503, str(error))
        case MemoryError():
            return error_response(507, str(error))
        case ClientDisconnect():
            return Response(status_code=499)  # which nobody reads
    return error_response(500, "an error inside the server; its log says more")


def answer_errors(app: FastAPI) -> None:
    """Answer every error of the application by `response_to`."""

    async def answer(request: Request, error: Exception) -> Response:
        return response_to(error)

    for kind in ANSWERED:
        app.add_exception_handler(kind, answer)
