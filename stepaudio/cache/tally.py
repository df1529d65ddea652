"""Hits, misses and seconds saved, kept in a small text file that several processes add to."""

from __future__ import annotations

import logging
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from stepaudio.cache.store import LOCKS
from stepaudio.locks import ProcessLock

log = logging.getLogger(__name__)

_FORMAT = "hits {}\nmisses {}\nseconds_saved {:.3f}\n"
_PATTERN = re.compile(r"hits (\d{1,15})\nmisses (\d{1,15})\nseconds_saved (-?\d{1,12}\.\d{3})\n", re.ASCII)


@dataclass(frozen=True)
class Counts:
    """How often the cache was asked, and what it saved: recorded encode seconds less hit seconds, summed."""

    hits: int = 0
    misses: int = 0
    seconds_saved: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.hits + other.hits, self.misses + other.misses, round(self.seconds_saved + other.seconds_saved, 6)
        )


class Tally:
    """Counts in memory, added to the file by ``flush``, which costs no hit anything.

    A killed process loses what it counted since its last flush.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.Lock()
        self._filed = self._read()
        self._fresh = Counts()

    def add(self, counts: Counts) -> None:
        with self._mutex:
            self._fresh += counts

    def total(self) -> Counts:
        """Return what the file held when last read, and what was counted here since."""
        with self._mutex:
            return self._filed + self._fresh

    def flush(self) -> None:
        """Add the fresh counts to the file. Raises OSError where it cannot be written; they are kept then."""
        with self._mutex, ProcessLock(self._path.parent / LOCKS / "tally", 1.0) as lock:
            if lock.waited and not lock.held:
                return  # another process is at it; the next flush will do
            self._filed = self._read()
            if self._fresh == Counts():
                return
            total = self._filed + self._fresh
            draft = self._path.with_suffix(f".{os.getpid()}")
            try:
                draft.write_text(_FORMAT.format(total.hits, total.misses, total.seconds_saved), "ascii")
                os.replace(draft, self._path)
            except OSError:
                draft.unlink(missing_ok=True)
                raise
            self._filed, self._fresh = total, Counts()

    def _read(self) -> Counts:
        try:
            with self._path.open("rb") as file:
                text = file.read(200).decode("ascii", "replace")
        except (FileNotFoundError, NotADirectoryError):
            return Counts()
        except OSError as error:
            log.warning("The cache's counters in %s cannot be read (%s); they begin at zero.", self._path, error)
            return Counts()
        found = _PATTERN.fullmatch(text)
        if found is None:
            log.warning("The cache's counters in %s are damaged; they begin at zero.", self._path)
            return Counts()
        return Counts(int(found[1]), int(found[2]), float(found[3]))
