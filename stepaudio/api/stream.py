"""Sound while it is being made, from a recording that comes with the request; and, for the page, by a ticket."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, UploadFile
from fastapi.responses import FileResponse, Response
from pydantic import Field

from stepaudio.api.common import MULTIPART, bytes_of, check_consent, client_of, engine_of, sound_documented
from stepaudio.api.errors import documented
from stepaudio.api.options import CONSENT, MOST_TEXT, RunOptions
from stepaudio.api.sound import SoundResponse
from stepaudio.errors import NotFound
from stepaudio.feed import SoundFeed
from stepaudio.service import CloneRequest, Service
from stepaudio.web.assets import FOLDER, SCRIPTS


class StreamForm(RunOptions):
    """A recording with its words, and the text to speak."""

    audio: UploadFile = Field(description="a recording of the voice")
    consent: str = CONSENT
    transcript: str = Field(max_length=MOST_TEXT, description="the words of the recording")
    text: str = Field(max_length=MOST_TEXT, description="the text to speak")


def stream_routes(service: Service) -> APIRouter:
    """Return the routes over one service."""
    router = APIRouter(prefix="/stream", tags=["stepaudio's"])

    @router.post(
        "",
        response_class=Response,
        responses={**sound_documented(), **documented(400, 408, 413, 415, 422, 429, 499, 500, 503, 507)},
    )
    async def stream(
        request: Request,
        form: Annotated[StreamForm, MULTIPART],
        name: Annotated[Literal["wav", "pcm", "mp3", "opus", "aac", "flac"], Query(alias="format")] = "wav",
    ) -> Response:
        """Speak a text in the voice of a recording. The sound is sent while it is being made."""
        engine_of(service)
        check_consent(service, form.consent)
        asked = CloneRequest(
            audio=await bytes_of(form.audio, "audio"),
            transcript=form.transcript,
            text=form.text,
            sampling=form.sampling(service.settings),
            flow_steps=form.steps(service.settings),
            max_seconds=form.max_seconds,
            client=client_of(request),
        )
        feed = SoundFeed()
        service.submit_stream(asked, feed)
        return SoundResponse(service, feed, name, headers={"x-stepaudio-seed": str(asked.sampling.seed)})

    @router.post("/tickets", include_in_schema=False)
    def ticket() -> dict[str, str]:
        """A ticket: the page sends it with its request and fetches the sound by it."""
        return {"ticket": service.tickets.open()}

    @router.get("/{name}.js", include_in_schema=False)
    def script(name: str) -> Response:
        """A script of the page."""
        if f"{name}.js" not in SCRIPTS:
            raise NotFound("There is no such script.")
        return FileResponse(FOLDER / f"{name}.js", media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    @router.get("/{ticket}", include_in_schema=False)
    async def fetch(ticket: str) -> Response:
        """The sound of the job that was submitted with this ticket, as PCM; once."""
        feed = service.tickets.claim(ticket, "read")
        if feed is None:
            raise NotFound("There is no sound under this ticket, or not any more.")
        return SoundResponse(service, feed, "pcm")

    return router
