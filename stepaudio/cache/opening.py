"""Opening the database of a cache folder: made where there is none, refused where it is not ours."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

from diskcache.core import DBNAME

from stepaudio.cache.container import MAX_BYTES
from stepaudio.cache.store import COUNTERS, FETCH, LOCK_SECONDS, LOCKS, OUR_MARK, SETTINGS, ForeignData, Store, bytes_of
from stepaudio.locks import ProcessLock

REJECTED = DBNAME + ".rejected"
# SHA-256 over the tables, indices and triggers that diskcache 5.6.3 creates; a test compares it with a new file's.
SCHEMA_DIGEST = "648582294837fd99b932731a698aeada28ceb21dc61c36a985303f53b06e4504"


def open_store(folder: Path, size_limit: int) -> tuple[Store, str | None]:
    """Return the folder's store, made where there is none, and what became of a useless one found there, and why.

    Raises OSError, sqlite3.Error or diskcache.Timeout where the folder cannot be written or is locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / DBNAME
    # One process at a time: a database that another one is just creating must not be taken for a foreign one.
    with ProcessLock(folder / LOCKS / "open", 2 * LOCK_SECONDS) as lock:
        if lock.waited and not lock.held:
            raise TimeoutError("another process is opening it")
        _remove_stale_locks(folder / LOCKS)
        try:
            _vet(database)
            return Store(folder, size_limit), None
        except ForeignData as error:
            reason = str(error)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            reason = f"SQLite says: {error}"
        done = _put_away(database)
        return Store(folder, size_limit), f"{done}, and a new one is begun: {reason}"


def put_away_if_same(store: Store) -> str:
    """Take the store's damaged database out of the way, unless another process has done so already.

    Returns what became of it, in words. Raises OSError.
    """
    with ProcessLock(store.database.parent / LOCKS / "open", 2 * LOCK_SECONDS):
        return _put_away(store.database) if store.in_place() else "replaced by another process"


def _remove_stale_locks(locks: Path) -> None:
    """Remove the empty files that killed processes left behind; one whose lock is held stays."""
    for path in locks.glob("*"):
        with ProcessLock(path, 0.0):
            pass


def _put_away(database: Path) -> str:
    """Make room for a new database and return what became of the old one, in words.

    What another program may miss is renamed, and the last such file kept. Ours holds nothing that cannot be computed
    again, but may be as large as the limit: kept beside the new one, it would take the folder far beyond it.
    """
    if _is_anothers(database):
        os.replace(database, database.with_name(REJECTED))
        done = f"set aside as {REJECTED}"
    else:
        database.unlink()
        done = "removed"
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    return done


def _is_anothers(database: Path) -> bool:
    """Return whether this is no file, or a database of SQLite without our mark; what cannot be read is ours, damaged.

    Raises OSError.
    """
    if not stat.S_ISREG(os.lstat(database).st_mode):
        return True
    with database.open("rb") as file:
        head = file.read(64)
    # The header of an SQLite file ends its first 64 bytes with user_version, big-endian.
    return head.startswith(b"SQLite format 3\0") and head[60:] != OUR_MARK.to_bytes(4, "big")


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
                return bytes_of(con.execute(FETCH, (MAX_BYTES, key)).fetchall())
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
                break  # somebody is at work in it: not to be read without locks
    return None


def is_damage(error: BaseException) -> bool:
    """Return whether SQLite says that the file itself is broken (and not locked, full or out of reach)."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _vet(database: Path) -> None:
    """Raise ForeignData unless the database is absent or ours, and sqlite3.Error where it is locked or damaged."""
    try:
        kind = os.lstat(database).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(kind):
        raise ForeignData("it is not a file")
    with closing(sqlite3.connect(database, timeout=LOCK_SECONDS, isolation_level=None)) as con:
        con.execute("BEGIN IMMEDIATE")
        _check_schema(con)
        _check_settings(con)
        con.execute("ROLLBACK")


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
    if {key for key, _ in rows} != {*SETTINGS, *COUNTERS}:
        raise ForeignData("its settings are not those of this program")
    if any(SETTINGS.get(key, value) != value for key, value in rows):
        raise ForeignData("its settings have other values than this program gives them")
