"""The job of each browser tab: a new one, a stop, a reload or a closed tab ends the one before."""

from __future__ import annotations

import threading

from stepaudio.queue import Job
from stepaudio.service import CloneResult

CloneJob = Job[CloneResult]


class SessionJobs:
    """Remembers, for each session that has one, the job that runs or waits for it. Safe in many threads."""

    def __init__(self) -> None:
        self._jobs: dict[str, CloneJob] = {}
        self._lock = threading.Lock()

    def begin(self, session: str, job: CloneJob) -> None:
        """Take a session's new job; an earlier one is cancelled."""
        with self._lock:
            earlier = self._jobs.get(session)
            self._jobs[session] = job
        if earlier is not None:
            earlier.cancel()

    def stop(self, session: str) -> None:
        """Cancel the session's job, if it has one."""
        with self._lock:
            job = self._jobs.pop(session, None)
        if job is not None:
            job.cancel()

    def end(self, session: str, job: CloneJob) -> None:
        """Forget a job that is over."""
        with self._lock:
            if self._jobs.get(session) is job:
                del self._jobs[session]

    def __len__(self) -> int:
        with self._lock:
            return len(self._jobs)
