"""POST /v1/audio/edits: a recording's own words spoken otherwise; GET /v1/tags: all that can be asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response
from pydantic import BaseModel, Field

from stepaudio import tasks
from stepaudio.api.common import MULTIPART, bytes_of, check_consent, client_of, engine_of, in_voice, sound_documented
from stepaudio.api.errors import documented
from stepaudio.api.options import CONSENT, MOST_TEXT, Format, RunOptions, Speed
from stepaudio.api.sound import result_of, whole_response
from stepaudio.errors import InvalidInput
from stepaudio.pipeline import MAX_PASSES
from stepaudio.service import EditRequest, Service
from stepaudio.types import Task
from stepaudio.web.strings import say


class EditForm(RunOptions):
    """What to do, and to what: a recording or a saved voice."""

    task: str = Field(max_length=100, description="what to do, see /v1/tags")
    option: str | None = Field(None, max_length=100, description="which emotion, style or speed")
    audio: UploadFile | None = Field(None, description="a recording")
    voice: str | None = Field(None, max_length=200, description="a saved voice, in place of the file audio")
    consent: str = CONSENT
    transcript: str = Field("", max_length=MOST_TEXT, description="the words of the recording; of a voice: not needed")
    new_text: str | None = Field(None, max_length=MOST_TEXT, description="for paralinguistic: the words with tags")
    passes: int = Field(1, ge=1, le=MAX_PASSES, description="how often, each time on what came out")
    response_format: Format = "wav"
    speed: Speed = 1.0


class TaskInfo(BaseModel):
    """One edit, the options that it has, and what it needs.

    learnt: whether the loaded weights have learnt it; the result of another one shows only how it works.
    """

    task: str
    options: list[str]
    needs_transcript: bool
    needs_new_text: bool
    learnt: bool


class Tags(BaseModel):
    """All edits, and all tags that may stand in a text."""

    edits: list[TaskInfo]
    paralinguistic: list[str]
    languages: list[str]


def edit_routes(service: Service) -> APIRouter:
    """Return the routes over one service."""
    router = APIRouter(tags=["stepaudio's"])

    @router.post(
        "/v1/audio/edits",
        response_class=Response,
        responses={**sound_documented(), **documented(400, 404, 408, 413, 415, 422, 429, 499, 500, 503, 507)},
    )
    async def edit(
        request: Request,
        form: Annotated[EditForm, MULTIPART],
    ) -> Response:
        """Change emotion, style, speed or sound of a recording or a saved voice."""
        card = engine_of(service).weights.card
        if (form.audio is None) == (not form.voice):
            raise InvalidInput("An edit needs either the file audio or the field voice.")
        if form.task not in tasks.TASKS:
            edits = ", ".join(spec.name for spec in tasks.EDITS)
            raise InvalidInput(f"There is no edit {form.task!r}; the edits are {edits}.")
        task = Task(form.task, form.option)
        tasks.spec_of_edit(task)  # refused before it waits in the line
        asked = EditRequest(
            task=task,
            transcript=form.transcript,
            new_text=form.new_text,
            passes=form.passes,
            sampling=form.sampling(service.settings),
            flow_steps=form.steps(service.settings),
            max_seconds=form.max_seconds,
            client=client_of(request),
        )
        if form.audio is not None:
            check_consent(service, form.consent)
            asked = replace(asked, audio=await bytes_of(form.audio, "audio"))
        elif form.voice:
            asked = in_voice(service, asked, form.voice)
        job = service.submit_edit(asked)
        result = await result_of(job, request, service)
        notices = [] if card.knows(form.task) else [say("en", "task_unknown", title=card.title)]
        return await run_in_threadpool(
            whole_response, job.id, result.synthesis, form.response_format, form.speed, notices=notices
        )

    @router.get("/v1/tags", responses=documented())
    def tags() -> Tags:
        """All edits with their options, and all tags that may stand in a text.

        Until the weights are loaded it is taken for granted that they have learnt all of them.
        """
        engine = service.engine
        edits = [
            TaskInfo(
                task=spec.name,
                options=list(spec.options),
                needs_transcript=spec.needs_transcript,
                needs_new_text=spec.needs_target,
                learnt=engine is None or engine.weights.card.knows(spec.name),
            )
            for spec in tasks.EDITS
        ]
        return Tags(edits=edits, paralinguistic=list(tasks.PARALINGUISTIC_TAGS), languages=list(tasks.LANGUAGE_TAGS))

    return router
