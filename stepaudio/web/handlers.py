"""What the page's buttons do: from the values of the fields to the values of the outputs, without Gradio."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stepaudio.errors import Cancelled, InvalidInput, StepAudioError
from stepaudio.log import NO_REQUEST, request_context
from stepaudio.queue import Job
from stepaudio.service import CloneRequest, CloneResult, Service
from stepaudio.settings import Settings
from stepaudio.types import SamplingParams, Synthesis
from stepaudio.web.sentences import in_language
from stepaudio.web.sessions import SessionJobs
from stepaudio.web.strings import Language, say

log = logging.getLogger(__name__)

# Where each stage ends on the progress bar; roughly its share of a run.
STAGE_SPANS = {"FunASR": (0.0, 0.15), "LLM": (0.15, 0.7), "Flow": (0.7, 0.9), "Vocoder": (0.9, 1.0)}
POLL_SECONDS = 0.5

ShowProgress = Callable[[float, str], None]


@dataclass(frozen=True)
class CloneForm:
    """The fields of the clone page as the browser sent them; numbers may be missing.

    ticket: of the stream by which the browser wants to hear the sound while it is being made (see feed.py); or "".
    """

    audio_path: str | None
    transcript: str
    text: str
    new_seed: bool
    seed: float | None
    temperature: float | None
    top_k: float | None
    top_p: float | None
    max_seconds: float | None
    flow_steps: float | None
    ticket: str = ""


@dataclass(frozen=True, eq=False)
class CloneView:
    """What the page shows afterwards: either a sound with what is told of it, or one sentence of error."""

    request_id: str
    wav: bytes | None = None
    synthesis: Synthesis | None = None
    error: str = ""


def run_clone(
    service: Service, form: CloneForm, language: Language, show: ShowProgress, jobs: SessionJobs, session: str
) -> CloneView:
    """Run one clone through the queue, as the one job of its session. Never raises: failures become sentences.

    This is the edge of the program: here, and only here, an exception that nobody foresaw is caught, logged with
    its traceback and shown as an internal error.
    """
    job: Job[CloneResult] | None = None
    request_id = NO_REQUEST
    feed = service.tickets.claim(form.ticket, "write")
    try:
        request = _request(service, form, language)
        job = service.submit_stream(request, feed) if feed is not None else service.submit_clone(request)
        request_id = job.id
        jobs.begin(session, job)
        result = _follow(job, language, show)
    except StepAudioError as error:
        return CloneView(request_id, error=in_language(str(error), language))
    except Exception:  # the edge, see above
        if job is None or job.state != "failed":  # what failed in the job, the queue has logged
            with request_context(request_id):
                log.exception("The page met an unexpected error.")
        return CloneView(request_id, error=say(language, "internal", id=request_id))
    finally:
        if job is not None:
            jobs.end(session, job)
        elif feed is not None:
            feed.end(Cancelled("The request was not accepted."))
    return CloneView(request_id, result.wav, result.synthesis)


def _request(service: Service, form: CloneForm, language: Language) -> CloneRequest:
    if not form.audio_path:
        raise InvalidInput(say(language, "no_reference"))
    settings = service.settings
    path = Path(form.audio_path)
    try:
        size = path.stat().st_size
        if size > settings.max_upload_bytes:
            raise InvalidInput(
                f"The reference file has {size / 2**20:.1f} MB; the limit is {settings.max_upload_megabytes} MB."
            )
        audio = path.read_bytes()
    except OSError as error:
        raise InvalidInput("The uploaded reference is no longer there; please upload it again.") from error
    return clone_request(settings, audio, form)


def clone_request(settings: Settings, audio: bytes, form: CloneForm) -> CloneRequest:
    """Return the request of a form and the bytes of its reference. Raises InvalidInput for a number out of range."""
    seed = None if form.new_seed or form.seed is None else int(form.seed)
    sampling = SamplingParams(
        temperature=_number(form.temperature, settings.temperature, 0.0, 2.0, "temperature"),
        top_k=int(_number(form.top_k, settings.top_k, 0, 10_000, "top-k")),
        top_p=_number(form.top_p, settings.top_p, 0.01, 1.0, "top-p"),
        repetition_rule=settings.repetition_rule,
        seed=seed,
    )
    return CloneRequest(
        audio=audio,
        transcript=form.transcript or "",
        text=form.text or "",
        sampling=sampling,
        flow_steps=int(_number(form.flow_steps, settings.flow_steps, 1, 50, "number of flow steps")),
        max_seconds=_number(form.max_seconds, settings.max_output_seconds, 0.12, 3600.0, "longest output"),
    )


def _number(value: float | None, default: float, least: float, most: float, name: str) -> float:
    """Return the value of a field that may have been emptied, checked against its range."""
    if value is None:
        return default
    if not least <= value <= most:
        raise InvalidInput(f"The {name} is {value:g}; it must lie between {least:g} and {most:g}.")
    return value


def _follow(job: Job[CloneResult], language: Language, show: ShowProgress) -> CloneResult:
    """Show the job's progress until it is done, and return its result."""
    while job.state in ("waiting", "running"):
        if job.state == "waiting":
            show(0.0, say(language, "waiting", position=job.position))
        elif job.progress[0] in STAGE_SPANS:
            stage, fraction = job.progress
            begin, end = STAGE_SPANS[stage]
            show(begin + (end - begin) * min(fraction, 1.0), say(language, f"stage_{stage}"))
        job.wait_for_change(POLL_SECONDS)
    return job.result(timeout=None)
