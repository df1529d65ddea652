"""What stands before the whole application: who may come in, and whether there is room for what they bring."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import PlainTextResponse

from stepaudio.api.errors import no_room
from stepaudio.api.guard import is_api, path_of
from stepaudio.errors import InvalidInput
from stepaudio.tempfolder import TempFolder

# As ASGI has them, https://asgi.readthedocs.io/en/latest/specs/www.html
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN = ("/health/live", "/health/ready")
"""What orchestrators ask, who have no password."""
WRONG_SECONDS = 1.0
"""How long a wrong password is left waiting for its answer, so that trying many takes long."""
SMALL_BODY = 1024 * 1024
"""Up to this size Starlette keeps a form's file in memory."""


class Login:
    """Lets in who sends the one name and password (HTTP Basic); everybody may ask for the health.

    keyed: whether the API asks for keys of its own; what comes to it with one is then left to it to check.
    """

    def __init__(self, app: App, login: tuple[bytes, bytes], *, root_path: str = "", keyed: bool = False) -> None:
        self._app = app
        self._login = login
        self._root_path = root_path
        self._keyed = keyed

    @staticmethod
    def parse(login: str) -> tuple[bytes, bytes] | None:
        """Return name and password of the setting, None where nobody is asked. Raises InvalidInput for half of one."""
        if not login:
            return None
        name, _, password = login.partition(":")
        if not name or not password:
            raise InvalidInput("The setting login must be a name and a password with a colon between them.")
        return name.encode(), password.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":  # nothing here speaks over websockets
            return await send({"type": "websocket.close", "code": 1008})
        sent = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        path = path_of({**scope, "root_path": self._root_path})
        to_the_api = self._keyed and is_api(path) and sent[:7].lower() == b"bearer "
        if path in OPEN or to_the_api or self._right(sent):
            return await self._app(scope, receive, send)
        if sent:
            await asyncio.sleep(WRONG_SECONDS)
        refused = PlainTextResponse(
            "A name and a password are needed.", 401, {"WWW-Authenticate": 'Basic realm="stepaudio", charset="UTF-8"'}
        )
        return await refused(scope, receive, send)

    def _right(self, sent: bytes) -> bool:
        scheme, _, value = sent.partition(b" ")
        if scheme.lower() != b"basic":
            return False
        try:
            name, _, password = base64.b64decode(value, validate=True).partition(b":")
        except binascii.Error:
            return False
        # Both are compared, each in a time that does not depend on where they differ.
        right = hmac.compare_digest(name, self._login[0]), hmac.compare_digest(password, self._login[1])
        return all(right)


class Room:
    """Turns away a body for which the folder of uploads has no room left.

    Room is made, of what others have left there, only when the body is asked for: after the application has seen by
    the headers whether it takes the request at all.
    """

    def __init__(self, app: App, folder: TempFolder) -> None:
        self._app = app
        self._folder = folder

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in ("POST", "PUT"):
            length = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
            # A body without a stated length is bounded by the limits of its route; here it counts as a small one.
            needed = int(length) if length.isdigit() else SMALL_BODY
            self._folder.restore()
            if needed >= SMALL_BODY:
                receive = self._with_room(receive, needed)
        return await self._app(scope, receive, send)

    def _with_room(self, receive: Receive, needed: int) -> Receive:
        """Return a ``receive`` that makes room before the first piece; raises HTTPException where there is none."""
        made = False

        async def receiving() -> Message:
            nonlocal made
            if not made and not await asyncio.to_thread(self._folder.make_room, needed):
                raise no_room()
            made = True
            return await receive()

        return receiving
