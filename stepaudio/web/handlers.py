"""What the page's buttons do: from the values of the fields to the values of the outputs, without Gradio."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from stepaudio import tasks
from stepaudio.errors import Cancelled, StepAudioError
from stepaudio.log import NO_REQUEST, request_context
from stepaudio.queue import Job
from stepaudio.report import request_block
from stepaudio.service import CLONE, EDIT, SAVE_VOICE, TRANSCRIBE, CloneResult, SavedVoice, Service
from stepaudio.types import Synthesis
from stepaudio.voices import VoiceDraft
from stepaudio.web.forms import (
    STOPPED,
    CloneForm,
    EditForm,
    Given,
    Source,
    clone_request,
    edit_request,
    read_source,
)
from stepaudio.web.sentences import in_language
from stepaudio.web.sessions import SessionJobs
from stepaudio.web.strings import Language, say

log = logging.getLogger(__name__)
T = TypeVar("T")

# Where each stage ends on the progress bar; roughly its share of a run.
STAGE_SPANS = {"FunASR": (0.0, 0.15), "LLM": (0.15, 0.7), "Flow": (0.7, 0.9), "Vocoder": (0.9, 1.0)}
POLL_SECONDS = 0.5
SHOW_SECONDS = 1.0
"""Between two steps of the bar, at the least: for each of them Gradio's page looks at every field anew, which takes a
slow browser a tenth of a second, and with a step for every token it would not answer to its Stop button."""

GRACE_SECONDS = 0.2
TOLD_WAIT_SECONDS = 0.5

ShowProgress = Callable[[float, str], None]
Tell = Callable[[str, str], None]


@dataclass(frozen=True)
class Tab:
    """Whose request it is and where its progress goes. tell(request id, lines): to the log of this tab."""

    jobs: SessionJobs
    session: str
    language: Language
    show: ShowProgress = lambda fraction, words: None
    tell: Tell = lambda request_id, lines: None


@dataclass(frozen=True, eq=False)
class CloneView:
    """What the page shows afterwards: either a sound with what is told of it, or one sentence of error.

    given: the reference that was used, and its words. takes: all that was made, this sound first.
    """

    request_id: str
    wav: bytes | None = None
    synthesis: Synthesis | None = None
    error: str = ""
    given: Given | None = None
    takes: tuple[CloneResult, ...] = ()


@dataclass(frozen=True, eq=False)
class Outcome(Generic[T]):
    """What came of some work: its value, or one sentence of error."""

    value: T | None = None
    error: str = ""


class _Ticket:
    """The job that some work has put into the queue, once it has, and the request id under which it is logged."""

    def __init__(self) -> None:
        self.job: Job[Any] | None = None

    @property
    def request_id(self) -> str:
        return self.job.id if self.job is not None else NO_REQUEST


def attempt(language: Language, work: Callable[[], T], ticket: _Ticket | None = None) -> Outcome[T]:
    """Do some work. Never raises: failures become sentences.

    This is the edge of the program: here, and only here, an exception that nobody foresaw is caught, logged with
    its traceback and shown as an internal error.
    """
    ticket = ticket or _Ticket()
    try:
        return Outcome(work())
    except StepAudioError as error:
        return Outcome(error=in_language(str(error), language))
    except Exception:  # the edge, see above
        if ticket.job is None or ticket.job.state != "failed":  # what failed in the job, the queue has logged
            with request_context(ticket.request_id):
                log.exception("The page met an unexpected error.")
        return Outcome(error=say(language, "internal", id=ticket.request_id))


def run_clone(service: Service, form: CloneForm, tab: Tab) -> CloneView:
    """Run one clone through the queue, as the one clone of its tab. Never raises: failures become sentences."""
    feed = service.tickets.claim(form.ticket, "write")
    ticket = _Ticket()

    def work() -> tuple[CloneResult, Given]:
        if form.ticket == STOPPED:
            raise Cancelled("The request was stopped while it was on its way.")
        given = _with_words(service, read_source(service, form.source, tab.language), tab, CLONE)
        request = clone_request(service.settings, given.audio, replace(form, transcript=given.transcript))
        if feed is not None and request.takes == 1:
            ticket.job = service.submit_stream(request, feed)
        else:
            ticket.job = service.submit_clone(request)
            if feed is not None:
                feed.end(Cancelled("Several takes cannot be played while they are being made."))
        return _as_the_tabs_job(service, ticket.job, tab, CLONE), given

    view = _view(attempt(tab.language, work, ticket), ticket, tab)
    if ticket.job is None and feed is not None:
        feed.end(Cancelled("The request was not accepted."))
    return view


def transcribe(service: Service, source: Source, tab: Tab) -> Outcome[str]:
    """Write down what is said in a source's sound, as it is and whatever its transcript says."""

    def work() -> str:
        given = read_source(service, source, tab.language)
        return _as_the_tabs_job(service, service.submit_transcription(given.audio), tab, TRANSCRIBE)

    return attempt(tab.language, work)


def run_edit(service: Service, given: Given, form: EditForm, tab: Tab) -> CloneView:
    """Run one edit of a sound through the queue, as run_clone does a clone; words that it needs may be heard, too."""
    ticket = _Ticket()
    spec = tasks.TASKS.get(form.task)
    listen = spec is not None and spec.needs_transcript

    def work() -> tuple[CloneResult, Given]:
        known = _with_words(service, given, tab, EDIT) if listen else given
        ticket.job = service.submit_edit(edit_request(service.settings, known, form))
        return _as_the_tabs_job(service, ticket.job, tab, EDIT), known

    return _view(attempt(tab.language, work, ticket), ticket, tab)


def save_voice(service: Service, draft: VoiceDraft, tab: Tab) -> Outcome[SavedVoice]:
    """Encode and save a voice through the queue; a draft without a transcript gets what is heard in it."""

    def work() -> SavedVoice:
        given = _with_words(service, Given(draft.audio, draft.transcript), tab, SAVE_VOICE)
        job = service.save_voice(replace(draft, transcript=given.transcript))
        return _as_the_tabs_job(service, job, tab, SAVE_VOICE)

    return attempt(tab.language, work)


def _with_words(service: Service, given: Given, tab: Tab, kind: str) -> Given:
    """Return a sound with its words: those given, else what is heard in it, where something here can transcribe."""
    if given.transcript.strip() or not service.transcriber.available:
        return given
    words = _as_the_tabs_job(service, service.submit_transcription(given.audio), tab, kind)
    return replace(given, transcript=words)


def _view(outcome: Outcome[tuple[CloneResult, Given]], ticket: _Ticket, tab: Tab) -> CloneView:
    if outcome.value is None:
        tab.tell(ticket.request_id, outcome.error)
        return CloneView(ticket.request_id, error=outcome.error)
    result, given = outcome.value
    further = [take.synthesis for take in result.further]
    waited = _waited(ticket.job)
    tab.tell(ticket.request_id, request_block(result.synthesis, waited=waited, further=further))
    takes = result.takes
    if waited >= TOLD_WAIT_SECONDS:  # the figures that follow begin with the request's turn
        notice = f"The request waited {waited:.1f} s for its turn."
        takes = tuple(
            replace(take, synthesis=replace(take.synthesis, notices=(notice, *take.synthesis.notices)))
            for take in takes
        )
    return CloneView(ticket.request_id, result.wav, takes[0].synthesis, given=given, takes=takes)


def _waited(job: Job[Any] | None) -> float:
    """Return how many seconds a job stood in the line."""
    return job.started - job.submitted if job is not None and job.started is not None else 0.0


def _progress(service: Service, job: Job[Any], language: Language) -> tuple[float, str]:
    """Return how far a job is, 0 to 1, and what it does in words; none before its first stage."""
    if job.state == "waiting":
        return 0.0, _waiting(service, job.position, language)
    if job.label in (TRANSCRIBE, SAVE_VOICE):
        return 0.0, say(language, "saving" if job.label == SAVE_VOICE else "transcribing")
    stage, fraction = job.progress
    if stage not in STAGE_SPANS:
        return 0.0, ""
    begin, end = STAGE_SPANS[stage]
    return begin + (end - begin) * min(fraction, 1.0), say(language, f"stage_{stage}")


def _as_the_tabs_job(service: Service, job: Job[T], tab: Tab, kind: str) -> T:
    """Wait for the job while it is the one of its kind in its tab, showing its progress, and return its result.

    kind: the label of what it is done for; a transcription may be the first half of a clone.
    """
    tab.jobs.begin(tab.session, kind, job)
    try:
        return _follow(service, job, tab)
    finally:
        tab.jobs.end(tab.session, kind, job)


def _follow(service: Service, job: Job[T], tab: Tab) -> T:
    """Show the job's progress until it is done, and return its result."""
    told, shown = "", -SHOW_SECONDS
    if job.state == "waiting":
        job.wait_for_change(GRACE_SECONDS)  # mostly it begins at once
    while job.state in ("waiting", "running"):
        fraction, words = _progress(service, job, tab.language)
        if words and time.monotonic() - shown >= SHOW_SECONDS:
            shown = time.monotonic()
            tab.show(fraction, words)
            if words != told:
                tab.tell(job.id, words)
                told = words
        job.wait_for_change(POLL_SECONDS)
    return job.result(timeout=None)


def _waiting(service: Service, position: int, language: Language) -> str:
    """Return what is told of a place in the line, with the time that it may take by what turns took of late."""
    return say(language, "waiting", position=position, seconds=max(position * service.queue.turn_seconds, 1.0))
