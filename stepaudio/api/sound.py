"""Sound as an answer: while it is being made, as bytes or as server-sent events, or whole.

What goes wrong before the first byte has a status of its own; afterwards the connection ends without the mark of a
complete body. A client that leaves stops its job.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.responses import Response

from stepaudio.api.errors import TookTooLong, at_the_end, refusal
from stepaudio.api.guard import Message, Receive, Send
from stepaudio.audiofile import pcm16
from stepaudio.audiostream import STREAM_FORMATS, StreamCoder, encode_whole
from stepaudio.errors import Cancelled, GenerationError, StepAudioError
from stepaudio.feed import TICKET_SECONDS, SoundFeed
from stepaudio.queue import Job
from stepaudio.service import Service
from stepaudio.types import Stage, Synthesis, Timings

STALLED_SECONDS = 60.0
"""How long a client may take for one piece; what it has not read is held in memory."""

T = TypeVar("T")
_QUOTES = str.maketrans("“”‘’", "\"\"''")


class Framing(Protocol):
    """How the bytes of a file travel."""

    media_type: str

    def part(self, data: bytes) -> bytes: ...

    def last(self, feed: SoundFeed) -> bytes: ...

    def broken(self, message: str) -> bytes:
        """Return what tells of an error amid the sound, b"" where nothing can."""
        ...


class Plain:
    """The bytes as they are."""

    def __init__(self, name: str) -> None:
        self.media_type = STREAM_FORMATS[name].media_type

    def part(self, data: bytes) -> bytes:
        return data

    def last(self, feed: SoundFeed) -> bytes:
        return b""

    def broken(self, message: str) -> bytes:
        return b""


class Events:
    """OpenAI's server-sent events: speech.audio.delta with base64, at the end speech.audio.done with the usage."""

    media_type = "text/event-stream"

    def part(self, data: bytes) -> bytes:
        return _event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()}) if data else b""

    def last(self, feed: SoundFeed) -> bytes:
        synthesis = feed.job.result(0).synthesis if feed.job is not None else None
        usage = _usage(synthesis) if synthesis is not None else None
        return _event({"type": "speech.audio.done", "usage": usage})

    def broken(self, message: str) -> bytes:
        return _event({"error": {"message": message, "type": "server_error", "param": None, "code": "broken_off"}})


class SoundResponse(Response):
    """The answer that carries a feed's sound; its status is known only when the first piece is there."""

    def __init__(
        self,
        service: Service,
        feed: SoundFeed,
        name: str,
        *,
        speed: float = 1.0,
        framing: Framing | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._service = service
        self._feed = feed
        self._name = name
        self._speed = speed
        self._framing = framing or Plain(name)
        self._more = dict(headers or {})

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(scope, receive, send))
        leaving = asyncio.create_task(gone(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            sending.cancel()
            leaving.cancel()
            self._feed.leave()

    async def _send(self, scope: Message, receive: Receive, send: Send) -> None:
        feed, framing = self._feed, self._framing
        seconds = self._service.settings.request_seconds
        end = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(end):
                piece = await _first(feed)
        except TimeoutError:
            return await refusal(self._service, too_long(seconds), feed.job_id)(scope, receive, send)
        if piece is None:
            error = feed.error or GenerationError("There is no sound.")
            return await refusal(self._service, at_the_end(self._service, error), feed.job_id)(scope, receive, send)
        coder = StreamCoder(self._name, feed.sample_rate, self._speed)
        await send({"type": "http.response.start", "status": 200, "headers": self._begin()})
        while piece is not None:
            if not await _sent(send, framing.part(coder.add(piece))):
                return None
            try:
                async with asyncio.timeout_at(end):
                    piece = await feed.next()
            except TimeoutError:
                feed.end(too_long(seconds))
                break
        if feed.error is not None:
            error = at_the_end(self._service, feed.error)
            known = isinstance(error, StepAudioError)
            message = str(error) if known else f"Internal error, request {feed.job_id}: the log says more."
            last = framing.broken(message)
            if not last:
                # Without the last message the server closes the connection, so the client knows that there was more.
                return None
        else:
            last = framing.part(coder.end()) + framing.last(feed)
        await _sent(send, last)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return None

    def _begin(self) -> list[tuple[bytes, bytes]]:
        feed = self._feed
        headers = {
            "content-type": self._framing.media_type,
            "x-sample-rate": str(feed.sample_rate),
            "x-sample-format": "s16le",
            "x-channels": "1",
            "x-request-id": feed.job_id,
            "x-stepaudio-cache": _cache(feed.timings),
            "server-timing": server_timing(feed.timings),
            "cache-control": "no-store",
            "x-accel-buffering": "no",  # nginx would collect it all first
            **self._more,
            **{name.lower(): line for name, line in notice_header(feed.notices).items()},
        }
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def whole_response(
    job_id: str, synthesis: Synthesis, name: str, speed: float = 1.0, *, notices: Sequence[str] = ()
) -> Response:
    """Return the answer that carries a sound that is complete; ``notices`` come before the sound's own."""
    waveform = synthesis.waveform
    data = encode_whole(pcm16(waveform.samples), name, waveform.sample_rate, speed)
    headers = {**result_headers(job_id, synthesis), **notice_header([*notices, *synthesis.notices])}
    return Response(data, media_type=STREAM_FORMATS[name].media_type, headers=headers)


def archive_response(job_id: str, takes: Sequence[Synthesis], name: str, speed: float = 1.0) -> Response:
    """Return the answer that carries several takes: take-01.wav, ... and manifest.json with the seed of each."""
    target = io.BytesIO()
    records = []
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for number, take in enumerate(takes, 1):
            file = f"take-{number:02d}{STREAM_FORMATS[name].suffix}"
            waveform = take.waveform
            archive.writestr(file, encode_whole(pcm16(waveform.samples), name, waveform.sample_rate, speed))
            seconds = round(waveform.seconds, 3)
            records.append({"file": file, "seed": take.seed, "seconds": seconds, "stopped": take.stopped})
        archive.writestr("manifest.json", json.dumps(records, indent=1))
    headers = {**result_headers(job_id, takes[0]), **notice_header(takes[0].notices)}
    return Response(target.getvalue(), media_type="application/zip", headers=headers)


def result_headers(job_id: str, synthesis: Synthesis) -> dict[str, str]:
    """Return the headers that tell how a sound was made."""
    return {
        "X-Request-Id": job_id,
        "X-Sample-Rate": str(synthesis.waveform.sample_rate),
        "X-Stepaudio-Seed": str(synthesis.seed),
        "X-Stepaudio-Cache": "hit" if synthesis.cache_hit else "miss",
        "Server-Timing": server_timing(synthesis.timings),
        "Cache-Control": "no-store",
    }


def notice_header(notices: Sequence[str]) -> dict[str, str]:
    """Return the header with what the user should know, on one line and in ASCII; none where there is nothing."""
    words = " ".join(" ".join(notices).translate(_QUOTES).split())
    line = "".join(character if " " <= character <= "~" else "?" for character in words)
    return {"X-Stepaudio-Notice": line} if line else {}


def server_timing(timings: Timings) -> str:
    """Return the stages as https://www.w3.org/TR/server-timing/ has them, in milliseconds; inner ones follow theirs."""
    parts = [_timing(stage) for stage in _every(timings.stages)]
    return ", ".join([*parts, f"total;dur={timings.total * 1000:.1f}"])


async def result_of(job: Job[T], request: Request, service: Service) -> T:
    """Return the job's result; when the client leaves or the time is over, the job is cancelled.

    Raises what the job raised, Cancelled, TookTooLong, or ShuttingDown where the program's end stopped the job; the
    answer that tells of it gets the job's id.
    """
    request.state.job_id = job.id
    over, loop = asyncio.Event(), asyncio.get_running_loop()

    def tell() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(over.set)

    job.when_over(tell)
    waiting = asyncio.create_task(over.wait())
    leaving = asyncio.create_task(gone(request.receive))
    seconds = service.settings.request_seconds
    try:
        await asyncio.wait((waiting, leaving), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise Cancelled("The client left.") if leaving.done() else too_long(seconds)
    finally:
        waiting.cancel()
        leaving.cancel()
        job.cancel()
    if job.error is not None:
        raise at_the_end(service, job.error)
    return job.result(0)


async def gone(receive: Receive) -> None:
    """Wait until the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def too_long(seconds: float) -> StepAudioError:
    """Return the error of a request that was not done in its time."""
    return TookTooLong(f"The request was not done within {seconds:g} s, which is the limit; its job was stopped.")


async def _first(feed: SoundFeed) -> bytes | None:
    """Return the first piece, None where there is none; without a job it is waited for as long as a ticket is good."""
    if not feed.job_id:
        with suppress(TimeoutError):
            return await asyncio.wait_for(feed.next(), TICKET_SECONDS)
        if not feed.job_id:
            feed.end(Cancelled("No request came with this ticket."))
    return await feed.next()


async def _sent(send: Send, data: bytes) -> bool:
    """Send one part of the body, and return whether the client took it in time."""
    if not data:
        return True
    try:
        async with asyncio.timeout(STALLED_SECONDS):
            await send({"type": "http.response.body", "body": data, "more_body": True})
    except TimeoutError:
        return False
    return True


def _event(fields: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n".encode()


def _usage(synthesis: Synthesis) -> dict[str, int]:
    read, written = len(synthesis.prompt_ids), len(synthesis.tokens.numbers)
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def _every(stages: tuple[Stage, ...]) -> list[Stage]:
    return [found for stage in stages for found in (stage, *_every(stage.children))]


def _timing(stage: Stage) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", stage.name.lower()).strip("-")
    note = f';desc="{re.sub(chr(34), "", stage.note)}"' if stage.note else ""
    return f"{name};dur={stage.seconds * 1000:.1f}{note}"


def _cache(timings: Timings) -> str:
    stage = timings.find("FunASR")
    return stage.note if stage is not None else ""
