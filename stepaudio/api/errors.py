"""Errors over HTTP: OpenAI's error object, with a status that says whose affair it is.

400 422 what was sent   401 the key   404 what was named   413 415 the file   429 come again   499 the client left
500 a bug, or nothing came out of the models   503 not yet, not any more, or not enough memory
"""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from stepaudio.errors import (
    Busy,
    Cancelled,
    GenerationError,
    InvalidInput,
    NotFound,
    OutOfMemory,
    ShuttingDown,
    StepAudioError,
    TooLarge,
    Unreadable,
)
from stepaudio.service import Service

log = logging.getLogger(__name__)

LOADING_SECONDS = 5
MOST_RETRY_SECONDS = 60


class ErrorObject(BaseModel):
    """What is wrong. message: one sentence. param: the field at fault, where it is one. code: for programs."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that tells of an error."""

    error: ErrorObject


class ErrorResponse(JSONResponse):
    """An answer with an error object, which leaves its code where the guard finds it for the log."""

    def __init__(self, status: int, error: ErrorObject, headers: dict[str, str] | None) -> None:
        super().__init__(ErrorBody(error=error).model_dump(), status, headers)
        self._code = error.code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["error_code"] = self._code
        await super().__call__(scope, receive, send)


class NotReady(StepAudioError):
    """The models are still being loaded, or could not be."""


class TookTooLong(StepAudioError):
    """The request was not done within the time that one may take."""


# The first entry that fits, so kinds stand before what they are kinds of.
_KINDS: tuple[tuple[type[StepAudioError], int, str, str], ...] = (
    (NotFound, 404, "invalid_request_error", "not_found"),
    (TooLarge, 413, "invalid_request_error", "too_large"),
    (Unreadable, 415, "invalid_request_error", "unreadable_audio"),
    (InvalidInput, 400, "invalid_request_error", "invalid_value"),
    (ShuttingDown, 503, "server_error", "shutting_down"),
    (Busy, 429, "rate_limit_error", "rate_limit_exceeded"),
    (Cancelled, 499, "invalid_request_error", "cancelled"),
    (OutOfMemory, 503, "server_error", "out_of_memory"),
    (GenerationError, 500, "server_error", "generation_failed"),
    (TookTooLong, 503, "server_error", "timeout"),
    (StepAudioError, 503, "server_error", "unavailable"),
)

_OF_STATUS = {
    400: ("invalid_request_error", "invalid_body"),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    408: ("invalid_request_error", "too_slow"),
    413: ("invalid_request_error", "too_large"),
}

DESCRIPTIONS = {
    400: "What was sent cannot be used.",
    401: "A key is missing or wrong.",
    404: "What was named is not there.",
    408: "The body of the request did not come in time.",
    409: "It is not finished yet.",
    413: "More bytes than are taken.",
    415: "The file cannot be read as sound.",
    422: "A field is missing, unknown or out of its range.",
    429: "The line is full; Retry-After says when to come again.",
    499: "The client closed the connection; its job was stopped.",
    500: "Nothing came out of the models, or a bug; the log says more.",
    503: "The models are not loaded, memory or time did not suffice, or the program is coming to its end.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a route for its documentation; 401 can happen on each."""
    return {status: {"model": ErrorBody, "description": DESCRIPTIONS[status]} for status in (401, *statuses)}


def error_response(
    status: int,
    message: str,
    kind: str,
    code: str,
    *,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Return an answer with an error object."""
    return ErrorResponse(status, ErrorObject(message=message, type=kind, param=param, code=code), headers)


def refusal(service: Service, error: BaseException, request_id: str = "") -> JSONResponse:
    """Return the answer that tells of an error of the service; of one that nobody foresaw, only the request's id."""
    headers = {"X-Request-Id": request_id} if request_id else {}
    if not isinstance(error, StepAudioError):  # the queue has logged it
        message = f"Internal error, request {request_id}: the server's log says more."
        return error_response(500, message, "server_error", "internal_error", headers=headers)
    _, status, kind, code = next(entry for entry in _KINDS if isinstance(error, entry[0]))
    if status == 429:
        seconds = min(math.ceil(service.queue.turn_seconds), MOST_RETRY_SECONDS)
        headers["Retry-After"] = str(max(seconds, 1))
    elif isinstance(error, NotReady) and service.state == "loading":
        headers["Retry-After"] = str(LOADING_SECONDS)
    return error_response(status, str(error), kind, code, headers=headers)


def add_handlers(app: FastAPI, service: Service) -> None:
    """Let the application answer every error with an error object."""

    @app.exception_handler(StepAudioError)
    def told(request: Request, error: StepAudioError) -> Response:
        return refusal(service, error, getattr(request.state, "job_id", ""))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
        param = ".".join(place) or None
        if first["type"] == "json_invalid":
            return error_response(400, "The body is not JSON.", *_OF_STATUS[400])
        where = f"The field {param}" if param else "The body"
        message = f"{where} is not right: {first['msg'].removeprefix('Value error, ')}."
        return error_response(422, _printable(message), "invalid_request_error", "invalid_value", param=param)

    @app.exception_handler(HTTPException)
    def other(request: Request, error: HTTPException) -> Response:
        kind, code = _OF_STATUS.get(error.status_code, ("invalid_request_error", "invalid_request"))
        headers = dict(error.headers or {})
        return error_response(error.status_code, _printable(str(error.detail)), kind, code, headers=headers)


def _printable(text: str) -> str:
    """Return the text without characters that JSON in UTF-8 cannot carry (halves of surrogate pairs)."""
    return text.encode("utf-8", "replace").decode("utf-8")
