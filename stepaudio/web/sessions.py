"""What the server remembers of each browser tab: its jobs, its log, its sounds, its chain of edits.

A tab is known by Gradio's session hash, which a reload changes: nothing of a tab is ever shown in another one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from stepaudio.queue import Job
from stepaudio.types import Synthesis
from stepaudio.web.history import Chain

TabJob = Job[Any]
Kind = Literal["reference", "clone", "edit"]

LOG_LINES = 200
SHELF_SOUNDS = 24
IDLE_SECONDS = 3600.0
MOST_BYTES = 512 * 2**20
"""Of the sounds of all tabs together; those of the tab that was used least recently go first."""


class SessionJobs:
    """Remembers, for each session, the jobs that run or wait for it: one of each kind. Safe in many threads."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[str, str], TabJob] = {}
        self._lock = threading.Lock()

    def begin(self, session: str, kind: str, job: TabJob) -> None:
        """Take a session's new job; an earlier one of its kind is cancelled, others go on."""
        with self._lock:
            earlier = self._jobs.get((session, kind))
            self._jobs[session, kind] = job
        if earlier is not None:
            earlier.cancel()

    def stop(self, session: str) -> None:
        """Cancel all jobs of a session."""
        with self._lock:
            jobs = [self._jobs.pop(key) for key in list(self._jobs) if key[0] == session]
        for job in jobs:
            job.cancel()

    def end(self, session: str, kind: str, job: TabJob) -> None:
        """Forget a job that is over."""
        with self._lock:
            if self._jobs.get((session, kind)) is job:
                del self._jobs[session, kind]

    def __len__(self) -> int:
        with self._lock:
            return len(self._jobs)


@dataclass(frozen=True, eq=False)
class Sound:
    """A sound that a tab has heard or made. number: counts up within the tab. detail: what tells it from others.

    source: what it was made from, a clone's reference or the original of an edit; None for what was given.
    """

    number: int
    kind: Kind
    wav: bytes
    transcript: str
    detail: str = ""
    source: Sound | None = None


@dataclass(frozen=True, eq=False)
class Take:
    """One of the sounds that a clone has made."""

    sound: Sound
    synthesis: Synthesis


@dataclass(eq=False)
class Session:
    """One tab. takes: the sounds of the last clone with what is told of each; picked: the one that was chosen.
    last: the run that is reported.

    sent: what the tab shows of the status that is refreshed all the time, so that only changes are sent.
    """

    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    shelf: deque[Sound] = field(default_factory=lambda: deque(maxlen=SHELF_SOUNDS))
    chain: Chain = field(default_factory=Chain)
    takes: list[Take] = field(default_factory=list)
    picked: int = 0
    last: Synthesis | None = None
    sent: dict[int, object] = field(default_factory=dict)
    used: float = 0.0
    _count: int = 0

    def tell(self, request_id: str, text: str) -> None:
        """Add lines about a request of this tab to its log."""
        stamp = time.strftime("%H:%M:%S")
        self.log.extend(f"{stamp} [{request_id}] {line}" for line in text.split("\n"))

    def forget_sent(self, component_id: int) -> None:
        """Let a component of the refreshed status be sent anew: something else than that is shown in it now."""
        self.sent.pop(component_id, None)

    def keep(self, kind: Kind, wav: bytes, transcript: str, detail: str = "", source: Sound | None = None) -> Sound:
        """Put a sound on the shelf and return it; one that lies there already is not kept twice."""
        found = next((sound for sound in self.shelf if sound.wav == wav), None)
        if found is not None:
            return found
        self._count += 1
        sound = Sound(self._count, kind, wav, transcript, detail, source)
        self.shelf.append(sound)
        return sound

    def put_back(self, sound: Sound) -> None:
        """Put a sound on the shelf again where younger ones have pushed it off."""
        if sound not in self.shelf:
            self.shelf.append(sound)

    def sound(self, number: int | None) -> Sound | None:
        """Return the sound of the shelf with this number, if it is still there."""
        return next((sound for sound in self.shelf if sound.number == number), None)

    @property
    def take(self) -> Take | None:
        """The take that was chosen, the first one if none was; None before there is one."""
        return self.takes[self.picked] if self.takes else None

    @property
    def bytes(self) -> int:
        sounds = {*self.shelf, *(take.sound for take in self.takes)}
        sounds |= {sound.source for sound in sounds if sound.source is not None}
        return sum(len(sound.wav) for sound in sounds) + sum(len(step.wav) for step in self.chain.steps)


class Sessions:
    """The tabs that are open, as far as the server knows. Safe in many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most_bytes: int = MOST_BYTES) -> None:
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._clock = clock
        self._most_bytes = most_bytes

    def of(self, name: str) -> Session:
        """Return the session of this name, a new one where there is none; others are forgotten when they are old."""
        with self._lock:
            session = self._sessions.setdefault(name, Session())
            session.used = self._clock()
            self._forget(session)
            return session

    def lost(self, name: str) -> None:
        """The connection of a tab has ended; what was sent last may not have come through.

        Nothing else is forgotten: who only lost the network for a moment comes back under this name, and who does not
        is forgotten for being idle.
        """
        with self._lock:
            if name in self._sessions:
                self._sessions[name].sent.clear()

    def _forget(self, current: Session) -> None:
        by_age = sorted(self._sessions.items(), key=lambda item: item[1].used)
        total = sum(session.bytes for _, session in by_age)
        for name, session in by_age:
            idle = current.used - session.used > IDLE_SECONDS
            if session is not current and (idle or total > self._most_bytes):
                total -= session.bytes
                del self._sessions[name]

    def __len__(self) -> int:
        with self._lock:
            return len(self._sessions)
