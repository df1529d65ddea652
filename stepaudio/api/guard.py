"""What stands before every route: whose page asks, how large the request is; of the API also the key, and a count."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response

from stepaudio.api.errors import error_response
from stepaudio.api.origins import is_foreign
from stepaudio.errors import InvalidInput
from stepaudio.log import request_context
from stepaudio.service import Service
from stepaudio.settings import Settings

log = logging.getLogger(__name__)

# As ASGI has them, https://asgi.readthedocs.io/en/latest/specs/www.html
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

FORM_BYTES = 2**20
"""What a request may hold beside a file."""
BATCH_BYTES = 8 * 2**20
PAGE_BYTES = 8 * 2**20
"""What a request of the page may hold: its fields as JSON, which are read into memory whole."""
UPLOAD = "/gradio_api/upload"
"""How sounds come from the page, recorded ones too; they are written to a file while they come."""
BODY_SECONDS = 60.0
"""How long a client may take for one piece of its request."""
GIVEN_UP = ("timeout", "cancelled")
"""Codes of jobs that may never have begun, so that the log need not have heard of them."""


class Guard:
    """ASGI middleware for all paths. The API's ask for a key, where there are keys, and their answers are counted."""

    def __init__(self, app: App, service: Service, keys: tuple[bytes, ...]) -> None:
        """keys: one of which a client must send; () where none is needed."""
        self._app = app
        self._service = service
        self._keys = keys

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        path, headers = path_of(scope), Headers(scope=scope)
        state = scope.setdefault("state", {})
        state["request_id"] = secrets.token_hex(8)
        counted = self._counted(scope, send, state["request_id"])
        asked = is_api(path)
        key = self._key(headers.get("authorization", "").encode("latin-1")) if asked else ""
        limit = _limit(path, self._service.settings)
        refused = self._misled(scope, path, headers) or _locked_out(key, headers) or _oversized(limit, headers)
        if refused is not None:
            return await refused(scope, receive, counted)
        client = scope.get("client")
        state["client"] = key or (client[0] if client else "unknown")
        return await self._app(scope, _limited(receive, limit), counted if asked else send)

    def _misled(self, scope: Message, path: str, headers: Headers) -> Response | None:
        """Return the answer to a request that nobody means to send: to a path that is none, or for a foreign page."""
        if any(character < " " or character == "\x7f" for character in path):
            # Routes match before a line's end, too, so such a path may be more than it seems.
            message = "The path of the request holds a control character."
            return error_response(400, message, "invalid_request_error", "invalid_path")
        # A key says more than an origin: no page has one that it was not given, and no browser adds it by itself.
        keyed = self._keys and is_api(path)
        if not keyed and is_foreign(scope["method"], headers):
            message = (
                "Pages of other addresses may not use this server; if this is its own page, the proxy before it must "
                "pass on the header Host as the browser sent it."
            )
            return error_response(403, message, "invalid_request_error", "foreign_origin")
        return None

    def _key(self, sent: bytes) -> str | None:
        """Return what to call the client by its key, "" where no key is needed, None where it is missing or wrong."""
        if not self._keys:
            return ""
        scheme, _, key = sent.partition(b" ")
        # All of them are compared, each in a time that does not depend on where they differ.
        right = [hmac.compare_digest(key.strip(), known) for known in self._keys]
        if scheme.lower() != b"bearer" or not any(right):
            return None
        return "key:" + hashlib.sha256(self._keys[right.index(True)]).hexdigest()[:16]

    def _counted(self, scope: Message, send: Send, request_id: str) -> Send:
        """Return a ``send`` that gives every answer a request id, counts it, and logs it where it tells of an error."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "unknown")
                self._service.metrics.answered(_method(scope["method"]), route, message["status"])
                job_id = next((value for name, value in message["headers"] if name == b"x-request-id"), b"").decode()
                if not job_id:
                    message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                if message["status"] >= 400:
                    _log(scope, route, message["status"], job_id, request_id)
            await send(message)

        return sending


def read_keys(settings: Settings) -> tuple[bytes, ...]:
    """Return the keys that the settings name; raises InvalidInput where they hold none, or a file cannot be read.

    Whoever sets one of the two means to lock the door, so what holds no key must not leave it open.
    """
    keys = [key.strip() for key in settings.api_keys.split(",") if key.strip()]
    if settings.api_keys and not keys:
        raise InvalidInput("The setting api_keys holds no key.")
    if settings.api_keys_file:
        try:
            lines = Path(settings.api_keys_file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"The file of API keys {settings.api_keys_file} cannot be read: {error}.") from error
        found = [key for line in lines if (key := line.strip()) and not key.startswith("#")]
        if not found:
            raise InvalidInput(f"The file of API keys {settings.api_keys_file} holds no key.")
        keys += found
    return tuple(key.encode() for key in dict.fromkeys(keys))


def path_of(scope: Message) -> str:
    """Return the path below the root path: what the router takes for it, so that the two never mean different ones."""
    return get_route_path(scope)


def is_api(path: str) -> bool:
    # Below /stream/ are the page's own: its player, and sounds by a ticket that nobody can guess.
    return path.startswith("/v1/") or path in ("/v1", "/stream", "/stream/", "/metrics")


def _limit(path: str, settings: Settings) -> int:
    if path == "/v1/batch":
        return BATCH_BYTES
    if path in ("/stream", "/v1/voices", "/v1/audio/edits", "/v1/audio/transcriptions", UPLOAD):
        return FORM_BYTES + settings.max_upload_bytes
    return FORM_BYTES if is_api(path) else PAGE_BYTES


def _locked_out(key: str | None, headers: Headers) -> Response | None:
    """Return the answer to who has no right key."""
    if key is not None:
        return None
    wrong = "The key is not one of this server's." if "authorization" in headers else "A key is needed."
    message = f"{wrong} Send it as 'Authorization: Bearer KEY'."
    challenge = {"WWW-Authenticate": "Bearer"}
    return error_response(401, message, "authentication_error", "invalid_api_key", headers=challenge)


def _oversized(limit: int, headers: Headers) -> Response | None:
    """Return the answer to a request that says of itself that it is too large."""
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) <= limit:
        return None
    return error_response(413, _too_large(limit), "invalid_request_error", "too_large")


def _limited(receive: Receive, limit: int) -> Receive:
    """Return a ``receive`` that ends a body which is larger than it said, or comes too slowly."""
    received = 0
    complete = False

    async def receiving() -> Message:
        nonlocal received, complete
        if complete:
            return await receive()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, f"Nothing of the request came for {BODY_SECONDS:.0f} s.") from error
        received += len(message.get("body", b""))
        complete = not message.get("more_body", False)
        if received > limit:
            raise HTTPException(413, _too_large(limit))
        return message

    return receiving


def _too_large(limit: int) -> str:
    return f"The request is too large: at most {limit / 2**20:.0f} MB are taken here."


def _log(scope: Message, route: str, status: int, job_id: str, request_id: str) -> None:
    """Write one line for an answer that tells of an error, unless the log has that of its job.

    It names the route as it is declared: what stands in its place in the path came from the client.
    """
    code = scope["state"].get("error_code") or "unknown"
    if job_id and code not in GIVEN_UP:
        return
    method = _method(scope["method"])
    facts = {"event": "refusal", "method": method, "route": route, "status": status, "code": code}
    with request_context(job_id or request_id):
        log.info("%s %s refused: %d %s", method, route, status, code, extra={"facts": facts})


def _method(name: str) -> str:
    """Return the method for the count of answers, so that invented ones cannot fill the memory with names."""
    return name if name in ("GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS") else "other"
