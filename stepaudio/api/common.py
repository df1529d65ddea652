"""What several routes need: a loaded engine, the client, the reference of a request, how a sound is documented."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Form, Request, UploadFile

from stepaudio.api.errors import NotReady
from stepaudio.audiostream import STREAM_FORMATS
from stepaudio.errors import InvalidInput, NotFound
from stepaudio.loading import Engine
from stepaudio.service import Request as Asked
from stepaudio.service import Service

SPEECH_ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
TRANSCRIPTION_ALIASES = ("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe")
"""OpenAI's names for models, so that programs made for its API run unchanged."""

R = TypeVar("R", bound=Asked)

MULTIPART = Form(media_type="multipart/form-data")
"""How a route takes a model of fields whose files are among them."""

_HEADERS = {
    "X-Request-Id": "the request's id in the log",
    "X-Stepaudio-Seed": "the seed that gives this sound again",
    "X-Stepaudio-Cache": "whether the reference was encoded before: hit or miss",
    "X-Stepaudio-Notice": "what the user should know, a recording that was cut perhaps; a stream does not have it",
    "Server-Timing": "the stages in milliseconds; of a stream those before its first sound",
}


def engine_of(service: Service) -> Engine:
    """Return the loaded engine; raises NotReady while there is none."""
    if service.engine is None:
        raise NotReady(service.problem or "The models are still being loaded; please try again in a moment.")
    return service.engine


def model_id(engine: Engine) -> str:
    """Return what the API calls the loaded weights."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", engine.weights.card.title).strip("-") or "stepaudio"


def check_model(service: Service, name: str, aliases: tuple[str, ...]) -> Engine:
    """Return the engine where this name means it; raises NotFound for another model."""
    engine = engine_of(service)
    own = model_id(engine)
    if name != own and name not in aliases:
        raise NotFound(f"There is no model {name!r} here; the one that is loaded is {own!r}.")
    return engine


def client_of(request: Request) -> str:
    """Return whom the queue counts the request for."""
    return str(request.state.client)


def in_voice(service: Service, asked: R, name_or_id: str) -> R:
    """Return the request in a saved voice, or in one that came with the weights, by its name or id.

    Raises NotFound with the way to find out what there is.
    """
    try:
        return replace(asked, voice=service.voices.find(name_or_id).id)
    except NotFound as error:
        try:
            preset, audio = service.presets.find(name_or_id)
        except NotFound:
            raise NotFound(f"{error} GET /v1/voices lists those that there are.") from error
        return replace(asked, audio=audio, transcript=asked.transcript or preset.transcript)


def check_consent(service: Service, given: str) -> None:
    """Raise InvalidInput where the settings want a note of consent with a new recording and there is none."""
    if service.settings.require_consent and not given.strip():
        raise InvalidInput(
            "This server takes a recording only with the field consent: who agreed to its use, and when."
        )


async def bytes_of(upload: UploadFile, what: str) -> bytes:
    """Return the bytes of an uploaded file; raises InvalidInput for an empty one."""
    data = await upload.read()
    if not data:
        raise InvalidInput(f"The file {what} is empty.")
    return data


BINARY = {"type": "string", "format": "binary"}
EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {
        "event": {"type": "string"},
        "data": {"type": "string", "description": "speech.audio.delta, speech.audio.done or an error, as JSON"},
    },
}
"""What one server-sent event is."""


def sound_documented(**more: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of an answer that is a sound, or one of ``more``: schemas by their media types."""
    kinds = [found.media_type for found in STREAM_FORMATS.values()]
    content: dict[str, Any] = {kind: {"schema": BINARY} for kind in dict.fromkeys(kinds)}
    content |= {kind: {"schema": schema} for kind, schema in more.items()}
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()}
    return {200: {"description": "The sound.", "content": content, "headers": headers}}
