"""diskcache as we use it: text keys, bytes as values, all in one SQLite file; nothing is ever (un)pickled.

What differs from diskcache 5.6.3 as it comes, and why:

* Its Disk pickles whatever is not text, number or bytes, and unpickles whatever a row says is pickled
  (CVE-2025-69872). BytesDisk does neither and refuses every row that is not plain bytes.
* A row may name a file, and diskcache reads and deletes that path, wherever it points. We keep values in the
  database (half a megabyte at most), so that no path of a row is ever followed; it also means that a killed
  process leaves no orphaned files behind that nobody counts.
* It applies whatever its Settings table holds as PRAGMAs, attributes and arguments of the Disk. Here the
  settings are constants, and a database with other ones, or with other tables and triggers, is not opened.
* Its culling deletes ten rows at a time, among them the one just stored where the limit is small, and falls
  behind where a new value is larger than ten old ones. We delete the least recently used row until the bytes fit.
* It marks each hit in the database, with a clock. Our hits do not write (so they work while another process
  holds the database, and in a read-only folder); use is noted with the next write, by a counter.
* It retries a locked database for a minute; here it costs LOCK_SECONDS.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import DBNAME, ENOVAL, MODE_RAW, UNKNOWN

from stepaudio.cache.container import MAX_BYTES
from stepaudio.cache.lock import FileLock

LOCK_SECONDS = 0.5
# The index of the write-ahead log and the counters lie beside the database and count, too.
_BESIDE_BYTES = 40 * 1024
REJECTED = DBNAME + ".rejected"

# Pragmas of the file; user_version marks it as ours. diskcache applies them in the order of their names.
_FILE_PRAGMAS: dict[str, int | str] = {"auto_vacuum": 1, "journal_mode": "wal", "user_version": 0x5E01}
# Pragmas of each connection. mmap_size 0: reading a mapped file that another process truncates is a SIGBUS.
_CONNECTION_PRAGMAS: dict[str, int | str] = {
    "cache_size": 2048,
    "journal_size_limit": 2**20,
    "mmap_size": 0,
    "synchronous": 1,
    "trusted_schema": 0,
    "wal_autocheckpoint": 256,
}
_SETTINGS: dict[str, int | str] = {
    "statistics": 0,
    "tag_index": 0,
    "eviction_policy": "least-recently-used",
    "size_limit": 0,
    "cull_limit": 0,
    "disk_min_file_size": 0,
    "disk_pickle_protocol": 0,
    **{f"sqlite_{name}": value for name, value in (_FILE_PRAGMAS | _CONNECTION_PRAGMAS).items()},
}
_COUNTERS = ("count", "size", "hits", "misses")
# SHA-256 over the tables, indices and triggers that diskcache 5.6.3 creates; a test compares it with a new file's.
SCHEMA_DIGEST = "648582294837fd99b932731a698aeada28ceb21dc61c36a985303f53b06e4504"

_FETCH = (
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
    """The open database. Raises sqlite3.Error, diskcache.Timeout or OSError; FolderKeeper turns those into misses."""

    def __init__(self, folder: Path, size_limit: int) -> None:
        self.database = folder / DBNAME
        self._limit = size_limit - _BESIDE_BYTES
        super().__init__(str(folder), timeout=LOCK_SECONDS, disk=BytesDisk, **_SETTINGS)
        self._identity = _identity(self.database)
        with self.transact():
            self._evict()

    def fetch(self, key: str) -> bytes | None:
        """Return the value, or None; writes nothing. Raises ForeignData for a row that is not ours."""
        return _bytes_of(self._sql(_FETCH, (MAX_BYTES, key)).fetchall())

    def store(self, key: str, value: bytes, used: Iterable[str] = ()) -> None:
        """Store the value as the most recently used, after the keys in ``used``; evict until the bytes fit."""
        with self.transact():
            self._touch(used)
            self.set(key, value)
            self._touch([key])
            self._evict()
        self._shrink()

    def touch_all(self, used: Iterable[str]) -> None:
        """Note that these keys were used, in this order."""
        with self.transact():
            self._touch(used)

    def drop(self, key: str) -> None:
        """Remove the row of this key, whatever it holds."""
        with self.transact():
            self._sql("DELETE FROM Cache WHERE key = ? AND raw = 1", (key,))

    def empty(self) -> int:
        """Remove all rows and give their bytes back; return how many there were."""
        count = int(self.clear())
        self._shrink()
        return count

    def entries(self) -> int:
        """Return the number of rows."""
        ((count,),) = self._sql("SELECT COUNT(*) FROM Cache").fetchall()
        return int(count)

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

        It is left for the next time where another process reads just now. This costs two fsyncs, beside an encoding.
        """
        self._sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

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
        """The connection of this thread and process; a new one gets our pragmas, not those of the Settings table."""
        local = self._local
        if getattr(local, "pid", None) != os.getpid():
            self.close()
            local.pid = os.getpid()
        if getattr(local, "con", None) is None:
            local.con = sqlite3.connect(self.database, timeout=self._timeout, isolation_level=None)
            for name, value in _CONNECTION_PRAGMAS.items():
                local.con.execute(f"PRAGMA {name} = {value}")
        return local.con

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
        name, wanted = key.removeprefix("sqlite_"), _SETTINGS[key]
        if self._sql_retry(f"PRAGMA {name}").fetchone() != (wanted,):
            self._sql_retry(f"PRAGMA {name} = {wanted}").fetchall()
        setattr(self, key, wanted)
        return wanted


def open_store(folder: Path, size_limit: int) -> tuple[Store, str | None]:
    """Return the folder's store, made where there is none, and why a database found there was set aside, if one was.

    Raises OSError, sqlite3.Error or diskcache.Timeout where the folder cannot be written or is locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / DBNAME
    rejected: str | None = None
    # One process at a time: a database that another one is just creating must not be taken for a foreign one.
    with FileLock(folder / "locks" / "open", 2 * LOCK_SECONDS) as lock:
        if lock.waited and not lock.held:
            raise TimeoutError("another process is opening it")
        try:
            _vet(database)
        except ForeignData as error:
            rejected = str(error)
            _set_aside(database)
        return Store(folder, size_limit), rejected


def set_aside_if_same(store: Store) -> None:
    """Set the store's damaged database aside, unless another process has done so already. Raises OSError."""
    with FileLock(store.database.parent / "locks" / "open", 2 * LOCK_SECONDS):
        if store.in_place():
            _set_aside(store.database)


def _set_aside(database: Path) -> None:
    """Rename a database that is damaged or not ours, so that a new one can be made; the last such file is kept."""
    os.replace(database, database.with_name(REJECTED))
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def fetch_read_only(folder: Path, key: str) -> bytes | None:
    """Return the value from a folder that cannot be written, or None where SQLite cannot read it either.

    Raises ForeignData for a row or a database that is not ours.
    """
    database = folder.absolute() / DBNAME
    if not database.is_file():
        return None
    # In WAL mode SQLite wants to make a file beside the database; "immutable" reads without it, and without locks.
    for how in ("mode=ro", "immutable=1"):
        try:
            with closing(sqlite3.connect(f"{database.as_uri()}?{how}", timeout=0.1, uri=True)) as con:
                _check_schema(con)
                return _bytes_of(con.execute(_FETCH, (MAX_BYTES, key)).fetchall())
        except sqlite3.OperationalError:
            continue
    return None


def is_damage(error: BaseException) -> bool:
    """Return whether SQLite says that the file itself is broken (and not locked, full or out of reach)."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _vet(database: Path) -> None:
    """Raise ForeignData unless the database is absent or ours, and sqlite3.OperationalError while it is locked."""
    try:
        kind = os.lstat(database).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(kind):
        raise ForeignData("it is not a file")
    try:
        with closing(sqlite3.connect(database, timeout=LOCK_SECONDS, isolation_level=None)) as con:
            con.execute("BEGIN IMMEDIATE")
            _check_schema(con)
            _check_settings(con)
            con.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise ForeignData(f"SQLite says: {error}") from error
        raise


def _check_schema(con: sqlite3.Connection) -> None:
    """Raise ForeignData unless tables, indices and triggers are exactly those that this module makes."""
    if schema_digest(con) != SCHEMA_DIGEST:
        raise ForeignData("its tables are not those of this program")


def schema_digest(con: sqlite3.Connection) -> str:
    """Return the SHA-256 over the database's tables, indices and triggers as SQL text."""
    rows = con.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name").fetchall()
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def _check_settings(con: sqlite3.Connection) -> None:
    rows = con.execute("SELECT key, value FROM Settings").fetchall()
    if {key for key, _ in rows} != {*_SETTINGS, *_COUNTERS}:
        raise ForeignData("its settings are not those of this program")
    if any(_SETTINGS.get(key, value) != value for key, value in rows):
        raise ForeignData("its settings have other values than this program gives them")


def _bytes_of(rows: list[tuple[Any, ...]]) -> bytes | None:
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
