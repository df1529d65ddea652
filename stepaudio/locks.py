"""Locks between processes, by flock: the kernel frees them when their holder dies, however it dies.

This is the shortest expiry there can be for a killed holder, it needs no clock and no heartbeat, and a slow
encoding on a busy machine is never taken for a dead one. A holder that hangs is bounded by the waiting limit.
Windows has no flock: stepaudio runs there in WSL or in a container only, as the README says.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from types import TracebackType

_POLL_SECONDS = 0.02


class ProcessLock:
    """An exclusive lock named by a path; the file is there only while the lock is held.

    ``with ProcessLock(path, wait_seconds) as lock`` always enters; ``lock.held`` tells whether it was obtained in
    time and ``lock.waited`` whether somebody else held it first. Where the folder takes no lock files
    (read-only, missing, a file system without flock) it is not held and nobody is waited for.
    """

    def __init__(self, path: Path, wait_seconds: float) -> None:
        self.held = False
        self.waited = False
        self._path = path
        self._wait_seconds = wait_seconds
        self._file: int | None = None

    def __enter__(self) -> ProcessLock:
        deadline = time.monotonic() + self._wait_seconds
        try:
            while not self._try():
                self.waited = True
                if time.monotonic() >= deadline:
                    break
                time.sleep(_POLL_SECONDS)
        except OSError:
            self.held = False  # no lock to be had here: work on without one
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            # Removed while still held: whoever obtains the removed file's lock sees that below and tries anew.
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            os.close(self._file)
            self._file = None
            self.held = False

    def _try(self) -> bool:
        """Return whether the lock was obtained; False where another holds it. Raises OSError without locks."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                return False
            except OSError:
                os.close(file)
                raise
            if _is_at(file, self._path):
                self._file, self.held = file, True
                return True
            os.close(file)


def _is_at(file: int, path: Path) -> bool:
    """Return whether the open file is the one that lies at the path now."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file), there)
