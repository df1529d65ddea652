"""EncodingCache: the encoding of a reference, from the disk where these samples were encoded before."""

from __future__ import annotations

import hashlib
import logging
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from stepaudio.cache.container import FORMAT_VERSION, DamagedEntry, Entry, pack, unpack
from stepaudio.cache.folder import FolderKeeper
from stepaudio.cache.tally import Counts, Tally
from stepaudio.types import EncodedReference, ReferenceEncoding, Waveform

log = logging.getLogger(__name__)

Encode = Callable[[Waveform], EncodedReference]
_FLUSH_SECONDS = 10.0


@dataclass(frozen=True, eq=False)
class CacheOutcome:
    """An encoding and how it was come by. The arrays are the caller's own: writing into them harms nobody.

    hit: no encoder ran for this call; ``waited``: another call's or process's encoding was waited for.
    lookup_seconds: from the hash to the checked entry, or to the certainty that there is none; waiting included,
    so that hash and lookup are the whole time of a hit.
    encode_seconds: what encoding took, now (a miss) or when the entry was made (a hit).
    merge_seconds, write_seconds: packing the container and storing it; 0 on a hit.
    encoded: what the encoder returned, None on a hit.
    """

    encoding: ReferenceEncoding
    hit: bool
    waited: bool
    hash_seconds: float
    lookup_seconds: float
    encode_seconds: float
    merge_seconds: float = 0.0
    write_seconds: float = 0.0
    encoded: EncodedReference | None = None


@dataclass(frozen=True)
class CacheStats:
    """The cache in numbers, for page, API and metrics; the counters survive restarts.

    seconds_saved: recorded encode seconds less hit seconds, summed over the hits.
    problem: one sentence for a banner while entries cannot be stored, else None.
    """

    hits: int
    misses: int
    entries: int
    bytes: int
    seconds_saved: float
    enabled: bool
    writable: bool
    problem: str | None
    folder: Path


class _Flight:
    """One encoding on its way in this process; ``packed`` is there once it has landed well."""

    def __init__(self) -> None:
        self.landed = threading.Event()
        self.packed: bytes | None = None


@dataclass(frozen=True)
class _Clock:
    """When a call began and when its key was known (time.perf_counter seconds)."""

    start: float
    hashed: float

    @property
    def hash_seconds(self) -> float:
        return self.hashed - self.start


class EncodingCache:
    """Keeps reference encodings on the disk, for all threads and processes that use this folder.

    fingerprint: whatever decides what the encoder makes of given samples (its weights, its constants).
    size_limit: bytes that the folder may take; the least recently used entries go first. While an entry is
    written, SQLite's write-ahead log takes up to about a megabyte more. Not bounded is what another program put in
    the database's place: that is set aside in the folder, until ``clear``.
    wait_limit: seconds to wait for somebody else's encoding of the same samples before encoding them anyway.
    retry_seconds: how long after a failure the folder is tried again; doubles up to five minutes.

    Two simultaneous misses on one key encode once: threads wait for each other in memory, processes by a lock
    that the kernel frees when its holder dies. Nothing that is wrong with the folder is raised: see ``stats``.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        *,
        size_limit: int,
        enabled: bool = True,
        wait_limit: float = 60.0,
        retry_seconds: float = 15.0,
    ) -> None:
        self.folder = folder = folder.absolute()
        self._fingerprint = fingerprint
        self._wait_limit = wait_limit
        self._flights: dict[str, _Flight] = {}
        self._mutex = threading.Lock()
        self._tally = Tally(folder / "counters.txt") if enabled else None
        self._keeper = FolderKeeper(folder, size_limit, retry_seconds) if enabled else None
        self._flushed = time.monotonic()

    def key(self, waveform: Waveform) -> str:
        """Return the SHA-256 (hex) over format version, fingerprint, sample rate and samples; nothing else."""
        fingerprint = self._fingerprint.encode()
        digest = hashlib.sha256(struct.pack("<IIQ", FORMAT_VERSION, len(fingerprint), waveform.sample_rate))
        digest.update(fingerprint)
        digest.update(np.ascontiguousarray(waveform.samples, dtype="<f4").data)
        return digest.hexdigest()

    def get_or_encode(self, waveform: Waveform, encode: Encode) -> CacheOutcome:
        """Return the encoding of these samples, stored or fresh. Raises only what ``encode`` raises."""
        keeper = self._keeper
        if keeper is None:
            encoded = encode(waveform)
            return CacheOutcome(encoded.encoding, False, False, 0.0, 0.0, encoded.seconds, encoded=encoded)
        start = time.perf_counter()
        key = self.key(waveform)
        clock = _Clock(start, time.perf_counter())
        found = self._lookup(keeper, key)
        if found is not None:
            return self._hit(keeper, found, clock, waited=False)
        return self._miss(keeper, key, waveform, encode, clock)

    def stats(self) -> CacheStats:
        """Return the numbers as of now."""
        keeper, tally = self._keeper, self._tally
        if keeper is None or tally is None:
            return CacheStats(0, 0, 0, 0, 0.0, False, False, None, self.folder)
        keeper.check()
        counts = tally.total()
        entries, size = keeper.usage()
        return CacheStats(
            hits=counts.hits,
            misses=counts.misses,
            entries=entries,
            bytes=size,
            seconds_saved=counts.seconds_saved,
            enabled=True,
            writable=keeper.problem is None,
            problem=keeper.problem,
            folder=self.folder,
        )

    def clear(self) -> int:
        """Remove all entries and return how many there were; the counters stay."""
        return self._keeper.clear() if self._keeper is not None else 0

    def close(self) -> None:
        """Write the counters down and let go of the folder; afterwards everything is encoded anew."""
        if self._keeper is not None and self._tally is not None:
            self._keeper.flush(self._tally)
            self._keeper.close()
        self._keeper = self._tally = None

    def __enter__(self) -> EncodingCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lookup(self, keeper: FolderKeeper, key: str) -> tuple[bytes, Entry] | None:
        packed = keeper.fetch(key)
        if packed is None:
            return None
        try:
            return packed, unpack(packed, key)
        except DamagedEntry as error:
            keeper.reject(key, str(error))
            return None

    def _hit(self, keeper: FolderKeeper, found: tuple[bytes, Entry], clock: _Clock, *, waited: bool) -> CacheOutcome:
        entry = found[1]
        lookup = time.perf_counter() - clock.hashed
        keeper.note_use(entry.key)
        self._count(keeper, Counts(hits=1, seconds_saved=entry.encode_seconds - clock.hash_seconds - lookup))
        return CacheOutcome(entry.encoding, True, waited, clock.hash_seconds, lookup, entry.encode_seconds)

    def _miss(self, keeper: FolderKeeper, key: str, waveform: Waveform, encode: Encode, clock: _Clock) -> CacheOutcome:
        """Wait for whoever encodes these samples already, in this process or another; else encode them here."""
        deadline = time.monotonic() + self._wait_limit
        waited = False
        while True:
            with self._mutex:
                flight = self._flights.get(key)
                if flight is None:
                    mine = self._flights[key] = _Flight()
                    break
            waited = True
            if not flight.landed.wait(deadline - time.monotonic()):
                return self._encode(keeper, key, waveform, encode, clock, _Flight(), waited=True)
            if flight.packed is not None:
                return self._hit(keeper, (flight.packed, unpack(flight.packed, key)), clock, waited=True)
            # The other one failed: it is this call's turn to try.
        try:
            with keeper.lock(key, max(deadline - time.monotonic(), 0.0)) as lock:
                waited = waited or lock.waited
                # Again: another process may have stored it between the lookup and the lock.
                found = self._lookup(keeper, key)
                if found is not None:
                    mine.packed = found[0]
                    return self._hit(keeper, found, clock, waited=waited)
                return self._encode(keeper, key, waveform, encode, clock, mine, waited=waited)
        finally:
            with self._mutex:
                del self._flights[key]
            mine.landed.set()

    def _encode(
        self,
        keeper: FolderKeeper,
        key: str,
        waveform: Waveform,
        encode: Encode,
        clock: _Clock,
        flight: _Flight,
        *,
        waited: bool,
    ) -> CacheOutcome:
        lookup = time.perf_counter() - clock.hashed
        encoded = encode(waveform)
        encoded_at = time.perf_counter()
        try:
            flight.packed = pack(Entry(key, encoded.encoding, encoded.seconds, time.time()))
        except DamagedEntry as error:
            log.warning("A reference encoding cannot be cached: %s.", error)
        merged_at = time.perf_counter()
        if flight.packed is not None:
            keeper.store(key, flight.packed)
        written_at = time.perf_counter()
        self._count(keeper, Counts(misses=1))
        return CacheOutcome(
            encoded.encoding,
            hit=False,
            waited=waited,
            hash_seconds=clock.hash_seconds,
            lookup_seconds=lookup,
            encode_seconds=encoded.seconds,
            merge_seconds=merged_at - encoded_at,
            write_seconds=written_at - merged_at,
            encoded=encoded,
        )

    def _count(self, keeper: FolderKeeper, counts: Counts) -> None:
        if self._tally is None:
            return
        self._tally.add(counts)
        now = time.monotonic()
        if now - self._flushed >= _FLUSH_SECONDS:
            self._flushed = now
            keeper.flush(self._tally)
