"""Threads and processes that share a cache: one encoding for simultaneous misses, and killed processes."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from stepaudio.cache import EncodingCache
from stepaudio.cache.container import unpack
from stepaudio.types import EncodedReference, Waveform
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


def at_once(count: int, call: Callable[[int], object]) -> list[object]:
    """Return what the call gives in so many threads that start together."""
    start = threading.Barrier(count)

    def run(n: int) -> object:
        start.wait()
        return call(n)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


@pytest.mark.parametrize("usable", [True, False])
def test_threads_that_miss_at_once_encode_once(tmp_path: Path, usable: bool) -> None:
    """Also where nothing can be stored, since threads wait for each other in memory."""
    encode = CountingEncoder(pause=0.4)
    (tmp_path / "file").touch()
    folder = tmp_path / "cache" if usable else tmp_path / "file" / "cache"
    with EncodingCache(folder, "f", size_limit=LIMIT) as cache:
        outcomes = at_once(6, lambda n: cache.get_or_encode(noise(1), encode))
        stats = cache.stats()
    assert encode.calls == 1
    assert sorted((out.hit, out.waited) for out in outcomes) == [(False, False)] + 5 * [(True, True)]
    assert (stats.hits, stats.misses) == (5, 1)
    for out in outcomes:
        assert_same(out.encoding, encoding_of(noise(1)))
        if out.waited:
            assert out.lookup_seconds > 0.2  # the wait is told, not hidden
            assert out.encoded is None


def test_the_results_of_waiting_threads_are_their_own(tmp_path: Path) -> None:
    encode = CountingEncoder(pause=0.2)
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        first, second = at_once(2, lambda n: cache.get_or_encode(noise(1), encode))
    first.encoding.mel[:] = 0
    assert_same(second.encoding, encoding_of(noise(1)))


def test_different_sounds_are_encoded_side_by_side(tmp_path: Path) -> None:
    encode = CountingEncoder(pause=0.5)
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        start = time.monotonic()
        at_once(4, lambda n: cache.get_or_encode(noise(n), encode))
        assert time.monotonic() - start < 1.5
    assert encode.calls == 4


def test_two_caches_in_one_process_encode_once(tmp_path: Path) -> None:
    encode = CountingEncoder(pause=0.4)
    caches = [EncodingCache(tmp_path, "f", size_limit=LIMIT) for _ in range(2)]
    outcomes = at_once(2, lambda n: caches[n].get_or_encode(noise(1), encode))
    assert encode.calls == 1
    assert sorted((out.hit, out.waited) for out in outcomes) == [(False, False), (True, True)]
    for cache in caches:
        cache.close()


def test_a_waiter_whose_leader_fails_tries_itself(tmp_path: Path) -> None:
    leading = threading.Event()
    good = CountingEncoder()

    def fails(waveform: Waveform) -> EncodedReference:
        leading.set()
        time.sleep(0.3)
        raise RuntimeError("this one is broken")

    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache, ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get_or_encode, noise(1), fails)
        leading.wait()
        second = pool.submit(cache.get_or_encode, noise(1), good)
        with pytest.raises(RuntimeError, match="this one is broken"):
            first.result()
        assert (second.result().hit, second.result().waited, good.calls) == (False, True, 1)
        assert cache.get_or_encode(noise(1), fails).hit


def test_a_thread_does_not_wait_longer_than_the_limit(tmp_path: Path) -> None:
    slow, quick = CountingEncoder(pause=1.5), CountingEncoder()
    with EncodingCache(tmp_path, "f", size_limit=LIMIT, wait_limit=0.2) as cache, ThreadPoolExecutor(1) as pool:
        first = pool.submit(cache.get_or_encode, noise(1), slow)
        slow.begun.wait()
        start = time.monotonic()
        outcome = cache.get_or_encode(noise(1), quick)
        assert 0.2 <= time.monotonic() - start < 1
        assert (outcome.hit, outcome.waited, quick.calls) == (False, True, 1)
        assert not first.result().hit


def open_files(folder: Path) -> int:
    return sum(str(folder) in os.readlink(f"/proc/self/fd/{name}") for name in descriptors())


def descriptors() -> list[str]:
    """Return the open descriptors, less the one that listing them opened."""
    return [name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")]


def test_threads_that_have_ended_and_a_closed_cache_leave_no_file_open(tmp_path: Path) -> None:
    cache = EncodingCache(tmp_path, "f", size_limit=LIMIT)
    cache.get_or_encode(noise(1), CountingEncoder())
    alone = open_files(tmp_path)
    assert alone > 0
    for _ in range(10):
        at_once(4, lambda n: cache.get_or_encode(noise(n), CountingEncoder()))
    assert open_files(tmp_path) == alone
    at_once(4, lambda n: cache.close() if n == 3 else cache.get_or_encode(noise(n), CountingEncoder()))
    assert open_files(tmp_path) == 0


SHARE = """
    folder, log = Path(sys.argv[1]), Path(sys.argv[2])

    class Noted(CountingEncoder):
        def __call__(self, waveform):
            with log.open("a") as file:
                file.write("encoded\\n")
            return super().__call__(waveform)

    with EncodingCache(folder, "f", size_limit=LIMIT) as cache:
        print("ready", flush=True)
        sys.stdin.readline()
        outcome = cache.get_or_encode(noise(1), Noted(pause=0.7))
        assert_same(outcome.encoding, encoding_of(noise(1)))
        print(outcome.hit, outcome.waited)
"""


def test_processes_that_miss_at_once_encode_once(tmp_path: Path) -> None:
    processes = [start_python(SHARE, tmp_path / "cache", tmp_path / "log") for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate(timeout=60) for process in processes]
    assert sorted(out for out, _ in results) == ["False False\n"] + 3 * ["True True\n"]
    assert (tmp_path / "log").read_text() == "encoded\n"
    assert [err for _, err in results] == 4 * [""]  # nor did any take another's new database for a foreign one
    with EncodingCache(tmp_path / "cache", "f", size_limit=LIMIT) as cache:
        assert (cache.stats().hits, cache.stats().misses, cache.stats().entries) == (3, 1, 1)


HOLD = """
    class Endless(CountingEncoder):
        def __call__(self, waveform):
            print("encoding", flush=True)
            time.sleep(120)

    EncodingCache(Path(sys.argv[1]), "f", size_limit=LIMIT).get_or_encode(noise(1), Endless())
"""


def test_a_killed_holder_of_the_lock_blocks_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    holder = start_python(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "encoding\n"
    encode = CountingEncoder()
    with EncodingCache(tmp_path, "f", size_limit=LIMIT, wait_limit=60) as cache, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cache.get_or_encode, noise(1), encode)
        time.sleep(0.3)
        assert (waiting.done(), encode.calls) == (False, 0)
        holder.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        outcome = waiting.result(timeout=30)
        assert time.monotonic() - killed < 1
        assert (outcome.hit, outcome.waited, encode.calls) == (False, True, 1)
        assert cache.get_or_encode(noise(1), encode).hit
    holder.communicate(timeout=10)
    assert list((tmp_path / "locks").iterdir()) == []
    assert warnings_of(caplog) == []


def test_the_lock_file_of_a_killed_process_is_removed_at_the_next_start(tmp_path: Path) -> None:
    holder = start_python(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "encoding\n"
    EncodingCache(tmp_path, "f", size_limit=LIMIT).close()
    assert len(list((tmp_path / "locks").iterdir())) == 1  # in use: it stays
    holder.kill()
    holder.communicate(timeout=10)
    assert len(list((tmp_path / "locks").iterdir())) == 1
    EncodingCache(tmp_path, "f", size_limit=LIMIT).close()
    assert list((tmp_path / "locks").iterdir()) == []


def test_a_hung_holder_of_the_lock_is_waited_for_no_longer_than_the_limit(tmp_path: Path) -> None:
    holder = start_python(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "encoding\n"
    holder.send_signal(signal.SIGSTOP)
    encode = CountingEncoder()
    with EncodingCache(tmp_path, "f", size_limit=LIMIT, wait_limit=0.4) as cache:
        start = time.monotonic()
        outcome = cache.get_or_encode(noise(1), encode)
        assert 0.4 <= time.monotonic() - start < 1.5
        assert (outcome.hit, outcome.waited, encode.calls) == (False, True, 1)
        assert cache.get_or_encode(noise(1), encode).hit
    holder.kill()
    holder.communicate(timeout=10)


WRITE = """
    cache = EncodingCache(Path(sys.argv[1]), "f", size_limit=3_000_000)
    print("ready", flush=True)
    n = int(sys.argv[2])
    while True:
        n += 1
        cache.get_or_encode(noise(n), CountingEncoder(frames=n % 1000 + 10))
"""


def test_a_process_killed_while_it_writes_leaves_only_whole_entries(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for turn in range(6):
        writer = start_python(WRITE, tmp_path, 10_000 * turn)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        time.sleep(0.25 + 0.037 * turn)
        writer.kill()
        _, err = writer.communicate(timeout=10)
        assert err == ""
        with EncodingCache(tmp_path, "f", size_limit=3_000_000) as cache:
            with closing(sqlite3.connect(tmp_path / "cache.db")) as con:
                assert con.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                rows = con.execute("SELECT key, value FROM Cache").fetchall()
            assert len(rows) > 3 * turn
            for key, value in rows:
                assert unpack(value, key).encode_seconds == 1.5
            assert not cache.get_or_encode(noise(-turn - 1 + 2**20), CountingEncoder()).hit
            assert bytes_on_disk(tmp_path) <= 3_000_000
    assert warnings_of(caplog) == []


CROWD = """
    with EncodingCache(Path(sys.argv[1]), "f", size_limit=2_000_000) as cache:
        for n in range(40):
            sound = noise((n * int(sys.argv[2])) % 25)
            assert_same(cache.get_or_encode(sound, CountingEncoder(frames=500)).encoding, encoding_of(sound, 500))
        assert cache.stats().problem is None
"""


def test_processes_that_crowd_one_small_cache_disturb_nobody(tmp_path: Path) -> None:
    crowd = [start_python(CROWD, tmp_path, step) for step in (1, 3, 7, 11)]
    for process in crowd:
        out, err = process.communicate(timeout=100)
        assert (process.returncode, out, err) == (0, "", "")
    assert bytes_on_disk(tmp_path) <= 2_000_000
    with EncodingCache(tmp_path, "f", size_limit=2_000_000) as cache:
        assert cache.stats().hits + cache.stats().misses == 160
