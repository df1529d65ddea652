"""A cache failure of any kind costs speed, never a request; it is said once, and it heals."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from stepaudio.cache import EncodingCache
from tests.cache_kit import (
    LIMIT,
    CountingEncoder,
    assert_same,
    bytes_on_disk,
    encoding_of,
    noise,
    start_python,
    warnings_of,
)

NOBODY = 65534


def assert_serves(cache: EncodingCache, seed: int, *, hit: bool, within: float = 3) -> None:
    encode = CountingEncoder()
    start = time.monotonic()
    outcome = cache.get_or_encode(noise(seed), encode)
    assert time.monotonic() - start < within
    assert (outcome.hit, encode.calls) == (hit, 0 if hit else 1)
    assert_same(outcome.encoding, encoding_of(noise(seed)))


def fill(folder: Path, *seeds: int) -> None:
    with EncodingCache(folder, "f", size_limit=LIMIT) as cache:
        for seed in seeds:
            cache.get_or_encode(noise(seed), CountingEncoder())


def test_a_folder_that_cannot_be_made_costs_one_warning_and_heals(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "file").write_text("in the way")
    with EncodingCache(tmp_path / "file" / "cache", "f", size_limit=LIMIT, retry_seconds=0.2) as cache:
        for _ in range(5):
            assert_serves(cache, 1, hit=False)
        stats = cache.stats()
        assert (stats.writable, stats.entries, stats.misses) == (False, 0, 5)
        assert stats.problem is not None
        assert "Not a directory" in stats.problem
        assert str(tmp_path / "file" / "cache") in stats.problem
        assert warnings_of(caplog) == [stats.problem]

        (tmp_path / "file").unlink()
        deadline = time.monotonic() + 5
        while cache.stats().problem is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert cache.stats().writable
        assert_serves(cache, 1, hit=False)
        assert_serves(cache, 1, hit=True)
        assert len(warnings_of(caplog)) == 1
        assert caplog.records[-1].getMessage().endswith("can be written again.")


def test_retries_become_rarer_while_the_trouble_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    tries = []
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: (tries.append(now), mkdir(*args, **kwargs)))
    with EncodingCache(tmp_path / "file" / "cache", "f", size_limit=LIMIT, retry_seconds=10) as cache:
        while now < 3000:
            cache.stats()
            now += 1
    attempts = sorted(set(tries))
    gaps = [after - before for before, after in itertools.pairwise(attempts)]
    assert gaps == [10, 20, 40, 80, 160, 300, 300, 300, 300, 300]


def test_retries_are_frequent_again_once_the_cache_has_taken_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def seconds_of_trouble(cache: EncodingCache, ends_at: float) -> float:
        nonlocal now
        began = now
        (tmp_path / "cache").write_text("in the way")
        while cache.stats().problem is not None or now == began:
            now += 1
            if now == ends_at:
                (tmp_path / "cache").unlink()
        return now - began

    (tmp_path / "cache").write_text("in the way")
    with EncodingCache(tmp_path / "cache", "f", size_limit=LIMIT, retry_seconds=10) as cache:
        assert seconds_of_trouble(cache, ends_at=1100) == 10 + 20 + 40 + 80
        assert_serves(cache, 1, hit=False)
        assert_serves(cache, 1, hit=True)
        shutil.rmtree(tmp_path / "cache")
        assert seconds_of_trouble(cache, ends_at=now + 5) == 10


def test_a_folder_that_is_removed_while_running_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with EncodingCache(tmp_path / "cache", "f", size_limit=LIMIT) as cache:
        assert_serves(cache, 1, hit=False)
        shutil.rmtree(tmp_path / "cache")
        assert_serves(cache, 1, hit=False)
        assert_serves(cache, 1, hit=True)
        assert (tmp_path / "cache" / "cache.db").is_file()
        (tmp_path / "cache" / "cache.db").unlink()  # its log and index files stay
        assert_serves(cache, 1, hit=False)
        assert_serves(cache, 1, hit=True)
        assert cache.stats().problem is None
    assert ["removed or replaced" in text for text in warnings_of(caplog)] == [True, True]


@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty", "a directory", "damaged pages"])
def test_a_damaged_database_is_replaced_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    fill(tmp_path, 1, 2, 3)
    database = tmp_path / "cache.db"
    if damage == "garbage":
        database.write_bytes(os.urandom(50_000))
    elif damage == "truncated":
        os.truncate(database, 6000)
    elif damage == "empty":
        os.truncate(database, 0)
    elif damage == "a directory":
        database.unlink()
        database.mkdir()
    else:
        size = database.stat().st_size
        with database.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(size - 4096))
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        assert_serves(cache, 1, hit=False)
        assert_serves(cache, 1, hit=True)
        assert cache.stats().problem is None
        assert cache.stats().entries == 1
    assert len(warnings_of(caplog)) == 1
    what = "set aside as cache.db.rejected" if damage == "a directory" else "removed"
    assert f"was {what}, and a new one is begun: " in warnings_of(caplog)[0]
    assert (tmp_path / "cache.db.rejected").exists() == (damage == "a directory")


@pytest.mark.parametrize("damaged", [slice(0, 64), slice(64, 4096), slice(8192, None)])
def test_what_is_left_of_a_damaged_database_does_not_take_the_folder_beyond_its_limit(
    tmp_path: Path, damaged: slice
) -> None:
    limit, encode = 2 * 2**20, CountingEncoder(frames=1000)
    for start in (0, 100):
        with EncodingCache(tmp_path, "f", size_limit=limit) as cache:
            for seed in range(start, start + 8):
                cache.get_or_encode(noise(seed), encode)
            assert limit // 2 < cache.stats().bytes <= limit
            assert bytes_on_disk(tmp_path) <= limit
        database = tmp_path / "cache.db"
        content = bytearray(database.read_bytes())
        content[damaged] = b"x" * len(content[damaged])
        database.write_bytes(content)


def test_a_database_that_is_damaged_while_open_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, *range(8))
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        size = (tmp_path / "cache.db").stat().st_size
        with (tmp_path / "cache.db").open("r+b") as file:
            file.seek(2 * 4096)
            file.write(b"\x99" * (size - 2 * 4096))
        for seed in range(8):
            assert_serves(cache, seed, hit=False)
        for seed in range(8):
            assert_serves(cache, seed, hit=True)
        assert cache.stats().problem is None
    assert any("damaged" in text and "removed" in text for text in warnings_of(caplog))
    assert not (tmp_path / "cache.db.rejected").exists()


def test_while_another_process_holds_the_database_hits_work_and_misses_cost_little(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, 1)
    with (
        EncodingCache(tmp_path, "f", size_limit=LIMIT, retry_seconds=0.2) as cache,
        closing(sqlite3.connect(tmp_path / "cache.db", isolation_level=None)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        assert_serves(cache, 1, hit=True, within=0.8)
        assert_serves(cache, 2, hit=False)
        assert_serves(cache, 3, hit=False, within=0.8)
        stats = cache.stats()
        assert stats.problem is not None
        assert "locked" in stats.problem
        assert warnings_of(caplog) == [stats.problem]
        other.execute("ROLLBACK")
        time.sleep(0.3)
        assert_serves(cache, 4, hit=False)
        assert_serves(cache, 4, hit=True)
        assert cache.stats().problem is None


def test_a_database_that_nobody_else_may_even_read_costs_a_second_and_not_a_minute(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    with closing(sqlite3.connect(tmp_path / "cache.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        start = time.monotonic()
        with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
            assert time.monotonic() - start < 3
            assert_serves(cache, 1, hit=False)
            assert_serves(cache, 2, hit=False)
            assert not cache.stats().writable
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        assert_serves(cache, 1, hit=True)


@contextmanager
def without_privileges() -> Iterator[None]:
    """Give up root's right to write everywhere, where the tests run as root."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder below which every user may read."""
    folder = Path(tempfile.mkdtemp(prefix="stepaudio-test-"))
    folder.chmod(0o755)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_folder_still_gives_hits(open_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = open_folder / "cache"
    fill(folder, 1, 2)
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    with without_privileges():
        with pytest.raises(PermissionError):
            (folder / "probe").write_text("not possible")
        with EncodingCache(folder, "f", size_limit=LIMIT, retry_seconds=0.05) as cache:
            for _ in range(3):
                assert_serves(cache, 1, hit=True)
                assert_serves(cache, 2, hit=True)
                assert_serves(cache, 3, hit=False)
                time.sleep(0.06)
            stats = cache.stats()
    assert stats.problem is not None
    assert not stats.writable
    assert (stats.hits, stats.misses) == (6, 5)
    assert len(warnings_of(caplog)) <= 2
    assert stats.problem == warnings_of(caplog)[-1]
    with EncodingCache(folder, "f", size_limit=LIMIT) as cache:
        assert cache.stats().entries == 2


def test_a_damaged_entry_in_a_read_only_folder_is_told_once(
    open_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = open_folder / "cache"
    fill(folder, 1)
    with closing(sqlite3.connect(folder / "cache.db")) as con, con:
        con.execute("UPDATE Cache SET value = substr(value, 1, 500)")
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    with without_privileges(), EncodingCache(folder, "f", size_limit=LIMIT) as cache:
        for _ in range(4):
            assert_serves(cache, 1, hit=False)
    assert sum("dropped" in text for text in warnings_of(caplog)) == 1


def test_a_full_disk_costs_no_request_keeps_the_hits_and_heals() -> None:
    """The disk is full for a process that may not write a byte beyond a size: the kernel refuses the write."""
    process = start_python(
        """
        import resource, tempfile
        folder = Path(tempfile.mkdtemp())
        encode = CountingEncoder(frames=800)
        with EncodingCache(folder, "f", size_limit=LIMIT, retry_seconds=0.1) as cache:
            assert not cache.get_or_encode(noise(0), encode).hit
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
            for n in range(1, 4):
                assert not cache.get_or_encode(noise(n), encode).hit
            assert cache.get_or_encode(noise(0), encode).hit
            time.sleep(0.15)
            stats = cache.stats()
            assert stats.problem and not stats.writable, stats
            assert not cache.get_or_encode(noise(1), encode).hit
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            time.sleep(1)
            assert cache.stats().problem is None, cache.stats()
            assert not cache.get_or_encode(noise(1), encode).hit
            assert cache.get_or_encode(noise(1), encode).hit
            assert cache.get_or_encode(noise(0), encode).hit
        import shutil; shutil.rmtree(folder)
        print("served")
        """
    )
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "served\n"), err
    assert 1 <= err.count("WARNING") <= 3, err
    assert "Traceback" not in err


def test_damaged_counters_begin_at_zero_and_cost_no_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, 1)
    (tmp_path / "counters.txt").write_bytes(b"hits 99999999999999999999\n" + os.urandom(300))
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        assert_serves(cache, 1, hit=True)
        assert (cache.stats().hits, cache.stats().misses) == (1, 0)
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        assert cache.stats().hits == 1
    assert "damaged" in warnings_of(caplog)[0]
