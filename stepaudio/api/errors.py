"""Errors over HTTP: OpenAI's error object, with a status that says whose affair it is.

400 422 what was sent   401 the key   403 a page of another address   404 what was named   413 415 the file
429 come again   499 the client left   500 a bug, or nothing came out of the models
503 not yet, not any more, or not enough memory   507 no room for what is uploaded
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
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
from stepaudio.log import NO_REQUEST, request_context
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
    507: ("server_error", "no_room"),
}

_KIND = re.compile(r"(constrained|function)-.+|str|[A-Z]\w*")
"""What pydantic calls a kind that a field may have; no field has such a name."""

# What is wrong with a field, by pydantic's name for it.
_WORDS = {
    **dict.fromkeys(("string_type", "string_sub_type"), "it must be a text"),
    "string_unicode": "it must be a text in UTF-8",
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "it must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "it must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "it must be true or false"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "it must be an object"),
    "list_type": "it must be a list",
    "literal_error": "it must be {expected}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than_equal": "it must be at most {le}",
    "string_too_long": "it may have at most {max_length} characters",
    "too_long": "it may have at most {max_length} entries",
}

DESCRIPTIONS = {
    400: "What was sent cannot be used.",
    401: "A key is missing or wrong.",
    403: "A page of another address made the browser send this.",
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
    507: "There is no room for more uploads at the moment.",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the errors of a route for its documentation; 401 and 403 can happen on each."""
    return {status: {"model": ErrorBody, "description": DESCRIPTIONS[status]} for status in (401, 403, *statuses)}


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


def no_room() -> HTTPException:
    """Return the error of an upload for which there is no room."""
    message = "There is no room for more uploads at the moment; please try again in some minutes."
    return HTTPException(507, message, headers={"Retry-After": "60"})


def at_the_end(service: Service, error: BaseException) -> BaseException:
    """Return what to tell a client that is still there: a job that it did not stop was stopped with the program."""
    if isinstance(error, Cancelled) and service.state == "stopping":
        return ShuttingDown("The program is being shut down, and this request was stopped; please try again later.")
    return error


def refusal(service: Service, error: BaseException, request_id: str = "") -> JSONResponse:
    """Return the answer that tells of an error of the service; of one that nobody foresaw, only the request's id."""
    headers = {"X-Request-Id": request_id} if request_id else {}
    if not isinstance(error, StepAudioError):
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

    @app.exception_handler(Exception)
    def unforeseen(request: Request, error: Exception) -> Response:
        # Starlette calls this outside of the guard, and raises the error again, upon which the server closes the
        # connection; a client that did not know would send its next request into it.
        job_id = getattr(request.state, "job_id", "")
        request_id = job_id or getattr(request.state, "request_id", NO_REQUEST)
        if not job_id:  # else the queue has logged it
            with request_context(request_id):
                log.error("%s failed unexpectedly.", request.method, exc_info=error)
        answer = refusal(service, error, request_id)
        answer.headers["Connection"] = "close"
        return answer

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        found = _nearest(error.errors())
        if found["type"] == "json_invalid":
            return error_response(400, "The body is not JSON.", *_OF_STATUS[400])
        param = _field(found)
        message = _printable(_sentence(found, param))
        return error_response(422, message, "invalid_request_error", "invalid_value", param=param)

    @app.exception_handler(HTTPException)
    def other(request: Request, error: HTTPException) -> Response:
        disk = error.__cause__
        # FastAPI says of anything that ends the reading of a body that it is malformed.
        if error.status_code == 400 and isinstance(disk, OSError):
            log.warning("What a client sent cannot be kept: %s.", disk.strerror or disk)
            error = no_room()
        kind, code = _OF_STATUS.get(error.status_code, ("invalid_request_error", "invalid_request"))
        headers = dict(error.headers or {})
        return error_response(error.status_code, _printable(str(error.detail)), kind, code, headers=headers)


def _nearest(errors: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the first error; where a field may be one of two kinds, that of the kind which fits it better."""
    same = [error for error in errors if error["loc"][:2] == errors[0]["loc"][:2]]
    return max(same, key=lambda error: len(error["loc"]))


def _field(error: dict[str, Any]) -> str | None:
    """Return the name of the field at fault as the client knows it, with those around it; None for the whole body."""
    *around, last = error["loc"][1:] or ("",)
    # pydantic names the kinds that a field may have amid the fields; what a client has named stands last.
    own = [part for part in around if not _KIND.fullmatch(str(part))]
    if error["type"] in ("missing", "extra_forbidden") or not _KIND.fullmatch(str(last)):
        own.append(last)
    return ".".join(map(str, own)) or None


def _sentence(error: dict[str, Any], field: str | None) -> str:
    """Return what is wrong with a field, or with the body, in words that need no knowledge of Python."""
    where = f"The field {field}" if field else "The body"
    match error["type"]:
        case "missing":
            return f"{where} is missing."
        case "extra_forbidden":
            return f"There is no field {field} here."
        case "model_type" | "model_attributes_type" | "dict_type" if field is None:
            return "The body must be a JSON object, sent with the header 'Content-Type: application/json'."
        case "string_too_short" | "too_short" if error["ctx"]["min_length"] == 1:
            return f"{where} is empty."
        case "value_error" if "UploadFile" in error["msg"]:
            return f"{where} is not right: it must be a file."
    limits = {name: f"{value:g}" if isinstance(value, float) else value for name, value in error.get("ctx", {}).items()}
    words = _WORDS.get(error["type"])
    return f"{where} is not right: {words.format(**limits) if words else error['msg']}."


def _printable(text: str) -> str:
    """Return the text without characters that JSON in UTF-8 cannot carry (halves of surrogate pairs)."""
    return text.encode("utf-8", "replace").decode("utf-8")
