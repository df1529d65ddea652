"""Bytes over HTTP that survive a bad line: retries, resumption, checksums. Knows nothing of any hub.

Why not huggingface_hub and modelscope, which are installed anyway: they keep two caches of two layouts, report
progress in two ways, resume by two rules, and neither can be stopped from outside. One plain client serves both
hubs with one behaviour, and that behaviour can be tested against a small server.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, TypeVar
from urllib.parse import urlsplit

import httpx

from stepaudio.errors import Cancelled, InvalidInput, WeightsError

log = logging.getLogger(__name__)

T = TypeVar("T")
HASH_BLOCK = 1 << 20  # bytes read at a time when a file is hashed
# Bytes that an attempt must gain to count as success: a line that breaks every few seconds still gets there, while
# one that gives nothing is given up.
GAIN = 1 << 20
LONGEST_WAIT = 60.0
RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


class HubError(WeightsError):
    """A hub cannot be reached, or does not give what is asked of it; another hub may."""


class _Transient(Exception):
    """Something that may be gone at the next attempt; ``wait`` is what the server asked for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class Network:
    """How the hubs are reached, and how patiently.

    endpoints: addresses to use instead of a hub's own, by hub name (a mirror, say).   token: for Hugging Face.
    attempts: tries in a row that gain nothing before it is given up.   first_wait: seconds, doubled each time.
    read_seconds: silence after which a connection counts as dead.
    """

    endpoints: Mapping[str, str] = field(default_factory=dict)
    token: str = field(default="", repr=False)
    attempts: int = 6
    first_wait: float = 1.0
    connect_seconds: float = 10.0
    read_seconds: float = 30.0


@dataclass(frozen=True)
class Checksum:
    """What a file's content must hash to: plain SHA-256, or git's SHA-1 of a blob (files outside Git LFS)."""

    kind: Literal["sha256", "git-sha1"]
    value: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"


def matches(path: Path, size: int, checksums: Iterable[Checksum], check: Callable[[], None]) -> bool:
    """Return whether the file has that size and all those checksums; ``check`` may raise to stop the reading."""
    if path.stat().st_size != size:
        return False
    wanted = {c: hashlib.sha256() if c.kind == "sha256" else hashlib.sha1(usedforsecurity=False) for c in checksums}
    for checksum, digest in wanted.items():
        if checksum.kind == "git-sha1":
            digest.update(b"blob %d\0" % size)
    with path.open("rb") as source:
        while block := source.read(HASH_BLOCK):
            check()
            for digest in wanted.values():
                digest.update(block)
    return all(digest.hexdigest() == checksum.value for checksum, digest in wanted.items())


class Session:
    """An HTTP client with patience; use it in a ``with`` block. Proxies and certificates come from the environment."""

    def __init__(self, network: Network, should_stop: Callable[[], bool] | None = None) -> None:
        self.network = network
        self._should_stop = should_stop or (lambda: False)
        try:
            self._client = httpx.Client(
                timeout=httpx.Timeout(network.read_seconds, connect=network.connect_seconds),
                follow_redirects=True,  # httpx drops Authorization when a redirect leads to another host
                headers={"User-Agent": "stepaudio", "Accept-Encoding": "identity"},
            )
        except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:  # a certificate file, a proxy address
            raise InvalidInput(
                f"The proxy or certificate settings of the environment cannot be used: {error}."
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def check(self) -> None:
        """Raise Cancelled when the caller wants to stop."""
        if self._should_stop():
            raise Cancelled("The download was stopped; the next one goes on where it ended.")

    def get(self, url: str, what: str, *, headers: Mapping[str, str], attempts: int | None = None) -> httpx.Response:
        """Return the answer to a GET, its body read. Raises HubError."""

        def attempt() -> httpx.Response:
            response = self._client.get(url, headers=headers)
            _check_status(response, what)
            return response

        return self._patiently(url, what, attempt, attempts or self.network.attempts, lambda: 0)

    def fetch(
        self, url: str, part: Path, size: int, what: str, *, headers: Mapping[str, str], on_bytes: Callable[[int], None]
    ) -> None:
        """Bring the file ``part`` to ``size`` bytes, going on from those it has.

        on_bytes gets the number of bytes there are. Raises HubError, Cancelled, and OSError of the disk.
        """
        self._patiently(
            url,
            what,
            lambda: self._receive(url, part, size, what, headers, on_bytes),
            self.network.attempts,
            lambda: _size(part),
        )

    def _receive(
        self, url: str, part: Path, size: int, what: str, headers: Mapping[str, str], on_bytes: Callable[[int], None]
    ) -> None:
        have = _size(part)
        if have > size:
            have = 0
        elif have == size:
            part.touch()
            return on_bytes(have)
        ranged = {**headers, "Range": f"bytes={have}-"} if have else headers
        with self._client.stream("GET", url, headers=ranged) as response:
            if response.status_code == 416:
                part.unlink()
                raise _Transient(f"HTTP 416: no continuation at byte {have}")
            _check_status(response, what)
            if response.status_code == 206:
                if not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                    part.unlink(missing_ok=True)
                    raise _Transient("another piece came than was asked for")
            else:
                have = 0  # the server does not know ranges: once more from the start
            announced = response.headers.get("Content-Length")
            if announced is not None and "Content-Encoding" not in response.headers and int(announced) != size - have:
                raise HubError(
                    f"{_host(url)} sends {int(announced) + have} bytes for {what} where {size} are listed; "
                    "something on the way may have answered in its place."
                )
            with part.open("ab" if have else "wb") as sink:
                for block in response.iter_bytes():
                    self.check()
                    have += len(block)
                    if have > size:
                        break
                    sink.write(block)
                    on_bytes(have)
        if have > size:
            part.unlink()
            raise HubError(f"{_host(url)} sends more than the {size} bytes that are listed for {what}.")
        if have < size:
            raise _Transient(f"the connection ended after {have} of {size} bytes")
        return None

    def _patiently(self, url: str, what: str, action: Callable[[], T], attempts: int, position: Callable[[], int]) -> T:
        failures, best = 0, position()
        while True:
            self.check()
            try:
                return action()
            except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as error:
                raise HubError(f"{_host(url)} cannot be asked for {what}: {error}.") from error
            except (httpx.TransportError, _Transient) as error:
                gained = position() - best
                best = max(best, position())
                failures = 1 if gained >= GAIN else failures + 1
                reason = str(error) or type(error).__name__
                if failures >= attempts:
                    raise HubError(
                        f"Could not get {what} from {_host(url)} ({reason}); check the network and the proxy settings, "
                        "then run the download again: it goes on where it stopped."
                    ) from error
                asked = error.wait if isinstance(error, _Transient) else 0.0
                pause = min(max(asked, self.network.first_wait * 2 ** (failures - 1)), LONGEST_WAIT)
                log.warning("Could not get %s (%s); next attempt in %.0f s.", what, reason, pause)
                self._sleep(pause)
            except httpx.RequestError as error:  # endless redirects, undecodable bodies
                raise HubError(f"{_host(url)} gives no usable answer for {what}: {error}.") from error

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.1))


def _check_status(response: httpx.Response, what: str) -> None:
    code, host = response.status_code, response.url.host
    if response.is_success:
        return
    if code in RETRY_STATUS:
        after = response.headers.get("Retry-After", "")
        raise _Transient(f"HTTP {code}", float(after) if after.isdecimal() else 0.0)
    if code in (401, 403):
        raise HubError(
            f"{host} refuses {what} (HTTP {code}): it may be gated, private or not there; accept its licence on the "
            "hub and give an access token in the setting hub_token, or use another source."
        )
    if code in (404, 410):
        raise HubError(f"{host} does not have {what} (HTTP {code}).")
    raise HubError(f"{host} answers HTTP {code} for {what}.")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _host(url: str) -> str:
    return urlsplit(url).hostname or url
