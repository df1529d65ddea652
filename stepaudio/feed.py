"""The sound of one job on its way from the worker's thread to one reader of an asynchronous server."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from stepaudio.audiofile import pcm16
from stepaudio.errors import Busy
from stepaudio.queue import Job
from stepaudio.types import Timings, Waveform

TICKET_SECONDS = 60.0
MOST_TICKETS = 1000

Side = Literal["read", "write"]


class SoundFeed:
    """Pieces of one job's sound as 16-bit samples, for one reader, who may come before the job or after it began.

    The worker never waits for the reader: what is not read yet is held, at most the sound of one request. A reader
    who leaves before the end cancels the job. The writer's methods may be called from any thread, the reader's from
    one event loop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pieces: deque[bytes] = deque()
        self._job: Job[Any] | None = None
        self._over = self._left = False
        self._error: BaseException | None = None
        self._wake: Callable[[], None] = lambda: None
        self.sample_rate = 0  # known once there is a piece
        self.timings = Timings(0.0)  # the stages before the first piece, known once there is one
        self.notices: tuple[str, ...] = ()  # sentences, known by then

    @property
    def job(self) -> Job[Any] | None:
        """The job whose sound this is, None before there is one."""
        return self._job

    @property
    def job_id(self) -> str:
        """The id of the job, empty before there is one."""
        return self._job.id if self._job is not None else ""

    @property
    def error(self) -> BaseException | None:
        """What ended the feed before its time; to be asked for when next() has returned None."""
        return self._error

    @property
    def has_begun(self) -> bool:
        """Whether any sound has been put into it."""
        return self.sample_rate > 0

    # The writer's side.

    def follow(self, job: Job[Any]) -> None:
        """End with this job. It is cancelled when the reader leaves, and at once when the reader has left."""
        with self._lock:
            self._job = job
            left = self._left
        if left:
            job.cancel()
        job.when_over(lambda: self.end(job.error))

    def note(self, notices: tuple[str, ...]) -> None:
        """Tell what the user should know of the reference."""
        self.notices = notices

    def begin(self, timings: Timings) -> None:
        """Tell what has been done before the first piece is made."""
        self.timings = timings

    def put(self, piece: Waveform) -> None:
        """Add a piece of the sound."""
        with self._lock:
            self.sample_rate = piece.sample_rate
            if not self._left:
                self._pieces.append(pcm16(piece.samples))
            self._wake()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will come; ``error`` says why, unless all is there."""
        with self._lock:
            if not self._over:
                self._over, self._error = True, error
            self._wake()

    # The reader's side.

    async def next(self) -> bytes | None:
        """Wait, and return what has come since the last call; None at the end, see ``error``."""
        changed, loop = asyncio.Event(), asyncio.get_running_loop()
        with self._lock:
            self._wake = lambda: _call(loop, changed.set)
            if self._pieces or self._over:
                changed.set()
        await changed.wait()
        with self._lock:
            self._wake = lambda: None
            piece = b"".join(self._pieces)
            self._pieces.clear()
            return piece or None

    def leave(self) -> None:
        """The reader is gone."""
        with self._lock:
            self._left = True
            self._wake = lambda: None
            self._pieces.clear()
            job = self._job
        if job is not None:
            job.cancel()


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(function)


@dataclass(frozen=True, eq=False)
class _Ticket:
    expires: float
    feed: SoundFeed = field(default_factory=SoundFeed)
    sides: set[Side] = field(default_factory=lambda: {"read", "write"})  # who has not come yet


class Tickets:
    """Ids by which a page that submits a job in one way fetches its sound in another.

    An id cannot be guessed, serves one job and one reader, and is worth nothing after a minute. Safe in many threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._tickets: dict[str, _Ticket] = {}
        self._lock = threading.Lock()
        self._clock = clock

    def open(self) -> str:
        """Return a new id, 256 random bits in 43 characters. Raises Busy when there are too many."""
        with self._lock:
            now = self._clock()
            self._tickets = {name: ticket for name, ticket in self._tickets.items() if ticket.expires > now}
            if len(self._tickets) >= MOST_TICKETS:
                raise Busy("Too many streams are being opened; please try again in a minute.")
            name = secrets.token_urlsafe(32)
            self._tickets[name] = _Ticket(now + TICKET_SECONDS)
            return name

    def claim(self, name: str, side: Side) -> SoundFeed | None:
        """Return the feed of an id for the one reader or the one job; None for an id that is not, or no more, good."""
        with self._lock:
            ticket = self._tickets.get(name)
            if ticket is None or side not in ticket.sides or ticket.expires <= self._clock():
                return None
            ticket.sides.remove(side)
            if not ticket.sides:
                del self._tickets[name]
            return ticket.feed
