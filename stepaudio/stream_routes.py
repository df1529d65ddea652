"""Sound over HTTP while it is being made: one call with a form, or, for the page, a ticket and a call that fetches.

What goes wrong before the first byte has a status of its own and one sentence, {"error": ...}; afterwards the
connection ends without the mark of a complete body. A client that leaves stops its job.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from stepaudio.audiofile import wav_header
from stepaudio.errors import Busy, Cancelled, InvalidInput, StepAudioError
from stepaudio.feed import TICKET_SECONDS, SoundFeed
from stepaudio.service import CloneRequest, Service
from stepaudio.web.assets import FOLDER, SCRIPTS
from stepaudio.web.forms import CloneForm, Knobs, clone_request

# As ASGI has them, https://asgi.readthedocs.io/en/latest/specs/www.html
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

Format = Literal["wav", "pcm"]
FORM_BYTES = 1024 * 1024
"""What a form may hold beside its file."""
STALLED_SECONDS = 60.0
"""How long a client may take for one piece; what it has not read is held in memory."""
NUMBERS = ("seed", "temperature", "top_k", "top_p", "max_seconds", "flow_steps")
_STATUS: tuple[tuple[type[StepAudioError], int], ...] = ((InvalidInput, 400), (Busy, 503), (Cancelled, 503))


def add_stream_routes(app: FastAPI, service: Service) -> None:
    """Add the routes below /stream to the application."""

    @app.exception_handler(StepAudioError)
    def told(request: Request, error: StepAudioError) -> Response:
        return refusal(error)

    @app.exception_handler(400)
    def unreadable(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(getattr(error, "detail", error))}, 400)  # of a body that is no form

    @app.post("/stream")
    async def stream(request: Request) -> Response:
        """A form with audio, transcript and text, and perhaps numbers, becomes a sound; ?format=wav or pcm."""
        form = _format(request.query_params.get("format", "wav"))
        asked = await _read_form(request, service)
        feed = SoundFeed()
        service.submit_stream(asked, feed)
        return SoundResponse(feed, form)

    @app.post("/stream/tickets")
    def ticket() -> dict[str, str]:
        """A ticket: the page sends it with its request and fetches the sound by it."""
        return {"ticket": service.tickets.open()}

    @app.get("/stream/{name}.js")
    def script(name: str) -> Response:
        """A script of the page."""
        if f"{name}.js" not in SCRIPTS:
            return JSONResponse({"error": "There is no such script."}, 404)
        return FileResponse(FOLDER / f"{name}.js", media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    @app.get("/stream/{ticket}")
    async def fetch(ticket: str) -> Response:
        """The sound of the job that was submitted with this ticket, as PCM; once."""
        feed = service.tickets.claim(ticket, "read")
        if feed is None:
            return JSONResponse({"error": "There is no sound under this ticket, or not any more."}, 404)
        return SoundResponse(feed, "pcm")


def refusal(error: BaseException, request_id: str = "") -> Response:
    """Return the answer that tells of an error in place of a sound."""
    if not isinstance(error, StepAudioError):  # the queue has logged it
        return JSONResponse({"error": f"Internal error, request {request_id}: the server's log says more."}, 500)
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return JSONResponse({"error": str(error)}, status, {"Retry-After": "60"} if isinstance(error, Busy) else None)


class SoundResponse(Response):
    """The answer that carries a feed's sound; its status is known only when the first piece is there."""

    def __init__(self, feed: SoundFeed, form: Format) -> None:
        super().__init__()
        self._feed = feed
        self._form = form

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(scope, receive, send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            leaving.cancel()
            self._feed.leave()

    async def _send(self, scope: Message, receive: Receive, send: Send) -> None:
        feed = self._feed
        piece = await _first(feed)
        if piece is None:
            error = feed.error or StepAudioError("There is no sound.")
            return await refusal(error, feed.job_id)(scope, receive, send)
        await send({"type": "http.response.start", "status": 200, "headers": _headers(self._form, feed)})
        if self._form == "wav":
            piece = wav_header(feed.sample_rate) + piece
        while piece is not None:
            try:
                async with asyncio.timeout(STALLED_SECONDS):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except TimeoutError:
                return None
            piece = await feed.next()
        # Without this message the server closes the connection, and the client knows that something is missing.
        if feed.error is None:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        return None


async def _first(feed: SoundFeed) -> bytes | None:
    """Return the first piece, None where there is none; without a job it is waited for as long as a ticket is good."""
    if not feed.job_id:
        with suppress(TimeoutError):
            return await asyncio.wait_for(feed.next(), TICKET_SECONDS)
        if not feed.job_id:
            feed.end(Cancelled("No request came with this ticket."))
    return await feed.next()


async def _gone(receive: Receive) -> None:
    """Wait until the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(form: Format, feed: SoundFeed) -> list[tuple[bytes, bytes]]:
    headers = {
        "content-type": "audio/wav" if form == "wav" else "audio/pcm",
        "x-sample-rate": str(feed.sample_rate),
        "x-sample-format": "s16le",
        "x-channels": "1",
        "x-request-id": feed.job_id,
        "cache-control": "no-store",
        "x-accel-buffering": "no",  # nginx would collect it all first
    }
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


async def _read_form(request: Request, service: Service) -> CloneRequest:
    """Return what a client asks for. Raises InvalidInput for a form that is too large or does not hold what it must."""
    length = request.headers.get("content-length", "")
    limit = service.settings.max_upload_bytes + FORM_BYTES
    # Looked at first, because reading a form writes its file to disk however large it is.
    if not length.isdigit() or int(length) > limit:
        raise InvalidInput(f"The request has {length or 'no stated number of'} bytes; at most {limit} are taken.")
    async with request.form(max_files=1, max_fields=20, max_part_size=FORM_BYTES) as form:
        audio = form.get("audio")
        if audio is None or isinstance(audio, str):
            raise InvalidInput("The form has no file named audio: the reference is missing.")
        data = await audio.read()
        texts = {name: str(value) for name, value in form.items() if name != "audio"}
    unknown = sorted(set(texts) - {"transcript", "text", *NUMBERS})
    if unknown:
        raise InvalidInput(f"The field {unknown[0]!r} is not known; see the README.")
    seed, temperature, top_k, top_p, max_seconds, flow_steps = (_number(name, texts.get(name)) for name in NUMBERS)
    knobs = Knobs(seed is None, seed, temperature, top_k, top_p, max_seconds, flow_steps)
    asked = CloneForm(
        knobs,
        audio_path=None,
        transcript=texts.get("transcript", ""),
        text=texts.get("text", ""),
    )
    return clone_request(service.settings, data, asked)


def _number(name: str, text: str | None) -> float | None:
    if text is None:
        return None
    with suppress(ValueError):
        value = float(text)
        if math.isfinite(value):
            return value
    raise InvalidInput(f"The field {name} is {text[:40]!r}; it must be a number.")


def _format(name: str) -> Format:
    if name == "wav":
        return "wav"
    if name == "pcm":
        return "pcm"
    raise InvalidInput(f"The format {name!r} is not known; there are wav and pcm.")
