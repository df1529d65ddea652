"""One request from uploaded bytes to a finished file, through the one queue, with its log block.

Page, API and command line all go through Service, so that order, limits, log and errors are the same for each.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, ClassVar, Literal, TypeVar

from stepaudio.asr import Transcriber, absent
from stepaudio.audiofile import Limits as FileLimits
from stepaudio.audiofile import LoadedReference, encode_wav, load_reference
from stepaudio.errors import Busy, Cancelled, InvalidInput, OutOfMemory, StepAudioError
from stepaudio.feed import SoundFeed, Tickets
from stepaudio.loading import Engine
from stepaudio.log import request_context
from stepaudio.memory import is_out_of_memory, release
from stepaudio.metrics import Metrics
from stepaudio.orders import MAX_SEED
from stepaudio.pipeline import Pipeline
from stepaudio.presets import PresetFolder
from stepaudio.queue import Job, JobQueue
from stepaudio.report import (
    GET_ENGINE,
    POST_PROCESS,
    cache_lines,
    failure_record,
    request_block,
    request_record,
    spent,
)
from stepaudio.runs import RunHistory
from stepaudio.settings import Settings
from stepaudio.timing import StageTimer
from stepaudio.types import Reference, SamplingParams, Synthesis, Task, Timings
from stepaudio.voices import Voice, VoiceDraft, VoiceFolder

log = logging.getLogger(__name__)

CLONE, EDIT, SAVE_VOICE, TRANSCRIBE = "Clone", "Edit", "Save voice", "Transcribe"
DECODE_AUDIO = "Decode audio"
LOOK_SECONDS = 0.2
T = TypeVar("T")
State = Literal["loading", "ready", "failed", "stopping"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Request(ABC):
    """What a client gives for any request: the bytes of a sound file, its transcript, how to go about it.

    voice: the id of a saved voice, which stands in for ``audio`` and, unless one is given, for ``transcript``.
    client: whose request it is, for the queue's limit for each client; "" where that does not apply.
    label: what the request is called in the log.
    """

    label: ClassVar[str]

    audio: bytes = b""
    transcript: str = ""
    voice: str = ""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    flow_steps: int = 0
    max_seconds: float | None = None
    client: str = ""

    def smaller(self) -> Request | None:
        """Return the request to try when memory did not suffice for this one; None where it cannot be tried again."""
        return self

    @abstractmethod
    def run(
        self, pipeline: Pipeline, reference: Reference, timer: StageTimer, job: Job[CloneResult]
    ) -> list[Synthesis]:
        """Return what the pipeline makes of it: one synthesis, or one for each take."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CloneRequest(Request):
    """A text to be spoken in the voice of the sound, once or in several takes (see Pipeline.takes).

    feed: where the sound goes while it is being made, if anywhere; then there is one take.
    in_pieces: whether flow and vocoder take a piece at a time, as for a feed, which needs less memory.
    """

    label = CLONE

    text: str
    feed: SoundFeed | None = None
    takes: int = 1
    in_pieces: bool = False

    def smaller(self) -> CloneRequest | None:
        if self.feed is None:
            return replace(self, in_pieces=True)
        # What has been heard cannot be begun again.
        return None if self.feed.has_begun else self

    def run(
        self, pipeline: Pipeline, reference: Reference, timer: StageTimer, job: Job[CloneResult]
    ) -> list[Synthesis]:
        options: dict[str, Any] = {
            "flow_steps": self.flow_steps,
            "max_seconds": self.max_seconds,
            "timer": timer,
            "progress": job.report,
            "should_stop": job.should_stop,
        }
        if self.in_pieces:
            return self._one_by_one(pipeline, reference, options)
        if self.takes != 1:
            if self.feed is not None:
                raise InvalidInput("Several takes cannot be played while they are being made; ask for one.")
            return pipeline.takes(reference, self.text, self.takes, self.sampling, **options)
        if self.feed is None:
            return [pipeline.clone(reference, self.text, self.sampling, **options)]
        stream = pipeline.stream(reference, self.text, self.sampling, **options)
        self.feed.begin(timer.so_far())
        return [stream.into(self.feed.put)]

    def _one_by_one(self, pipeline: Pipeline, reference: Reference, options: dict[str, Any]) -> list[Synthesis]:
        """Return the takes made one after the other and in pieces, each with the seed that it has otherwise."""
        made: list[Synthesis] = []
        for number in range(self.takes):
            seed = (made[0].seed + number) % (MAX_SEED + 1) if made else self.sampling.seed
            stream = pipeline.stream(reference, self.text, replace(self.sampling, seed=seed), **options)
            made.append(stream.into(lambda piece: None))
        return made


@dataclass(frozen=True, eq=False, kw_only=True)
class EditRequest(Request):
    """A task to be done to the sound; see Pipeline.edit for new_text and passes."""

    label = EDIT

    task: Task
    new_text: str | None = None
    passes: int = 1

    def run(
        self, pipeline: Pipeline, reference: Reference, timer: StageTimer, job: Job[CloneResult]
    ) -> list[Synthesis]:
        made = pipeline.edit(
            reference,
            self.task,
            new_text=self.new_text,
            passes=self.passes,
            sampling=self.sampling,
            flow_steps=self.flow_steps,
            max_seconds=self.max_seconds,
            timer=timer,
            progress=job.report,
            should_stop=job.should_stop,
        )
        return [made]


@dataclass(frozen=True, eq=False)
class CloneResult:
    """What came of a request, an edit too: the synthesis with the request's timings, and the sound as a WAV file.

    further: of a request for several takes, the second take and those after it.
    """

    synthesis: Synthesis
    wav: bytes
    further: tuple[CloneResult, ...] = ()

    @property
    def takes(self) -> tuple[CloneResult, ...]:
        """All takes in the order of their seeds; where one was asked for, this one."""
        return (self, *self.further)


@dataclass(frozen=True)
class SavedVoice:
    """A voice that was saved, and sentences that the user should see: what was cut from its recording."""

    voice: Voice
    notices: tuple[str, ...] = ()


class Service:
    """Holds the engine and the queue for the life of the process.

    The engine is loaded in the background, so that the page is there at once; a request that comes before it is
    ready waits, and its log shows the wait as "Get engine".
    """

    def __init__(self, settings: Settings, load: Callable[[], Engine]) -> None:
        self.settings = settings
        # One worker: one request has the whole machine, and one stream at a time holds the keys and values of its
        # prompt (at full size 65 MB a second of reference; see VocoderStream).
        self.queue = JobQueue(limit=settings.queue_limit, client_limit=settings.client_limit)
        self.metrics = Metrics()
        self.voices = VoiceFolder.of(settings)
        self.tickets = Tickets()
        self.runs = RunHistory()
        self._load = load
        self._engine: Engine | None = None
        self._failure: StepAudioError | None = None
        self._presets = PresetFolder(None)
        self._decided = threading.Event()
        self._stopping = False
        self._loader = threading.Thread(target=self._load_engine, name="stepaudio-load", daemon=True)

    def start(self) -> None:
        """Begin to load and warm the engine."""
        self._loader.start()

    @property
    def state(self) -> State:
        """Whether requests are served at full speed already, and still."""
        if self._stopping:
            return "stopping"
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

    @property
    def presets(self) -> PresetFolder:
        """The voices that came with the weights; none before the engine is loaded."""
        return self._presets

    @property
    def transcriber(self) -> Transcriber:
        """What writes down the words of a sound; it says why where it cannot, also while the models are loaded."""
        if self._engine is not None:
            return self._engine.transcriber
        return absent(self.problem or "The models are still being loaded.")

    def wait_until_decided(self, timeout: float | None = None) -> State:
        """Wait until loading is over, and return how it ended."""
        self._decided.wait(timeout)
        return self.state

    def submit_clone(self, request: CloneRequest) -> Job[CloneResult]:
        """Queue a clone. Raises Busy when too many jobs wait already."""
        return self._submit(request)

    def submit_edit(self, request: EditRequest) -> Job[CloneResult]:
        """Queue an edit. Raises Busy when too many jobs wait already."""
        return self._submit(request)

    def save_voice(self, draft: VoiceDraft, client: str = "") -> Job[SavedVoice]:
        """Queue the saving of a voice, and its encoding, so that its first request hits the cache. Raises Busy.

        An exported voice is imported by saving what voices.read_export makes of it.
        """
        return self._queue_up(SAVE_VOICE, lambda job, timer: self._save(draft, job), client)

    def submit_transcription(self, audio: bytes, client: str = "") -> Job[str]:
        """Queue the writing down of what is said in a sound file. Raises Busy as submit_clone() does.

        The job's result is the words, "" where none were heard; WeightsError where nothing can transcribe.
        """
        return self._queue_up(TRANSCRIBE, lambda job, timer: self._transcribe(audio, job), client)

    def submit_stream(self, request: CloneRequest, feed: SoundFeed) -> Job[CloneResult]:
        """Queue a clone whose sound goes into ``feed`` while it is being made. Raises Busy as submit_clone() does."""
        job = self._submit(replace(request, feed=feed))
        feed.follow(job)
        return job

    def drain(self, seconds: float) -> bool:
        """Take no more jobs and let those that were accepted end; return whether all were over in time."""
        self._stopping = True
        return self.queue.drain(seconds)

    def cancel_all(self) -> None:
        """Cancel all jobs; a drain that waits for them then has nothing left to wait for."""
        self.queue.cancel_all()

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
            self._presets = PresetFolder(engine.weights.path)
            self.voices.reserve(self._presets.names())
            self._engine = engine
            log.info("Ready after %.1f s: %s", time.perf_counter() - start, engine.summary)
        finally:
            if self._engine is None and self._failure is None:
                self._failure = StepAudioError("The engine could not be loaded; the log says why.")
            self._decided.set()

    def _get_engine(self, job: Job[Any]) -> Engine:
        while not self._decided.wait(LOOK_SECONDS):
            if job.should_stop():
                raise Cancelled("The request was stopped while the models were being loaded.")
        if self._engine is None:
            raise StepAudioError(self.problem)
        return self._engine

    def _submit(self, request: Request) -> Job[CloneResult]:
        return self._queue_up(request.label, lambda job, timer: self._run(request, job, timer), request.client)

    def _queue_up(self, label: str, work: Callable[[Job[T], StageTimer], T], client: str) -> Job[T]:
        """Queue the work, to be done under its id in the log; an expected error is logged as one line."""

        def guarded(job: Job[T]) -> T:
            timer = StageTimer()
            with request_context(job.id), _Account(job, timer):
                return work(job, timer)

        def over() -> None:
            self.metrics.ended(label, job.state, job.error)
            if job.started is None:
                with request_context(job.id):
                    _log_failure(job, Cancelled(), Timings(0.0))

        try:
            job = self.queue.submit(guarded, label=label, client=client)
        except Busy:
            self.metrics.turned_away(label)
            raise
        job.when_over(over)
        return job

    def _run(self, request: Request, job: Job[CloneResult], timer: StageTimer) -> CloneResult:
        """Run one request and log its block."""
        with timer.stage(GET_ENGINE):
            engine = self._get_engine(job)
            timer.synchronize_with(engine.runtime.synchronize)
        with timer.stage(request.label):
            with timer.stage(DECODE_AUDIO):
                loaded, transcript = self._reference(request)
            if isinstance(request, CloneRequest) and request.feed is not None:
                request.feed.note(loaded.notices)  # the sound is heard before there is a result to tell it with
            reference = Reference(loaded.waveform, transcript)
            made = _run_within_memory(request, engine, reference, timer, job)
        with timer.stage(POST_PROCESS):
            wavs = [encode_wav(synthesis.waveform) for synthesis in made]
        timings = timer.finish()
        made = [replace(one, timings=timings, notices=loaded.notices + one.notices) for one in made]
        synthesis, *further = made
        waited = job.waited
        log.info(
            "%s",
            request_block(synthesis, waited=waited, further=further),
            extra={"facts": request_record(request.label, synthesis, waited=waited, further=further)},
        )
        self.runs.add(request.label, synthesis)
        self.metrics.made(request.label, made, waited)
        takes = [CloneResult(*take) for take in zip(made, wavs, strict=True)]
        return replace(takes[0], further=tuple(takes[1:]))

    def _reference(self, request: Request) -> tuple[LoadedReference, str]:
        """Return the sound of a request and its transcript, from a saved voice where one is named."""
        limits = FileLimits.of(self.settings)
        if not request.voice:
            return load_reference(request.audio, limits), request.transcript
        voice, audio = self.voices.load(request.voice)
        # The limit of uploads is no limit of what was saved here.
        return load_reference(audio, replace(limits, max_bytes=len(audio))), request.transcript or voice.transcript

    def _transcribe(self, audio: bytes, job: Job[str]) -> str:
        """Return the words of a sound file; they are not logged."""
        engine = self._get_engine(job)
        loaded = load_reference(audio, FileLimits.of(self.settings))
        start = time.perf_counter()
        words = engine.transcriber.transcribe(loaded.waveform)
        log.info("Transcribed %.2f s in %.3f s.", loaded.waveform.seconds, time.perf_counter() - start)
        return words

    def _save(self, draft: VoiceDraft, job: Job[SavedVoice]) -> SavedVoice:
        """Encode and save one voice."""
        draft = self.voices.cleaned(draft)
        engine = self._get_engine(job)
        loaded = load_reference(draft.audio, FileLimits.of(self.settings))
        times = engine.pipeline.encode(loaded.waveform)
        voice = self.voices.save(draft, loaded.waveform)
        saved = f"Saved the voice {voice.id}, {voice.seconds:.2f} s."
        log.info("%s", "\n".join([*cache_lines(times), *loaded.notices, saved]))
        return SavedVoice(voice, loaded.notices)


class _Account:
    """Logs of work that raises what it was and where its seconds went."""

    def __init__(self, job: Job[Any], timer: StageTimer) -> None:
        self._job, self._timer = job, timer

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            _log_failure(self._job, error, self._timer.finish())


def _log_failure(job: Job[Any], error: BaseException, timings: Timings) -> None:
    """Log a job that gave no result, in one line; of an error that nobody foresaw, the queue logs the rest."""
    if isinstance(error, Cancelled):
        level, event, message = logging.INFO, "cancelled", f"{job.label} cancelled."
    elif isinstance(error, StepAudioError):
        sentence = f"{job.label} refused ({type(error).__name__}): {error}"
        level, event, message = logging.WARNING, "refused", sentence
    else:
        level, event, message = logging.WARNING, "failed", f"{job.label} failed."
    facts = failure_record(event, job.label, message, timings, job.waited)
    log.log(level, "%s %s", message, spent(timings, job.waited), extra={"facts": facts})


def _run_within_memory(
    request: Request, engine: Engine, reference: Reference, timer: StageTimer, job: Job[CloneResult]
) -> list[Synthesis]:
    """Return what the pipeline makes of a request; where memory ends, it is tried once more, with less.

    Raises OutOfMemory when that does not suffice either. Everything is raised outside of the handlers, because an
    error that is kept keeps with it the memory that ran out.
    """
    try:
        return request.run(engine.pipeline, reference, timer, job)
    except (MemoryError, RuntimeError, StepAudioError) as error:
        if not is_out_of_memory(error):
            raise
        log.warning("Out of memory: %s. What can be spared is given back.", str(error).split("\n")[0].rstrip("."))
    engine.pipeline.forget()
    release(engine.runtime)
    again = request.smaller()
    if again is not None:
        try:
            return again.run(engine.pipeline, reference, timer, job)
        except (MemoryError, RuntimeError, StepAudioError) as error:
            if not is_out_of_memory(error):
                raise
        engine.pipeline.forget()
        release(engine.runtime)
    raise OutOfMemory("There is not enough memory for this request; a shorter reference or a shorter text may fit.")
