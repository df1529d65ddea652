"""Which model is loaded, and transcription with it: /v1/models, /v1/audio/transcriptions."""

from __future__ import annotations

import time
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from stepaudio.api.common import (
    MULTIPART,
    SPEECH_ALIASES,
    TRANSCRIPTION_ALIASES,
    bytes_of,
    check_model,
    client_of,
    model_id,
)
from stepaudio.api.errors import documented
from stepaudio.api.sound import result_of
from stepaudio.errors import NotFound
from stepaudio.service import Service


class ModelObject(BaseModel):
    """A model, as OpenAI has it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "stepaudio"


class ModelList(BaseModel):
    """The models that are loaded: one, or none yet."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class TranscriptionForm(BaseModel):
    """A recording, and how to write down what is said in it."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile = Field(description="a recording")
    model: str = Field(max_length=200, description="the id of the loaded model (see /v1/models), or whisper-1")
    response_format: Literal["json", "text"] = "json"


class Transcription(BaseModel):
    """What is said in a sound."""

    text: str


def catalogue_routes(service: Service) -> APIRouter:
    """Return the routes over one service."""
    router = APIRouter(tags=["OpenAI's"])
    started = int(time.time())

    def shown(name: str) -> ModelObject:
        return ModelObject(id=name, created=started)

    @router.get("/v1/models", responses=documented())
    def models() -> ModelList:
        """The model that is loaded."""
        engine = service.engine
        return ModelList(data=[] if engine is None else [shown(model_id(engine))])

    @router.get("/v1/models/{model}", responses=documented(400, 404, 422, 503))
    def one_model(model: Annotated[str, Path(max_length=200)]) -> ModelObject:
        """The model of this name; OpenAI's names mean the one that is loaded, where it can do what they do."""
        check_model(service, model, (*SPEECH_ALIASES, *TRANSCRIPTION_ALIASES))
        if model in TRANSCRIPTION_ALIASES and not service.transcriber.available:
            raise NotFound(service.transcriber.why_not)
        return shown(model)

    @router.post(
        "/v1/audio/transcriptions",
        response_model=Transcription,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **documented(400, 404, 408, 413, 415, 422, 429, 499, 503, 507),
        },
    )
    async def transcribe(
        request: Request,
        form: Annotated[TranscriptionForm, MULTIPART],
    ) -> Response:
        """Write down what is said in a recording; 404 where the loaded weights cannot."""
        check_model(service, form.model, TRANSCRIPTION_ALIASES)
        if not service.transcriber.available:
            raise NotFound(service.transcriber.why_not)
        job = service.submit_transcription(await bytes_of(form.file, "file"), client_of(request))
        words = await result_of(job, request, service)
        headers = {"X-Request-Id": job.id}
        if form.response_format == "text":
            return PlainTextResponse(words + "\n", headers=headers)
        return JSONResponse(Transcription(text=words).model_dump(), headers=headers)

    return router
