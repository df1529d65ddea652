"""Saved voices over HTTP: list, look at, save, remove."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from stepaudio.api.common import MULTIPART, bytes_of, check_consent, client_of, engine_of
from stepaudio.api.errors import documented
from stepaudio.api.options import MOST_TEXT
from stepaudio.api.sound import notice_header, result_of
from stepaudio.presets import Preset
from stepaudio.service import Service
from stepaudio.voices import Voice, VoiceDraft

VoicePlace = Annotated[str, Path(max_length=200, description="the id of a saved voice")]


class VoiceObject(BaseModel):
    """A voice; the fields of OpenAI's voice object, and what else is known. preset: it came with the weights."""

    id: str
    object: Literal["audio.voice"] = "audio.voice"
    type: Literal["audio_sample"] = "audio_sample"
    name: str
    created_at: int
    transcript: str
    language: str
    consent: str
    seconds: float | None
    preset: bool


class VoiceList(BaseModel):
    """All saved voices."""

    object: Literal["list"] = "list"
    data: list[VoiceObject]


class VoiceDeleted(BaseModel):
    """That a voice is gone."""

    id: str
    object: Literal["audio.voice.deleted"] = "audio.voice.deleted"
    deleted: Literal[True] = True


class VoiceForm(BaseModel):
    """A recording, and what is to be known of it."""

    model_config = ConfigDict(extra="forbid")

    audio: UploadFile = Field(description="a recording of the voice")
    name: str = Field(max_length=1000, description="what to call the voice")
    transcript: str = Field(max_length=MOST_TEXT, description="the words spoken in the recording")
    language: str = Field("", max_length=1000, description="its language, to tell only")
    consent: str = Field("", max_length=10_000, description="who agreed to what, to tell only")


def voice_routes(service: Service) -> APIRouter:
    """Return the routes over one service."""
    router = APIRouter(prefix="/v1/voices", tags=["stepaudio's"])
    started = int(time.time())

    @router.get("", responses=documented())
    def all_voices() -> VoiceList:
        """All saved voices, by name, then those that came with the weights."""
        presets = [_preset(preset, started) for preset in service.presets.list()]
        return VoiceList(data=[*(_shown(voice) for voice in service.voices.list()), *presets])

    @router.get("/{voice_id}", responses=documented(400, 404, 422))
    def one_voice(voice_id: VoicePlace) -> VoiceObject:
        """One voice."""
        for preset in service.presets.list():
            if preset.id == voice_id:
                return _preset(preset, started)
        return _shown(service.voices.get(voice_id))

    @router.post("", responses=documented(400, 408, 413, 415, 422, 429, 499, 503, 507))
    async def save(
        request: Request,
        response: Response,
        form: Annotated[VoiceForm, MULTIPART],
    ) -> VoiceObject:
        """Save a voice, and encode it, so that its first use is as fast as any other."""
        engine_of(service)
        data = await bytes_of(form.audio, "audio")
        check_consent(service, form.consent)
        draft = VoiceDraft(data, form.name, form.transcript, form.language, form.consent)
        service.voices.cleaned(draft)  # refused before it waits in the line
        job = service.save_voice(draft, client_of(request))
        saved = await result_of(job, request, service)
        response.headers.update({"X-Request-Id": job.id, **notice_header(saved.notices)})
        return _shown(saved.voice)

    @router.delete("/{voice_id}", responses=documented(400, 404, 422, 503))
    def remove(voice_id: VoicePlace) -> VoiceDeleted:
        """Remove a saved voice."""
        service.voices.delete(voice_id)
        return VoiceDeleted(id=voice_id)

    return router


def _shown(voice: Voice) -> VoiceObject:
    return VoiceObject(
        id=voice.id,
        name=voice.name,
        created_at=int(datetime.fromisoformat(voice.created).timestamp()),
        transcript=voice.transcript,
        language=voice.language,
        consent=voice.consent,
        seconds=voice.seconds,
        preset=False,
    )


def _preset(preset: Preset, created: int) -> VoiceObject:
    return VoiceObject(
        id=preset.id,
        name=preset.name,
        created_at=created,
        transcript=preset.transcript,
        language=preset.language,
        consent="",
        seconds=None,
        preset=True,
    )
