"""One queue for page, API and command line: order, progress, cancelling, a limit. Plain threads.

queue = JobQueue(limit=16)
job = queue.submit(lambda job: pipeline.clone(..., progress=job.report, should_stop=job.should_stop))
sound = job.result(timeout=None)
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar

from stepaudio.errors import Busy, Cancelled, ShuttingDown, StepAudioError
from stepaudio.log import request_context

log = logging.getLogger(__name__)

T = TypeVar("T")
State = Literal["waiting", "running", "done", "failed", "cancelled"]

# How long close() waits for jobs that it had to cancel: they look at should_stop() now and then.
_STOP_SECONDS = 5.0

# What a turn is taken to last before the first one has ended, and how much each one counts afterwards.
FIRST_TURN_SECONDS = 5.0
TURN_SHARE = 0.2

BACK_TURNS = 3
"""Turns within which a client that found the line full is expected back; it is told to wait for one."""


class Job(Generic[T]):
    """One piece of work: the worker calls ``report`` and ``should_stop``, whoever submitted it the rest.

    id: 8 hex digits, the request id of the log. submitted, started, finished: time.monotonic seconds; the last
    two are None until then. All methods may be called from any thread.
    """

    def __init__(self, line: _Line, work: Callable[[Job[T]], T], label: str, client: str = "") -> None:
        self.id = uuid.uuid4().hex[:8]
        self.label = label
        self.client = client
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.finished: float | None = None
        self._line = line
        self._work: Callable[[Job[T]], T] | None = work
        self._state: State = "waiting"
        self._progress = ("", 0.0)
        self._changes = 0
        self._stop = False
        self._results: list[T] = []
        self._error: BaseException | None = None
        self._listeners: list[Callable[[], None]] = []

    @property
    def state(self) -> State:
        return self._state

    @property
    def over(self) -> bool:
        """Whether the job will not change any more."""
        return self._state in ("done", "failed", "cancelled")

    @property
    def error(self) -> BaseException | None:
        """What result() raises; None while the job is not over, and where there is a result."""
        if self._error is None and self._state == "cancelled":
            return Cancelled("The job was cancelled.")
        return self._error

    @property
    def waited(self) -> float:
        """How many seconds it waited in the line, so far or until it ran or was cancelled."""
        return (self.started or self.finished or time.monotonic()) - self.submitted

    @property
    def position(self) -> int:
        """How many turns until it runs: 0 while it runs (and afterwards), n for the n-th in line."""
        with self._line.changed:
            return self._line.waiting.index(self) + 1 if self._state == "waiting" else 0

    @property
    def progress(self) -> tuple[str, float]:
        """The stage and the fraction of it that is done, as last reported."""
        return self._progress

    @property
    def changes(self) -> int:
        """How often state, position or progress have changed; see ``wait_for_change``."""
        return self._changes

    def report(self, stage: str, fraction: float) -> None:
        """Called by the work: tell how far it is."""
        with self._line.changed:
            self._progress = (stage, min(max(fraction, 0.0), 1.0))
            self._touch()

    def should_stop(self) -> bool:
        """Called by the work now and then: True means that it shall raise Cancelled soon."""
        return self._stop

    def cancel(self) -> None:
        """A waiting job never runs, a running one is asked to stop, one that is over stays as it is."""
        with self._line.changed:
            if self.over:
                return
            self._stop = True
            if self._state == "waiting":
                self._line.waiting.remove(self)
                self._end("cancelled")
                self._line.moved()
            else:
                self._touch()

    def result(self, timeout: float | None = None) -> T:
        """Wait, and return what the work returned.

        Raises what the work raised, Cancelled for a cancelled job, TimeoutError when ``timeout`` seconds pass first.
        """
        with self._line.changed:
            if not self._line.changed.wait_for(lambda: self.over, timeout):
                raise TimeoutError(f"The job {self.id} is not done after {timeout} s.")
        if self.error is not None:
            raise self.error
        return self._results[0]

    def when_over(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` once the job is over, at once if it is; it runs in whichever thread ends the job."""
        with self._line.changed:
            if not self.over:
                self._listeners.append(listener)
                return
        listener()

    def wait_for_change(self, timeout: float | None, seen: int | None = None) -> int:
        """Wait until ``changes`` differs from ``seen`` (default: from now), or for ``timeout`` s; return ``changes``.

        A job that is over changes no more and is not waited for.
        """
        with self._line.changed:
            before = self._changes if seen is None else seen
            self._line.changed.wait_for(lambda: self._changes != before or self.over, timeout)
            return self._changes

    # The rest is for this module; the lock of the line is held.

    def _begin(self) -> Callable[[Job[T]], T]:
        assert self._work is not None
        work, self._work = self._work, None
        self._state, self.started = "running", time.monotonic()
        self._touch()
        return work

    def _end(self, state: State, error: BaseException | None = None) -> None:
        # The work is let go of: it may hold an upload, and the job may be kept for its result.
        self._state, self._error, self.finished, self._work = state, error, time.monotonic(), None
        self._touch()
        for listener in self._listeners:
            listener()
        self._listeners.clear()

    def _touch(self) -> None:
        self._changes += 1
        self._line.changed.notify_all()


class _Line:
    """What a queue and its jobs share: the jobs that wait, in order, under one lock."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.waiting: deque[Job[Any]] = deque()

    def moved(self) -> None:
        """Tell those who wait that their positions have changed."""
        for job in self.waiting:
            job._touch()


class _TurnedAway:
    """Who found the line full, in that order, for as long as they are expected back.

    Without it whoever has just been served takes the place that became free, at once, and those who were told to come
    again later find the line full each time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._until: dict[str, float] = {}

    def ahead_of(self, client: str) -> int:
        """Return for how many others a place is kept before this client's turn; who has no name waits for nobody."""
        if not client:  # the page: it could not be known again, and would be turned away for as long as others come
            return 0
        now = time.monotonic()
        self._until = {name: until for name, until in self._until.items() if until > now}
        names = list(self._until)
        return names.index(client) if client in self._until else len(names)

    def add(self, client: str, seconds: float) -> None:
        """Remember a client that is asked to come back within so many seconds; its place stays as it is."""
        if client and (client in self._until or len(self._until) < self._most):
            self._until[client] = time.monotonic() + seconds

    def remove(self, client: str) -> None:
        """Forget a client that has come in."""
        self._until.pop(client, None)


class JobQueue:
    """Runs jobs in the order in which they came, ``workers`` at a time; at most ``limit`` wait.

    A client that found the line full comes before others when it tries again soon: half of the places at the most are
    kept for such ones.

    client_limit: how many jobs one client may have that wait or run, so that nobody fills the line alone; jobs
    without a client are not counted. It keeps no reference to a job that is over.
    """

    def __init__(self, limit: int, workers: int = 1, *, client_limit: int | None = None) -> None:
        self._limit = limit
        self._client_limit = client_limit
        self._turn_seconds = FIRST_TURN_SECONDS
        self._line = _Line()
        self._running: set[Job[Any]] = set()
        self._turned_away = _TurnedAway(limit // 2)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, name=f"stepaudio-job-{n}", daemon=True) for n in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        return len(self._line.waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def turn_seconds(self) -> float:
        """How long a job has taken of late: after about that long there is room again in a line that is full."""
        return self._turn_seconds

    def submit(self, work: Callable[[Job[T]], T], *, label: str = "", client: str = "") -> Job[T]:
        """Put work into the line and return its job.

        Raises Busy when the line is full or ``client`` has too many jobs in it, ShuttingDown when it is closed.
        """
        with self._line.changed:
            if self._closed:
                raise ShuttingDown("The program is being shut down and takes no more jobs; please try again later.")
            # First, so that no place is kept for who may not take it.
            if client and self._client_limit is not None:
                own = sum(job.client == client for job in (*self._line.waiting, *self._running))
                if own >= self._client_limit:
                    raise Busy(f"{own} requests of yours are waiting or at work, which is the limit; please wait.")
            idle = len(self._threads) - len(self._running)
            # A job that an idle worker is about to take does not count as waiting.
            free = self._limit + idle - len(self._line.waiting)
            if free <= self._turned_away.ahead_of(client):
                self._turned_away.add(client, BACK_TURNS * max(self._turn_seconds, 1.0))
                raise Busy(f"The line is full with {self.waiting} waiting; please try again in a minute.")
            self._turned_away.remove(client)
            job = Job(self._line, work, label, client)
            self._line.waiting.append(job)
            self._line.changed.notify_all()
            return job

    def drain(self, seconds: float) -> bool:
        """Take no more jobs and wait for those that are in line or run; return whether all were over in time.

        What is not over then is cancelled, so that those who wait for it are told.
        """
        with self._line.changed:
            self._closed = True
            self._line.changed.notify_all()
            over = self._line.changed.wait_for(lambda: not self._running and not self._line.waiting, seconds)
            self.cancel_all()
            return over

    def cancel_all(self) -> None:
        """Cancel all jobs that wait or run; one that runs ends when it looks at should_stop()."""
        with self._line.changed:
            for job in (*self._line.waiting, *self._running):
                job.cancel()

    def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more jobs, cancel those that wait, let those that run finish within the limit, then cancel them."""
        with self._line.changed:
            self._closed = True
            for job in list(self._line.waiting):
                job.cancel()
            self._line.changed.notify_all()
            self._line.changed.wait_for(lambda: not self._running, drain_seconds)
            for job in self._running:
                job.cancel()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(deadline - time.monotonic(), 0.0))
        if any(thread.is_alive() for thread in self._threads):
            log.warning("A job did not stop within %.0f s of being cancelled; it is left behind.", _STOP_SECONDS)

    def __enter__(self) -> JobQueue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        while self._serve_one():
            pass

    def _serve_one(self) -> bool:
        """Wait for a job and run it; return False once the queue is closed."""
        with self._line.changed:
            self._line.changed.wait_for(lambda: self._closed or bool(self._line.waiting))
            if not self._line.waiting:
                return False
            job = self._line.waiting.popleft()
            self._running.add(job)
            work = job._begin()
            self._line.moved()
        with _Turn(job, self._line, self._running):
            job._results.append(work(job))
        if job.started is not None and job.finished is not None:
            self._turn_seconds += (job.finished - job.started - self._turn_seconds) * TURN_SHARE
        return True


class _Turn:
    """Ends the job with whatever became of its work; no exception of a job reaches its worker."""

    def __init__(self, job: Job[Any], line: _Line, running: set[Job[Any]]) -> None:
        self._job, self._line, self._running = job, line, running

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        job = self._job
        if error is not None and not isinstance(error, StepAudioError):
            # Logged here, because nobody may be waiting for the result any more.
            with request_context(job.id):
                log.error("%s failed unexpectedly.", job.label or "A job", exc_info=error)
        with self._line.changed:
            self._running.discard(job)
            if error is None:
                job._end("done")
            else:
                job._end("cancelled" if isinstance(error, Cancelled) else "failed", error)
        return True
