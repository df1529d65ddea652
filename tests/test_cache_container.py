from __future__ import annotations

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest

from stepaudio.cache import container
from stepaudio.cache.container import DamagedEntry, Entry, pack, unpack
from tests.cache_kit import assert_same, encoding_of, noise

KEY = "ab" * 32


def entry(frames: int = 30) -> Entry:
    return Entry(KEY, encoding_of(noise(1), frames), 4.75, 1_700_000_000.5)


def resealed(data: bytes, body: bytes) -> bytes:
    """Return an entry with another body and the checksum that fits it, as an attacker or a bug could write it."""
    return container._OUTER.pack(data[:8], container.FORMAT_VERSION, hashlib.sha256(body).digest()) + body


def body_of(data: bytes) -> bytearray:
    return bytearray(data[container._OUTER.size :])


def test_what_is_packed_comes_back_exactly() -> None:
    before = entry()
    after = unpack(pack(before), KEY)
    assert_same(after.encoding, before.encoding)
    assert (after.key, after.encode_seconds, after.created) == (KEY, 4.75, 1_700_000_000.5)


def test_unpacked_arrays_are_the_callers_own() -> None:
    data = pack(entry())
    first = unpack(data, KEY).encoding
    first.mel[:] = 0
    first.linguistic[:] = 0
    assert_same(unpack(data, KEY).encoding, entry().encoding)


def test_a_truncated_or_lengthened_entry_is_refused() -> None:
    data = pack(entry())
    for length in [*range(140), len(data) // 2, len(data) - 1]:
        with pytest.raises(DamagedEntry):
            unpack(data[:length], KEY)
    with pytest.raises(DamagedEntry):
        unpack(data + b"\0", KEY)


def test_a_single_changed_bit_is_noticed_wherever_it_is() -> None:
    data = pack(entry(frames=6))
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        with pytest.raises(DamagedEntry):
            unpack(bytes(damaged), KEY)


def test_bytes_from_elsewhere_are_refused() -> None:
    rng = np.random.default_rng(0)
    for size in rng.integers(0, 2000, 200):
        with pytest.raises(DamagedEntry):
            unpack(rng.bytes(int(size)), KEY)


def test_another_format_version_is_refused_and_named() -> None:
    data = bytearray(pack(entry()))
    data[8:12] = (7).to_bytes(4, "little")
    with pytest.raises(DamagedEntry, match="version 7"):
        unpack(bytes(data), KEY)


def test_an_entry_of_another_key_is_refused() -> None:
    with pytest.raises(DamagedEntry, match="another key"):
        unpack(pack(entry()), "cd" * 32)


def test_sizes_that_lie_are_refused_despite_a_right_checksum() -> None:
    data = pack(entry())
    for position in range(48, 68):
        body = body_of(data)
        body[position] ^= 0x81
        with pytest.raises(DamagedEntry):
            unpack(resealed(data, bytes(body)), KEY)


def test_numbers_that_make_no_sense_are_refused_despite_a_right_checksum() -> None:
    data = pack(entry())
    mel_at = 68 + 8 * (10 + 15)
    for position, raw, reason in [
        (32, np.float64(math.nan).tobytes(), "taken nan"),
        (32, np.float64(-1).tobytes(), "taken -1"),
        (68, np.int64(-5).tobytes(), "negative"),
        (mel_at, np.float32(math.inf).tobytes(), "not finite"),
        (len(body_of(data)) - 4, np.float32(math.nan).tobytes(), "not finite"),
    ]:
        body = body_of(data)
        body[position : position + len(raw)] = raw
        with pytest.raises(DamagedEntry, match=reason):
            unpack(resealed(data, bytes(body)), KEY)


def test_an_encoding_that_is_larger_than_an_entry_may_be_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(pack(entry()))
    monkeypatch.setattr(container, "MAX_BYTES", size)
    pack(entry())
    monkeypatch.setattr(container, "MAX_BYTES", size - 1)
    with pytest.raises(DamagedEntry, match=f"it has {size} bytes, and at most {size - 1} are kept"):
        pack(entry())


def test_an_encoding_that_could_not_be_read_back_is_not_packed() -> None:
    good = entry().encoding
    not_finite = good.mel.copy()
    not_finite[3, 7] = np.nan
    for bad in [
        replace(good, mel=good.mel.astype(np.float64)),
        replace(good, mel=good.mel[0]),
        replace(good, linguistic=good.linguistic.astype(np.int32)),
        replace(good, semantic=good.semantic[:0]),
        replace(good, mel=not_finite),
        replace(good, linguistic=good.linguistic - 2000),
    ]:
        with pytest.raises(DamagedEntry):
            pack(replace(entry(), encoding=bad))
