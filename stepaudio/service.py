"""One request from uploaded bytes to a finished file, through the one queue, with its log block.

Page, API and command line all go through Service, so that order, limits, log and errors are the same for each.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from stepaudio.audiofile import Limits as FileLimits
from stepaudio.audiofile import encode_wav, load_reference
from stepaudio.errors import Cancelled, StepAudioError
from stepaudio.feed import SoundFeed, Tickets
from stepaudio.loading import Engine
from stepaudio.log import request_context
from stepaudio.pipeline import Pipeline
from stepaudio.queue import Job, JobQueue
from stepaudio.report import GET_ENGINE, POST_PROCESS, request_block, request_record
from stepaudio.settings import Settings
from stepaudio.timing import StageTimer
from stepaudio.types import Reference, SamplingParams, Synthesis

log = logging.getLogger(__name__)

CLONE = "Clone"
DECODE_AUDIO = "Decode audio"
LOOK_SECONDS = 0.2
State = Literal["loading", "ready", "failed"]


@dataclass(frozen=True, eq=False)
class CloneRequest:
    """What a client gives for one clone: the bytes of a sound file, its transcript, the text to speak."""

    audio: bytes
    transcript: str
    text: str
    sampling: SamplingParams = field(default_factory=SamplingParams)
    flow_steps: int = 10
    max_seconds: float | None = None


@dataclass(frozen=True, eq=False)
class CloneResult:
    """What came of it: the synthesis with the timings of the whole request, and the sound as a WAV file."""

    synthesis: Synthesis
    wav: bytes


class Service:
    """Holds the engine and the queue for the life of the process.

    The engine is loaded in the background, so that the page is there at once; a request that comes before it is
    ready waits, and its log shows the wait as "Get engine".
    """

    def __init__(self, settings: Settings, load: Callable[[], Engine]) -> None:
        self.settings = settings
        # One worker: one request has the whole machine, and one stream at a time holds the keys and values of its
        # prompt (at full size 65 MB a second of reference; see VocoderStream).
        self.queue = JobQueue(limit=settings.queue_limit)
        self.tickets = Tickets()
        self._load = load
        self._engine: Engine | None = None
        self._failure: StepAudioError | None = None
        self._decided = threading.Event()
        self._loader = threading.Thread(target=self._load_engine, name="stepaudio-load", daemon=True)

    def start(self) -> None:
        """Begin to load and warm the engine."""
        self._loader.start()

    @property
    def state(self) -> State:
        """Whether requests are served at full speed already."""
        if not self._decided.is_set():
            return "loading"
        return "ready" if self._engine is not None else "failed"

    @property
    def problem(self) -> str:
        """The sentence that says why loading failed; empty otherwise."""
        return str(self._failure) if self._failure is not None else ""

    @property
    def engine(self) -> Engine | None:
        """The loaded engine, or None while it is loading or when that failed."""
        return self._engine

    def wait_until_decided(self, timeout: float | None = None) -> State:
        """Wait until loading is over, and return how it ended."""
        self._decided.wait(timeout)
        return self.state

    def submit_clone(self, request: CloneRequest) -> Job[CloneResult]:
        """Queue a clone. Raises Busy when too many jobs wait already."""
        return self.queue.submit(lambda job: self._clone(request, job), label=CLONE)

    def submit_stream(self, request: CloneRequest, feed: SoundFeed) -> Job[CloneResult]:
        """Queue a clone whose sound goes into ``feed`` while it is being made. Raises Busy as submit_clone() does."""
        job = self.queue.submit(lambda job: self._clone(request, job, feed), label=CLONE)
        feed.follow(job)
        return job

    def close(self, drain_seconds: float = 5.0) -> None:
        """Take no more jobs, let the running one finish within the limit, release the engine."""
        self.queue.close(drain_seconds)
        if self._engine is not None:
            self._engine.close()

    def _load_engine(self) -> None:
        start = time.perf_counter()
        try:
            engine = self._load()
            engine.pipeline.warm()
        except StepAudioError as error:
            self._failure = error
            log.error("The engine could not be loaded: %s", error)
        else:
            self._engine = engine
            log.info("Ready after %.1f s: %s", time.perf_counter() - start, engine.summary)
        finally:
            if self._engine is None and self._failure is None:
                self._failure = StepAudioError("The engine could not be loaded; the log says why.")
            self._decided.set()

    def _get_engine(self, job: Job[CloneResult]) -> Engine:
        while not self._decided.wait(LOOK_SECONDS):
            if job.should_stop():
                raise Cancelled("The request was stopped while the models were being loaded.")
        if self._engine is None:
            raise StepAudioError(self.problem)
        return self._engine

    def _clone(self, request: CloneRequest, job: Job[CloneResult], feed: SoundFeed | None = None) -> CloneResult:
        """Run one clone and log its block; an error of the user's or the models' is logged as one sentence."""
        with request_context(job.id):
            try:
                synthesis, wav = self._timed_clone(request, job, feed)
            except Cancelled:
                log.info("Clone cancelled.")
                raise
            except StepAudioError as error:
                log.warning("Clone refused (%s): %s", type(error).__name__, error)
                raise
            waited = (job.started or job.submitted) - job.submitted
            log.info(
                "%s",
                request_block(synthesis, waited=waited),
                extra={"facts": request_record(CLONE, synthesis, waited=waited)},
            )
            return CloneResult(synthesis, wav)

    def _timed_clone(
        self, request: CloneRequest, job: Job[CloneResult], feed: SoundFeed | None
    ) -> tuple[Synthesis, bytes]:
        timer = StageTimer()
        with timer.stage(GET_ENGINE):
            engine = self._get_engine(job)
            timer.synchronize_with(engine.runtime.synchronize)
        with timer.stage(CLONE):
            with timer.stage(DECODE_AUDIO):
                loaded = load_reference(request.audio, self._file_limits())
            make = engine.pipeline.clone if feed is None else _streaming(engine.pipeline, feed)
            synthesis = make(
                Reference(loaded.waveform, request.transcript),
                request.text,
                request.sampling,
                flow_steps=request.flow_steps,
                max_seconds=request.max_seconds,
                timer=timer,
                progress=job.report,
                should_stop=job.should_stop,
            )
        with timer.stage(POST_PROCESS):
            wav = encode_wav(synthesis.waveform)
        return replace(synthesis, timings=timer.finish(), notices=loaded.notices + synthesis.notices), wav

    def _file_limits(self) -> FileLimits:
        settings = self.settings
        return FileLimits(
            max_bytes=settings.max_upload_bytes,
            min_seconds=settings.min_reference_seconds,
            max_seconds=settings.max_reference_seconds,
            refuse_long=settings.long_reference == "refuse",
        )


def _streaming(pipeline: Pipeline, feed: SoundFeed) -> Callable[..., Synthesis]:
    """Return what takes the arguments of clone() and gives its result, and the sound to the feed meanwhile."""
    return lambda *given, **named: pipeline.stream(*given, **named).into(feed.put)
