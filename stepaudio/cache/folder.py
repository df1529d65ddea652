"""The cache folder with its troubles: nothing here raises, because a cache failure costs speed, never a request.

Full disk, read-only or removed folder, locked or damaged database: each becomes a miss, one sentence in
``problem`` and one WARNING, and is tried again after a while, at growing intervals.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from pathlib import Path

import diskcache
from diskcache.core import DBNAME

from stepaudio.cache.opening import REJECTED, fetch_read_only, is_damage, open_store, put_away_if_same
from stepaudio.cache.store import LOCKS, ForeignData, Store
from stepaudio.cache.tally import Tally
from stepaudio.locks import ProcessLock

log = logging.getLogger(__name__)

STORAGE_ERRORS = (OSError, sqlite3.Error, diskcache.Timeout)
_MAX_RETRY_SECONDS = 300.0
# As much as one long reference needs: a disk that takes this takes the next entry.
_PROBE_BYTES = 512 * 1024


class FolderKeeper:
    """Reads and writes entries as bytes; see EncodingCache for what they mean."""

    def __init__(self, folder: Path, size_limit: int, retry_seconds: float) -> None:
        self.folder = folder
        self.problem: str | None = None
        self._size_limit = size_limit
        self._first_delay = self._delay = retry_seconds
        self._retry_at = 0.0
        self._store: Store | None = None
        self._used: dict[str, None] = {}
        self._rejected: set[str] = set()
        self._mutex = threading.RLock()
        self._opened()

    def lock(self, key: str, wait_seconds: float) -> ProcessLock:
        """Return the lock for encoding this key; nobody is waited for while results cannot be stored anyway."""
        return ProcessLock(self.folder / LOCKS / key, wait_seconds if self.problem is None else 0.0)

    def fetch(self, key: str) -> bytes | None:
        """Return the stored bytes, or None."""
        store = self._opened()
        try:
            return store.fetch(key) if store is not None else fetch_read_only(self.folder, key)
        except ForeignData as error:
            self.reject(key, str(error))
        except STORAGE_ERRORS as error:
            if store is not None:
                self._failed(error, store, lost=True)
        return None

    def note_use(self, key: str) -> None:
        """Remember that the key was used just now; written with the next ``store`` or ``flush``."""
        with self._mutex:
            self._used.pop(key, None)
            self._used[key] = None

    def store(self, key: str, value: bytes) -> bool:
        """Store the bytes; return whether that worked."""
        store = self._writable_store()
        if store is None:
            return False
        try:
            store.store(key, value, self._take_used())
        except STORAGE_ERRORS as error:
            self._write_failed(store, error)
            return False
        self._rejected.discard(key)
        self._delay = self._first_delay
        return True

    def reject(self, key: str, reason: str) -> None:
        """Say that the entry of this key is of no use, and remove it."""
        if key not in self._rejected:  # in a folder that cannot be written it is met again and again
            log.warning("A cache entry in %s is dropped: %s.", self.folder, reason)
            self._rejected.add(key)
        store = self._writable_store()
        if store is not None:
            try:
                store.drop(key)
            except STORAGE_ERRORS as error:
                self._write_failed(store, error)

    def clear(self) -> int:
        """Remove all entries, and a file that was set aside (a folder may hold anything); return how many entries."""
        store = self._writable_store()
        if store is None:
            return 0
        try:
            count = store.empty()
            rejected = self.folder / REJECTED
            if not rejected.is_dir():
                rejected.unlink(missing_ok=True)
        except STORAGE_ERRORS as error:
            self._write_failed(store, error)
            return 0
        return count

    def usage(self) -> tuple[int, int]:
        """Return the number of entries and the bytes on the disk: of the database, and of one that was set aside."""
        store = self._opened()
        entries = 0
        if store is not None:
            try:
                entries = store.entries()
            except STORAGE_ERRORS as error:
                self._failed(error, store, lost=True)
        return entries, sum(_size(path) for path in self.folder.glob(DBNAME + "*"))

    def check(self) -> None:
        """After a failure, and when it is time: try whether the folder can be written again."""
        self._writable_store()

    def flush(self, tally: Tally) -> None:
        """Write down which keys were used, and the counters."""
        store = self._writable_store()
        if store is None:
            return
        try:
            used = self._take_used()
            if used:
                store.touch_all(used)
            tally.flush()
        except STORAGE_ERRORS as error:
            self._write_failed(store, error)

    def close(self) -> None:
        with self._mutex:
            self._close_store()
            self._retry_at = float("inf")

    def _take_used(self) -> list[str]:
        with self._mutex:
            used = list(self._used)
            self._used.clear()
            return used

    def _opened(self) -> Store | None:
        """Return the open store; None while the folder is out of order."""
        with self._mutex:
            if self._store is not None and not self._store.in_place():
                log.warning("The cache database in %s was removed or replaced; it is opened anew.", self.folder)
                self._close_store()
            if self._store is None and time.monotonic() >= self._retry_at:
                self._open()
            return self._store

    def _open(self) -> None:
        try:
            self._store, replaced = open_store(self.folder, self._size_limit)
        except STORAGE_ERRORS as error:
            self._failed(error, None, lost=True)
            return
        if replaced is not None:
            log.warning("The cache database in %s was %s.", self.folder, replaced)

    def _writable_store(self) -> Store | None:
        """Return the store unless it is known not to take anything now; after a failure it is tried out first."""
        with self._mutex:
            if self.problem is None:
                return self._opened()
            if time.monotonic() < self._retry_at:
                return None
            try:
                _probe(self.folder)
            except OSError as error:
                self._failed(error, self._store, lost=False)
                return None
            store = self._opened()
            if store is not None:
                try:
                    store.touch_all(())
                except STORAGE_ERRORS as error:
                    self._write_failed(store, error)
                    return None
                self.problem = None
                log.info("The cache in %s can be written again.", self.folder)
            return store

    def _write_failed(self, store: Store, error: Exception) -> None:
        # Reading may still work, but the connection may hold a half-done transaction.
        store.close()
        self._failed(error, store, lost=False)

    def _failed(self, error: Exception, store: Store | None, *, lost: bool) -> None:
        """Say once what is wrong and when to try again; ``lost``: the store cannot even be read."""
        with self._mutex:
            if store is not self._store:
                return  # another thread has closed or replaced it meanwhile
            if store is not None and is_damage(error):
                self._close_store()
                try:
                    done = put_away_if_same(store)
                except OSError as worse:
                    error = worse
                else:
                    log.warning(
                        "The cache database in %s is damaged (%s); it was %s, and a new one is begun.",
                        self.folder,
                        error,
                        done,
                    )
                    return
            if lost:
                self._close_store()
            problem = (
                f"The cache in {self.folder} cannot be written ({_reason(error)}); "
                "requests still work, but new voices are encoded every time."
            )
            if problem != self.problem:
                log.warning("%s", problem)
            self.problem = problem
            self._retry_at = time.monotonic() + self._delay
            self._delay = min(2 * self._delay, _MAX_RETRY_SECONDS)

    def _close_store(self) -> None:
        if self._store is not None:
            self._store.retire()
            self._store = None


def _reason(error: BaseException) -> str:
    # diskcache hides SQLite's words behind its Timeout.
    cause = error.__context__ if isinstance(error, diskcache.Timeout) and error.__context__ else error
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or type(cause).__name__


def _probe(folder: Path) -> None:
    """Write and remove a file of the size of an entry. Raises OSError where that is not possible."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"probe.{os.getpid()}"
    try:
        path.write_bytes(bytes(_PROBE_BYTES))
    finally:
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # gone since it was listed
