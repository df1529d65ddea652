"""POST /v1/batch: many texts in one voice, in the background; progress, and all sounds in one archive."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from stepaudio.api.common import SPEECH_ALIASES, check_model, client_of, in_voice
from stepaudio.api.errors import documented, error_response
from stepaudio.api.options import MOST_TEXT, Format, RunOptions
from stepaudio.batches import Batch, Batches, State
from stepaudio.errors import InvalidInput, NotFound
from stepaudio.service import CloneRequest, Service

MOST_LINES = 100_000
BatchPlace = Annotated[str, Path(max_length=200, description="the id of a batch")]


class BatchOptions(RunOptions):
    """How each sound is made; a seed is that of every line."""

    transcript: str | None = Field(
        None, max_length=MOST_TEXT, description="the words of the voice's recording, in place of those saved with it"
    )


class BatchBody(BaseModel):
    """Texts, and the one voice that speaks them."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(max_length=200, description="the id of the loaded model (see /v1/models), or tts-1")
    input: list[Annotated[str, Field(max_length=MOST_TEXT)]] = Field(
        min_length=1, max_length=MOST_LINES, description="the texts to speak"
    )
    voice: str = Field(min_length=1, max_length=200, description="a saved voice: its name or its id")
    response_format: Format = "wav"
    stepaudio: BatchOptions = Field(default_factory=lambda: BatchOptions.model_validate({}))


class FailedLine(BaseModel):
    """A line that gave no sound; line: its place in the list, from 1."""

    line: int
    error: str


class BatchObject(BaseModel):
    """How far a batch is."""

    id: str
    object: Literal["stepaudio.batch"] = "stepaudio.batch"
    status: State
    total: int
    done: int
    failed: int
    created_at: int
    finished_at: int | None
    seconds_left: float | None
    failures: list[FailedLine]


class BatchDeleted(BaseModel):
    """That a batch is gone."""

    id: str
    object: Literal["stepaudio.batch.deleted"] = "stepaudio.batch.deleted"
    deleted: Literal[True] = True


def batch_routes(service: Service, batches: Batches) -> APIRouter:
    """Return the routes over one service and its batches."""
    router = APIRouter(prefix="/v1/batch", tags=["stepaudio's"])

    @router.post("", status_code=202, responses=documented(400, 404, 408, 413, 422, 429, 503, 507))
    def begin(body: BatchBody, request: Request) -> BatchObject:
        """Begin to speak a list of texts in a saved voice; the reference is encoded once."""
        check_model(service, body.model, SPEECH_ALIASES)
        most = service.settings.max_batch_lines
        if len(body.input) > most:
            raise InvalidInput(f"The list has {len(body.input)} texts; the limit is {most}.")
        options, settings = body.stepaudio, service.settings
        sampling = options.sampling(settings)
        shared = CloneRequest(
            transcript=options.transcript or "",
            text="",
            # Without a seed of the client's each line draws its own.
            sampling=sampling if options.seed is not None else replace(sampling, seed=None),
            flow_steps=options.steps(settings),
            max_seconds=options.max_seconds,
        )
        shared = in_voice(service, shared, body.voice)
        return _shown(batches.begin(shared, body.input, body.response_format, client_of(request)))

    @router.get("/{batch_id}", responses=documented(400, 404, 422))
    def progress(batch_id: BatchPlace) -> BatchObject:
        """How far a batch is."""
        return _shown(batches.get(batch_id))

    @router.get(
        "/{batch_id}/results",
        response_class=FileResponse,
        responses={
            200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}},
            **documented(400, 404, 409, 422),
        },
    )
    def results(batch_id: BatchPlace) -> Response:
        """All sounds of a batch that is over, and manifest.jsonl, which tells of each line, in one archive."""
        batch = batches.get(batch_id)
        if batch.progress.state == "running":
            message = "The batch is not done yet; GET /v1/batch/ID tells how far it is."
            return error_response(409, message, "invalid_request_error", "not_done")
        if not batch.archive.is_file():
            raise NotFound("The sounds of this batch were removed to make room; they must be made again.")
        return FileResponse(batch.archive, media_type="application/zip", filename=f"{batch.id}.zip")

    @router.delete("/{batch_id}", responses=documented(400, 404, 422))
    def remove(batch_id: BatchPlace) -> BatchDeleted:
        """Stop a batch and remove its sounds."""
        batches.remove(batch_id)
        return BatchDeleted(id=batch_id)

    return router


def _shown(batch: Batch) -> BatchObject:
    progress = batch.progress
    left = progress.seconds_left
    return BatchObject(
        id=batch.id,
        status=progress.state,
        total=progress.total,
        done=progress.done,
        failed=progress.failed,
        created_at=int(progress.created),
        finished_at=int(progress.finished) if progress.finished is not None else None,
        seconds_left=round(left, 1) if left is not None else None,
        failures=[FailedLine(line=failure.line, error=failure.error) for failure in progress.failures],
    )
