"""What lies in the cache folder may come from anywhere: damaged, of another program, or planted to be executed."""

from __future__ import annotations

import os
import pickle
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import diskcache
import pytest

from stepaudio.cache import EncodingCache
from stepaudio.cache.opening import SCHEMA_DIGEST, schema_digest
from stepaudio.cache.store import BytesDisk, ForeignData, Store
from tests.cache_kit import LIMIT, CountingEncoder, assert_same, encoding_of, noise, warnings_of

Open = Callable[[], EncodingCache]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose cache holds the encodings of noise(1) and noise(2)."""
    folder = tmp_path / "cache"
    with EncodingCache(folder, "f", size_limit=LIMIT) as cache:
        for n in (1, 2):
            cache.get_or_encode(noise(n), CountingEncoder())
        cache.stats()
    return folder


def key_of(n: int) -> str:
    with EncodingCache(Path("unused"), "f", size_limit=LIMIT, enabled=False) as cache:
        return cache.key(noise(n))


def sql(folder: Path, statement: str, *parameters: object) -> None:
    with closing(sqlite3.connect(folder / "cache.db")) as con, con:
        con.execute(statement, parameters)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self._marker,)


def assert_replaced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Assert that noise(1) misses with one warning and hits afterwards, and that noise(2) was not touched."""
    encode = CountingEncoder()
    with EncodingCache(folder, "f", size_limit=LIMIT) as cache:
        outcomes = [cache.get_or_encode(noise(1), encode) for _ in range(3)]
        assert [outcome.hit for outcome in outcomes] == [False, True, True]
        for outcome in outcomes:
            assert_same(outcome.encoding, encoding_of(noise(1)))
        assert cache.get_or_encode(noise(2), encode).hit
        assert cache.stats().problem is None
    assert encode.calls == 1
    assert len(warnings_of(caplog)) == 1
    assert "dropped" in warnings_of(caplog)[0]


@pytest.mark.parametrize(
    "value",
    ["substr(value, 1, 5000)", "zeroblob(40000)", "X'00'", "NULL", "'text'", "12", "zeroblob(20000000)"],
)
def test_a_damaged_entry_is_dropped_with_one_warning_and_made_anew(
    folder: Path, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    sql(folder, f"UPDATE Cache SET value = {value} WHERE key = ?", key_of(1))
    assert_replaced(folder, caplog)


def test_an_entry_under_another_key_is_not_taken_for_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    sql(folder, "UPDATE Cache SET value = (SELECT value FROM Cache WHERE key = ?) WHERE key = ?", key_of(2), key_of(1))
    assert_replaced(folder, caplog)


def test_a_planted_pickle_in_a_row_is_not_executed(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "executed"
    sql(
        folder,
        "UPDATE Cache SET mode = 4, value = ? WHERE key = ?",
        pickle.dumps(Bomb(marker)),
        key_of(1),
    )
    assert_replaced(folder, caplog)
    assert not marker.exists()


def test_a_planted_pickle_in_a_value_file_is_neither_executed_nor_followed(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker, planted = tmp_path / "executed", folder / "ab" / "planted.val"
    planted.parent.mkdir()
    planted.write_bytes(pickle.dumps(Bomb(marker)))
    sql(
        folder,
        "UPDATE Cache SET mode = 4, value = NULL, filename = 'ab/planted.val', size = 100 WHERE key = ?",
        key_of(1),
    )
    assert_replaced(folder, caplog)
    assert not marker.exists()


def test_the_same_planted_pickle_is_executed_by_diskcache_as_it_comes(tmp_path: Path) -> None:
    """Shows that the two tests above can fail."""
    marker = tmp_path / "executed"
    with diskcache.Cache(tmp_path / "plain") as plain:
        plain.set("key", b"value")
    sql(tmp_path / "plain", "UPDATE Cache SET mode = 4, value = ?", pickle.dumps(Bomb(marker)))
    with diskcache.Cache(tmp_path / "plain") as plain:
        plain.get("key")
    assert marker.exists()


@pytest.mark.parametrize("action", ["replace", "clear"])
def test_a_file_that_a_planted_row_names_is_not_removed(folder: Path, tmp_path: Path, action: str) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("keep me")
    for name in (str(precious), "../precious.txt"):
        sql(folder, "UPDATE Cache SET mode = 2, value = NULL, filename = ? WHERE key = ?", name, key_of(1))
        with EncodingCache(folder, "f", size_limit=LIMIT) as cache:
            if action == "clear":
                cache.clear()
            assert not cache.get_or_encode(noise(1), CountingEncoder()).hit
        assert precious.read_text() == "keep me"


PLANTED = {
    "an argument of the disk": "INSERT INTO Settings VALUES ('disk_compress_level', 9)",
    "an attribute of the disk": "INSERT INTO Settings VALUES ('disk__directory', '/')",
    "an attribute of the cache": "INSERT INTO Settings VALUES ('_directory', '/')",
    "a pragma": "INSERT INTO Settings VALUES ('sqlite_writable_schema', 1)",
    "a key that is bytes": "INSERT INTO Settings VALUES (X'6869', 1)",
    "another value": "UPDATE Settings SET value = 4294967296 WHERE key = 'sqlite_mmap_size'",
    "a missing row": "DELETE FROM Settings WHERE key = 'count'",
    "a trigger": "CREATE TRIGGER bad AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",
    "a table": "CREATE TABLE other (x)",
    "a missing table": "DROP TABLE Settings",
    "an endless view": "CREATE VIEW v AS WITH RECURSIVE n(x) AS (VALUES (1) UNION ALL SELECT 1 FROM n) SELECT * FROM n",
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_database_with_planted_settings_or_tables_is_replaced(
    folder: Path, caplog: pytest.LogCaptureFixture, planted: str
) -> None:
    sql(folder, PLANTED[planted])
    encode = CountingEncoder()
    with EncodingCache(folder, "f", size_limit=LIMIT) as cache:
        assert not cache.get_or_encode(noise(1), encode).hit
        assert cache.get_or_encode(noise(1), encode).hit
        assert cache.stats().problem is None
    assert not (folder / "cache.db.rejected").exists()
    assert len(warnings_of(caplog)) == 1
    assert "was removed, and a new one is begun: its " in warnings_of(caplog)[0]


@pytest.mark.parametrize("planted", [name for name in PLANTED if not name.startswith("a missing table")])
def test_settings_planted_while_the_cache_is_open_do_no_harm(folder: Path, planted: str) -> None:
    encode = CountingEncoder()
    with EncodingCache(folder, "f", size_limit=LIMIT) as cache:
        sql(folder, PLANTED[planted])
        assert cache.get_or_encode(noise(1), encode).hit
        assert_same(cache.get_or_encode(noise(3), encode).encoding, encoding_of(noise(3)))
        cache.stats()
        assert cache._keeper is not None
        store = cache._keeper._store
        assert store is not None
        assert store.directory == str(folder)
        assert store.disk._directory == str(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["cache"]


def test_a_cache_of_another_program_is_set_aside_and_not_destroyed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    marker = tmp_path / "executed"
    with diskcache.Cache(tmp_path / "cache") as theirs:
        theirs[key_of(1)] = Bomb(marker)
    with EncodingCache(tmp_path / "cache", "f", size_limit=LIMIT) as cache:
        assert not cache.get_or_encode(noise(1), CountingEncoder()).hit
        assert cache.get_or_encode(noise(1), CountingEncoder()).hit
    assert not marker.exists()
    with closing(sqlite3.connect(tmp_path / "cache" / "cache.db.rejected")) as con:
        assert con.execute("SELECT COUNT(*) FROM Cache").fetchone() == (1,)
    assert len(warnings_of(caplog)) == 1
    assert "was set aside as cache.db.rejected, and a new one is begun: its " in warnings_of(caplog)[0]


def test_what_was_set_aside_counts_and_goes_when_the_cache_is_cleared(tmp_path: Path) -> None:
    with diskcache.Cache(tmp_path, disk_min_file_size=2**20) as theirs:
        theirs["theirs"] = os.urandom(500_000)
    rejected = tmp_path / "cache.db.rejected"
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        cache.get_or_encode(noise(1), CountingEncoder())
        size = rejected.stat().st_size
        assert cache.stats().bytes > size
        assert cache.clear() == 1
        assert not rejected.exists()
        assert cache.stats().bytes < size


def test_a_folder_that_was_set_aside_is_left_where_it_is_when_the_cache_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "cache.db").mkdir()
    (tmp_path / "cache.db" / "thesis.txt").write_text("years of work")
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        cache.get_or_encode(noise(1), CountingEncoder())
        assert cache.clear() == 1
        assert cache.stats().problem is None
    assert (tmp_path / "cache.db.rejected" / "thesis.txt").exists()


def test_the_disk_refuses_everything_but_text_keys_and_bytes(tmp_path: Path) -> None:
    disk = BytesDisk(str(tmp_path))
    for key in (b"key", 1, ("a", "b"), None):
        with pytest.raises(TypeError):
            disk.put(key)
    for value in ("text", 1, None, ["list"], bytearray(b"x")):
        with pytest.raises(TypeError):
            disk.store(value, False)
    with pytest.raises(ForeignData):
        disk.get(pickle.dumps("key"), False)
    for mode, filename, raw in [(4, None, b"x"), (2, "a.val", None), (1, "a.val", b"x"), (1, None, "text")]:
        with pytest.raises(ForeignData):
            disk.fetch(mode, filename, raw, False)


def test_the_tables_that_diskcache_makes_are_the_ones_that_are_accepted(tmp_path: Path) -> None:
    """Fails where a new version of diskcache makes other tables: every cache would be set aside at each start."""
    store = Store(tmp_path, LIMIT)
    with closing(sqlite3.connect(tmp_path / "cache.db")) as con:
        assert schema_digest(con) == SCHEMA_DIGEST
        assert con.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert con.execute("PRAGMA auto_vacuum").fetchone() == (1,)
    store.close()
