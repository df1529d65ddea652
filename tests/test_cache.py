from __future__ import annotations

import logging
import time
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from stepaudio.cache import EncodingCache
from stepaudio.cache.container import MAX_BYTES
from stepaudio.types import EncodedReference, Waveform
from tests.cache_kit import LIMIT, CountingEncoder, assert_same, bytes_on_disk, encoding_of, noise


def test_a_hit_does_not_call_the_encoder_and_returns_the_same_arrays(tmp_path: Path) -> None:
    encode = CountingEncoder()
    with EncodingCache(tmp_path / "cache", "f", size_limit=LIMIT) as cache:
        miss = cache.get_or_encode(noise(1), encode)
        hit = cache.get_or_encode(noise(1), encode)
    assert (miss.hit, hit.hit, hit.waited, encode.calls) == (False, True, False, 1)
    assert_same(hit.encoding, encoding_of(noise(1)))
    assert_same(hit.encoding, miss.encoding)


def test_the_outcome_says_what_each_part_took(tmp_path: Path) -> None:
    encode = CountingEncoder(seconds=4.75)
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        miss = cache.get_or_encode(noise(1), encode)
        start = time.perf_counter()
        hit = cache.get_or_encode(noise(1), encode)
        wall = time.perf_counter() - start
    assert miss.encoded is not None
    assert miss.encoded.seconds == miss.encode_seconds == 4.75
    assert min(miss.hash_seconds, miss.lookup_seconds, miss.merge_seconds, miss.write_seconds) > 0
    assert hit.encoded is None
    assert hit.encode_seconds == 4.75
    assert (hit.merge_seconds, hit.write_seconds) == (0, 0)
    assert 0 < hit.hash_seconds + hit.lookup_seconds <= wall


def test_the_key_is_of_the_samples_and_of_nothing_else(tmp_path: Path) -> None:
    """A renamed file cannot matter, since no name comes in; neither does how the samples lie in memory."""
    sound = noise(1)
    stereo = np.stack([sound.samples, sound.samples], axis=1)
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        key = cache.key(sound)
        assert cache.key(Waveform(sound.samples.copy(), 24000)) == key
        assert cache.key(Waveform(stereo[:, 1], 24000)) == key
        assert len(key) == 64


def test_a_changed_sample_another_rate_and_another_fingerprint_miss(tmp_path: Path) -> None:
    encode = CountingEncoder()
    sound = noise(1)
    changed = sound.samples.copy()
    changed[-1] = np.nextafter(changed[-1], 1, dtype=np.float32)
    with EncodingCache(tmp_path, "weights 1", size_limit=LIMIT) as cache:
        assert not cache.get_or_encode(sound, encode).hit
        assert not cache.get_or_encode(Waveform(changed, 24000), encode).hit
        assert not cache.get_or_encode(Waveform(sound.samples, 22050), encode).hit
        assert not cache.get_or_encode(Waveform(sound.samples[:-1], 24000), encode).hit
        assert cache.get_or_encode(sound, encode).hit
    with EncodingCache(tmp_path, "weights 2", size_limit=LIMIT) as cache:
        assert not cache.get_or_encode(sound, encode).hit
    with EncodingCache(tmp_path, "weights 1", size_limit=LIMIT) as cache:
        assert cache.get_or_encode(sound, encode).hit
    assert encode.calls == 5


def test_entries_survive_a_restart_also_without_close(tmp_path: Path) -> None:
    left_open = EncodingCache(tmp_path, "f", size_limit=LIMIT)
    left_open.get_or_encode(noise(1), CountingEncoder())
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        assert cache.get_or_encode(noise(1), CountingEncoder()).hit
    left_open.close()


def test_writing_into_returned_arrays_harms_nobody(tmp_path: Path) -> None:
    encode = CountingEncoder()
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        for _ in range(3):
            encoding = cache.get_or_encode(noise(1), encode).encoding
            assert_same(encoding, encoding_of(noise(1)))
            encoding.mel[:] = 7
            encoding.linguistic[:] = 7


def test_a_hit_of_ten_seconds_takes_at_most_five_milliseconds(tmp_path: Path) -> None:
    encode = CountingEncoder(frames=500)
    sound = noise(1, seconds=10)
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        cache.get_or_encode(sound, encode)
        hits = [cache.get_or_encode(sound, encode) for _ in range(60)]
    assert encode.calls == 1
    assert median(hit.hash_seconds + hit.lookup_seconds for hit in hits) <= 0.005


def test_the_stats_count_and_sum_what_was_really_saved_across_restarts(tmp_path: Path) -> None:
    saved = 0.0
    for restart in range(3):
        with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
            outcomes = [cache.get_or_encode(noise(n), CountingEncoder(seconds=2.0)) for n in (restart, 0, 0)]
            saved += sum(2.0 - out.hash_seconds - out.lookup_seconds for out in outcomes if out.hit)
            stats = cache.stats()
            assert (stats.misses, stats.hits, stats.entries) == (restart + 1, 2 * restart + 2, restart + 1)
            assert stats.seconds_saved == pytest.approx(saved, abs=0.01)
            assert (stats.enabled, stats.writable, stats.problem) == (True, True, None)
            assert stats.folder == tmp_path
            assert 0 < stats.bytes <= bytes_on_disk(tmp_path)


def test_what_a_hit_takes_itself_is_not_counted_as_saved(tmp_path: Path) -> None:
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        made, *hits = [cache.get_or_encode(noise(1, seconds=10), CountingEncoder(seconds=2.0)) for _ in range(3)]
        own = [(hit.hash_seconds, hit.lookup_seconds) for hit in hits]
        assert not made.hit
        assert min(map(min, own)) > 1e-5
        assert cache.stats().seconds_saved == pytest.approx(2 * 2.0 - sum(map(sum, own)), abs=2e-6)


def test_caches_on_one_folder_add_to_the_same_counters(tmp_path: Path) -> None:
    one = EncodingCache(tmp_path, "f", size_limit=LIMIT)
    other = EncodingCache(tmp_path, "f", size_limit=LIMIT)
    one.get_or_encode(noise(1), CountingEncoder())
    other.get_or_encode(noise(1), CountingEncoder())
    other.get_or_encode(noise(2), CountingEncoder())
    one.close()
    other.close()
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        assert (cache.stats().hits, cache.stats().misses) == (1, 2)


def test_clear_removes_entries_and_their_bytes_and_keeps_the_counters(tmp_path: Path) -> None:
    encode = CountingEncoder(frames=1000)
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        for n in range(12):
            cache.get_or_encode(noise(n), encode)
        assert cache.stats().bytes > 12 * 320_000
        assert cache.clear() == 12
        assert cache.stats().entries == 0
        assert cache.stats().misses == 12
        assert bytes_on_disk(tmp_path) < 150_000
        assert cache.clear() == 0
        assert not cache.get_or_encode(noise(1), encode).hit


def test_a_disabled_cache_encodes_each_time_and_touches_no_disk(tmp_path: Path) -> None:
    encode = CountingEncoder()
    with EncodingCache(tmp_path / "cache", "f", size_limit=LIMIT, enabled=False) as cache:
        outcomes = [cache.get_or_encode(noise(1), encode) for _ in range(2)]
        stats = cache.stats()
        assert cache.clear() == 0
    assert encode.calls == 2
    assert not any(outcome.hit for outcome in outcomes)
    assert (stats.enabled, stats.entries, stats.problem) == (False, 0, None)
    assert list(tmp_path.iterdir()) == []


def test_a_closed_cache_still_serves_requests(tmp_path: Path) -> None:
    encode = CountingEncoder()
    cache = EncodingCache(tmp_path, "f", size_limit=LIMIT)
    cache.close()
    cache.close()
    assert_same(cache.get_or_encode(noise(1), encode).encoding, encoding_of(noise(1)))
    assert encode.calls == 1


def test_an_exception_of_the_encoder_reaches_its_caller_and_locks_nobody_out(tmp_path: Path) -> None:
    error = KeyError("no such code")

    def broken(waveform: Waveform) -> EncodedReference:
        raise error

    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        for _ in range(2):
            with pytest.raises(KeyError) as caught:
                cache.get_or_encode(noise(1), broken)
            assert caught.value is error
        assert list((tmp_path / "locks").iterdir()) == []
        start = time.monotonic()
        assert not cache.get_or_encode(noise(1), CountingEncoder()).hit
        assert time.monotonic() - start < 1
        assert cache.get_or_encode(noise(1), broken).hit
        assert (cache.stats().hits, cache.stats().misses) == (1, 1)


def test_an_encoding_with_infinite_numbers_is_returned_but_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoding = encoding_of(noise(1))
    encoding.mel[0, 0] = np.inf
    with EncodingCache(tmp_path, "f", size_limit=LIMIT) as cache:
        outcome = cache.get_or_encode(noise(1), lambda waveform: EncodedReference(encoding, 1.0))
        assert outcome.encoding is encoding
        assert cache.stats().entries == 0
    assert "cannot be cached" in caplog.text


def test_an_encoding_too_large_to_be_read_back_is_returned_but_not_kept_and_drives_nobody_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encode, large = CountingEncoder(), CountingEncoder(frames=52_000)  # 17 minutes
    with EncodingCache(tmp_path, "f", size_limit=18 * 2**20) as cache:
        for n in range(60):
            cache.get_or_encode(noise(n), CountingEncoder(frames=100))
        outcome = cache.get_or_encode(noise(99), large)
        assert_same(outcome.encoding, encoding_of(noise(99), 52_000))
        assert outcome.encoding.mel.nbytes < MAX_BYTES
        assert cache.stats().entries == 60
        assert cache.get_or_encode(noise(0), encode).hit
        assert [record.getMessage() for record in caplog.records] == [
            "A reference encoding cannot be cached: it has 16987544 bytes, and at most 16777216 are kept."
        ]


def test_the_folder_never_takes_more_bytes_than_the_limit(tmp_path: Path) -> None:
    limit = 2 * 2**20
    with EncodingCache(tmp_path, "f", size_limit=limit) as cache:
        for n, frames in enumerate([100, 1500, 40, 700, 3000, 20, 1500, 100] * 5):
            cache.get_or_encode(noise(n), CountingEncoder(frames=frames))
            assert bytes_on_disk(tmp_path) <= limit
            assert cache.get_or_encode(noise(n), CountingEncoder()).hit
        # Full, but not emptied more than it must be: four of the largest leave at most one's room.
        assert cache.stats().bytes > limit - 1_100_000


def test_a_smaller_limit_takes_effect_at_the_next_start(tmp_path: Path) -> None:
    with EncodingCache(tmp_path, "f", size_limit=8 * 2**20) as cache:
        for n in range(20):
            cache.get_or_encode(noise(n), CountingEncoder(frames=1000))
        assert cache.stats().entries == 20
    with EncodingCache(tmp_path, "f", size_limit=2**20) as cache:
        assert cache.get_or_encode(noise(19), CountingEncoder()).hit
        assert not cache.get_or_encode(noise(0), CountingEncoder(frames=10)).hit
        assert bytes_on_disk(tmp_path) <= 2**20


def kept(cache: EncodingCache, seeds: range) -> list[int]:
    """Return which sounds are in the cache, without noting a use."""
    assert cache._keeper is not None
    return [n for n in seeds if cache._keeper.fetch(cache.key(noise(n))) is not None]


@pytest.mark.parametrize("restart", [False, True])
def test_the_least_recently_used_entry_goes_first(tmp_path: Path, restart: bool) -> None:
    encode = CountingEncoder(frames=1000)  # 334 kB: three fit
    limit = 1_300_000
    cache = EncodingCache(tmp_path, "f", size_limit=limit)
    for n in range(3):
        cache.get_or_encode(noise(n), encode)
    assert cache.get_or_encode(noise(0), encode).hit
    if restart:
        cache.close()
        cache = EncodingCache(tmp_path, "f", size_limit=limit)
    cache.get_or_encode(noise(3), encode)
    assert kept(cache, range(5)) == [0, 2, 3]
    cache.get_or_encode(noise(4), encode)
    assert kept(cache, range(5)) == [0, 3, 4]
    cache.close()


def test_a_clock_that_jumps_back_breaks_neither_entries_nor_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = CountingEncoder(frames=1000)
    with EncodingCache(tmp_path, "f", size_limit=1_300_000) as cache:
        for n, now in enumerate([2e9, 1e9, 10.0, -5.0]):
            monkeypatch.setattr(time, "time", lambda now=now: now)
            assert not cache.get_or_encode(noise(n), encode).hit
            assert cache.get_or_encode(noise(n), encode).hit
        assert kept(cache, range(4)) == [1, 2, 3]
        monkeypatch.setattr(time, "time", lambda: 4e9)
        assert kept(cache, range(4)) == [1, 2, 3]


def test_the_cache_logs_nothing_while_all_is_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), EncodingCache(tmp_path / "a" / "b", "f", size_limit=LIMIT) as cache:
        for n in (1, 2, 1):
            cache.get_or_encode(noise(n), CountingEncoder())
        cache.stats()
        cache.clear()
    assert caplog.records == []
