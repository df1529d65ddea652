"""POST /v1/audio/speech: a text in a saved voice, as OpenAI's API has it, streamed while the sound is made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from stepaudio.api.common import BINARY, EVENT, SPEECH_ALIASES, check_model, client_of, in_voice, sound_documented
from stepaudio.api.errors import documented
from stepaudio.api.options import MOST_TEXT, Format, RunOptions, Speed, but_no_truth
from stepaudio.api.sound import Events, Plain, SoundResponse, archive_response, result_of, whole_response
from stepaudio.errors import InvalidInput
from stepaudio.feed import SoundFeed
from stepaudio.pipeline import MAX_TAKES
from stepaudio.service import CloneRequest, Service

STREAMS: dict[str, dict[str, Any]] = {"text/event-stream": EVENT, "application/zip": BINARY}


class VoiceId(BaseModel):
    """A voice by its id, as OpenAI has it for custom voices."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, Field(min_length=1, max_length=200)]


class SpeechOptions(RunOptions):
    """What OpenAI's API has no field for."""

    transcript: str | None = Field(
        None, max_length=MOST_TEXT, description="the words of the voice's recording, in place of those saved with it"
    )
    stream: bool = Field(
        True,
        description="false: the sound is made in one piece, which sounds a little different, and sent when complete",
    )
    takes: int = Field(
        1, ge=1, le=MAX_TAKES, description="several takes, with the seeds that follow the first, come in one archive"
    )

    _counted = field_validator("takes", mode="before")(but_no_truth)


class SpeechBody(BaseModel):
    """What OpenAI's API asks for, and in ``stepaudio`` what it has no field for."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(max_length=200, description="the id of the loaded model (see /v1/models), or tts-1")
    input: str = Field(max_length=MOST_TEXT, description="the text to speak; it may hold tags (see /v1/tags)")
    voice: Annotated[str, Field(min_length=1, max_length=200)] | VoiceId = Field(
        description="a saved voice: its name, its id, or an object with its id"
    )
    instructions: str | None = Field(
        None, max_length=MOST_TEXT, description="not followed by this model, and so refused: see /v1/audio/edits"
    )
    response_format: Format = "mp3"
    speed: Speed = 1.0
    stream_format: Literal["audio", "sse"] = Field("audio", description="sse: server-sent events with base64")
    stepaudio: SpeechOptions = Field(default_factory=lambda: SpeechOptions.model_validate({}))

    _paced = field_validator("speed", mode="before")(but_no_truth)


def speech_routes(service: Service) -> APIRouter:
    """Return the route over one service."""
    router = APIRouter(tags=["OpenAI's"])

    @router.post(
        "/v1/audio/speech",
        response_class=Response,
        responses={
            **sound_documented(**STREAMS),
            **documented(400, 404, 408, 413, 415, 422, 429, 499, 500, 503, 507),
        },
    )
    async def speech(body: SpeechBody, request: Request) -> Response:
        """Speak a text in a saved voice. The sound is sent while it is being made."""
        check_model(service, body.model, SPEECH_ALIASES)
        if body.instructions and body.instructions.strip():
            raise InvalidInput("This model follows no instructions; see /v1/audio/edits for emotion, style and speed.")
        options = body.stepaudio
        asked = CloneRequest(
            transcript=options.transcript or "",
            text=body.input,
            sampling=options.sampling(service.settings),
            flow_steps=options.steps(service.settings),
            max_seconds=options.max_seconds,
            takes=options.takes,
            client=client_of(request),
        )
        asked = in_voice(service, asked, body.voice if isinstance(body.voice, str) else body.voice.id)
        whole = not options.stream or options.takes > 1
        if whole and body.stream_format == "sse":
            raise InvalidInput(
                "Server-sent events are a stream: stream_format sse goes with neither stream false nor several takes."
            )
        if whole:
            job = service.submit_clone(asked)
            result = await result_of(job, request, service)
            takes = [take.synthesis for take in result.takes]
            # In a thread: to encode minutes of sound takes seconds, in which nobody else would be answered.
            if len(takes) > 1:
                return await run_in_threadpool(archive_response, job.id, takes, body.response_format, body.speed)
            return await run_in_threadpool(whole_response, job.id, takes[0], body.response_format, body.speed)
        feed = SoundFeed()
        service.submit_stream(asked, feed)
        framing = Events() if body.stream_format == "sse" else Plain(body.response_format)
        headers = {"x-stepaudio-seed": str(asked.sampling.seed)}
        return SoundResponse(service, feed, body.response_format, speed=body.speed, framing=framing, headers=headers)

    return router
