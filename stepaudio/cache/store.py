"""diskcache as we use it: text keys, bytes as values, all in one SQLite file; nothing is ever (un)pickled.

What differs from diskcache 5.6.3 as it comes, and why:

* Its Disk pickles whatever is not text, number or bytes, and unpickles whatever a row says is pickled
  (CVE-2025-69872). BytesDisk does neither and refuses every row that is not plain bytes.
* A row may name a file, and diskcache reads and deletes that path, wherever it points. We keep values in the
  database (half a megabyte at most), so that no path of a row is ever followed; it also means that a killed
  process leaves no orphaned files behind that nobody counts.
* It applies whatever its Settings table holds as PRAGMAs, attributes and arguments of the Disk. Here the
  settings are constants, and a database with other ones, or with other tables and triggers, is not opened
  (see opening.py).
* Its culling deletes ten rows at a time, among them the one just stored where the limit is small, and falls
  behind where a new value is larger than ten old ones. We delete the least recently used row until the bytes fit.
* It marks each hit in the database, with a clock. Our hits do not write (so they work while another process
  holds the database, and in a read-only folder); use is noted with the next write, by a counter.
* It retries a locked database for a minute; here it costs LOCK_SECONDS.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import DBNAME, ENOVAL, MODE_RAW, UNKNOWN

from stepaudio.cache.container import MAX_BYTES

LOCKS = "locks"
"""The subfolder that holds the lock files."""

LOCK_SECONDS = 1.0
# The index of the write-ahead log and the counters lie beside the database and count, too.
_BESIDE_BYTES = 40 * 1024

# What the database takes without a single entry, rounded up.
_EMPTY_BYTES = 64 * 1024

# The user_version of a file, which marks it as ours.
OUR_MARK = 0x5E01
# Pragmas of the file. diskcache applies them in the order of their names.
_FILE_PRAGMAS: dict[str, int | str] = {"auto_vacuum": 1, "journal_mode": "wal", "user_version": OUR_MARK}
# Pragmas of each connection. mmap_size 0: reading a mapped file that another process truncates is a SIGBUS.
_CONNECTION_PRAGMAS: dict[str, int | str] = {
    "cache_size": 2048,
    "journal_size_limit": 2**20,
    "mmap_size": 0,
    "synchronous": 1,
    "trusted_schema": 0,
    "wal_autocheckpoint": 256,
}
SETTINGS: dict[str, int | str] = {
    "statistics": 0,
    "tag_index": 0,
    "eviction_policy": "least-recently-used",
    "size_limit": 0,
    "cull_limit": 0,
    "disk_min_file_size": 0,
    "disk_pickle_protocol": 0,
    **{f"sqlite_{name}": value for name, value in (_FILE_PRAGMAS | _CONNECTION_PRAGMAS).items()},
}
COUNTERS = ("count", "size", "hits", "misses")

FETCH = (
    "SELECT mode, filename, CASE WHEN typeof(value) = 'blob' AND length(value) <= ? THEN value END"
    " FROM Cache WHERE key = ? AND raw = 1"
)
_TOUCH = "UPDATE Cache SET access_time = (SELECT MAX(access_time) + 1 FROM Cache) WHERE key = ? AND raw = 1"


class ForeignData(Exception):
    """What lies in the folder was not written by this module; the message says what it is."""


class BytesDisk(diskcache.Disk):
    """Text keys and bytes values as they are; everything else is refused, in both directions."""

    def put(self, key: object) -> tuple[str, bool]:
        if type(key) is not str:
            raise TypeError(f"a key of the cache is text, not {type(key).__name__}")
        return key, True

    def get(self, key: object, raw: object) -> str:
        if type(key) is not str or not raw:
            raise ForeignData("a key that is not plain text")
        return key

    def store(self, value: object, read: bool, key: object = UNKNOWN) -> tuple[int, int, None, memoryview]:
        if type(value) is not bytes or read:
            raise TypeError(f"a value of the cache is bytes, not {type(value).__name__}")
        return 0, MODE_RAW, None, sqlite3.Binary(value)

    def fetch(self, mode: object, filename: object, value: object, read: bool) -> bytes:
        if mode != MODE_RAW or filename is not None or type(value) is not bytes or read:
            raise ForeignData("a row that is not plain bytes")
        return value

    def remove(self, file_path: object) -> None:
        """Remove nothing: no row of ours names a file, and the path in a planted row may point anywhere."""


class Store(diskcache.Cache):
    """The open database, for all threads.

    Raises sqlite3.Error, diskcache.Timeout or OSError, which FolderKeeper turns into misses.
    """

    def __init__(self, folder: Path, size_limit: int) -> None:
        self.database = folder / DBNAME
        self._limit = size_limit - _BESIDE_BYTES
        self._guard = threading.RLock()
        self._open_con: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._retired = False
        try:
            super().__init__(str(folder), timeout=LOCK_SECONDS, disk=BytesDisk, **SETTINGS)
            self._identity = _identity(self.database)
            with self.transact():
                self._evict()
        except (sqlite3.Error, diskcache.Timeout, OSError):
            self.close()
            raise

    def fetch(self, key: str) -> bytes | None:
        """Return the value, or None; writes nothing. Raises ForeignData for a row that is not ours."""
        with self._guard:
            return bytes_of(self._sql(FETCH, (MAX_BYTES, key)).fetchall())

    def store(self, key: str, value: bytes, used: Iterable[str] = ()) -> None:
        """Store the value as the most recently used, after the keys in ``used``; evict until the bytes fit.

        Raises OSError for a value larger than the limit, rather than evict all others and then itself.
        """
        if len(value) + _EMPTY_BYTES > self._limit:
            raise OSError(errno.EFBIG, f"an entry has {len(value)} bytes, and its limit is {self._limit}")
        with self._guard:
            with self.transact():
                self._touch(used)
                self.set(key, value)
                self._touch([key])
                self._evict()
            self._shrink()

    def touch_all(self, used: Iterable[str]) -> None:
        """Note that these keys were used, in this order."""
        with self._guard, self.transact():
            self._touch(used)

    def drop(self, key: str) -> None:
        """Remove the row of this key, whatever it holds."""
        with self._guard, self.transact():
            self._sql("DELETE FROM Cache WHERE key = ? AND raw = 1", (key,))

    def empty(self) -> int:
        """Remove all rows and give their bytes back; return how many there were."""
        with self._guard:
            count = int(self.clear())
            self._shrink()
            return count

    def entries(self) -> int:
        """Return the number of rows."""
        with self._guard:
            ((count,),) = self._sql("SELECT COUNT(*) FROM Cache").fetchall()
            return int(count)

    def retire(self) -> None:
        """Close for good: a thread that comes too late gets an sqlite3.Error."""
        with self._guard:
            self._retired = True
            self.close()

    def in_place(self) -> bool:
        """Return whether the file that is open still lies in the folder (a removed one could be written for ever)."""
        return _identity(self.database) == self._identity

    def _touch(self, keys: Iterable[str]) -> None:
        # A counter, not the time: a clock that jumps back must not make the newest entry the oldest.
        self._sql_many(_TOUCH, ((key,) for key in keys))

    def _evict(self) -> None:
        while self._used_bytes() > self._limit:
            gone = self._sql("DELETE FROM Cache WHERE rowid = (SELECT rowid FROM Cache ORDER BY access_time LIMIT 1)")
            if gone.rowcount == 0:
                break

    def _shrink(self) -> None:
        """Move the write-ahead log into the database and cut it to nothing, so that the bytes on the disk hold too.

        It is left for the next time where another process is busy just now: waiting for readers would keep all other
        writers out meanwhile. This costs two fsyncs, beside an encoding.
        """
        self._sql("PRAGMA busy_timeout = 0")
        try:
            self._sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            self._sql(f"PRAGMA busy_timeout = {int(1000 * LOCK_SECONDS)}")

    def _used_bytes(self) -> int:
        """Return the size that the file has after the commit, when auto_vacuum has cut the free pages off."""
        pages, free, size = (
            self._sql(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    @property
    def _sql_many(self) -> Callable[..., sqlite3.Cursor]:
        return self._con.executemany

    # What follows replaces parts of diskcache, for the reasons given at the top.

    @property
    def _con(self) -> sqlite3.Connection:
        """The one connection of this process, with our pragmas and not those of the Settings table.

        diskcache has one for each thread, which stays open until the garbage collector comes by. A hit takes it for
        0.2 ms, so that threads may share it.
        """
        if self._pid != os.getpid():  # after a fork the parent's connection is not ours to use
            self._open_con, self._pid = None, os.getpid()
        if self._open_con is None:
            if self._retired:
                raise sqlite3.ProgrammingError("the cache database was closed")
            self._open_con = sqlite3.connect(
                self.database, timeout=self._timeout, isolation_level=None, check_same_thread=False
            )
            try:
                for name, value in _CONNECTION_PRAGMAS.items():
                    self._open_con.execute(f"PRAGMA {name} = {value}")
            except sqlite3.Error:
                self.close()
                raise
        return self._open_con

    def close(self) -> None:
        """Close the connection, which rolls a half-done transaction back; the next call opens another one."""
        with self._guard:
            if self._open_con is not None:
                self._open_con.close()
                self._open_con = None

    @property
    def _sql_retry(self) -> Callable[..., sqlite3.Cursor]:
        def execute(statement: str, parameters: tuple[Any, ...] = ()) -> sqlite3.Cursor:
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    return self._sql(statement, parameters)
                except sqlite3.OperationalError as error:
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                        raise
                time.sleep(0.005)

        return execute

    def reset(self, key: str, value: Any = ENOVAL, update: bool = True) -> Any:
        if not key.startswith("sqlite_"):
            return super().reset(key, value, update)
        name, wanted = key.removeprefix("sqlite_"), SETTINGS[key]
        if self._sql_retry(f"PRAGMA {name}").fetchone() != (wanted,):
            self._sql_retry(f"PRAGMA {name} = {wanted}").fetchall()
        setattr(self, key, wanted)
        return wanted


def bytes_of(rows: list[tuple[Any, ...]]) -> bytes | None:
    """Return the value in the rows that FETCH gave, or None. Raises ForeignData for anything but our bytes."""
    if not rows:
        return None
    ((mode, filename, value),) = rows
    if mode != MODE_RAW or filename is not None or type(value) is not bytes:
        raise ForeignData("its row is not plain bytes of a sensible size")
    return value


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
