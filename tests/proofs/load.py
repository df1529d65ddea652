"""Many clients at once: python -m tests.proofs.load [--clients 32] [--seconds 300]; writes benchmarks/load.json.

What one client gets back to back is measured before and after, with the same mixture of requests.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.proofs.kit import Call, alone, digest, fresh_call, known_call, quiet, save_voices, serve, vital, write
from tests.server import Server

KNOWN = 24
MISS_EVERY = 8
QUEUE = 24
CHECKED_MISSES = 40
ENOUGH = 10
"""Answers for each client from which on it is judged whether all got as many."""


@dataclass
class Tally:
    """What the clients saw."""

    latencies: list[float] = field(default_factory=list)
    first_bytes: list[float] = field(default_factory=list)
    answers: list[tuple[Call, str]] = field(default_factory=list)
    done: Counter[int] = field(default_factory=Counter)
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


class Calls:
    """The requests in their order: every eighth has a recording of its own, which no other has."""

    def __init__(self) -> None:
        self._next = 0

    def take(self) -> Call:
        self._next += 1
        return fresh_call(self._next) if self._next % MISS_EVERY == 0 else known_call(self._next % KNOWN)


async def one(client: httpx.AsyncClient, number: int, calls: Calls, end: float, tally: Tally) -> None:
    """Be one client until the time is over: ask, wait as told when refused, ask again."""
    while time.monotonic() < end:
        call = calls.take()
        while time.monotonic() < end:
            start = time.monotonic()
            async with client.stream("POST", **call.send()) as answer:
                pieces = []
                async for piece in answer.aiter_raw():
                    pieces.append(piece)
                    if len(pieces) == 1:
                        first = time.monotonic() - start
            if answer.status_code == 200:
                tally.latencies.append(time.monotonic() - start)
                tally.first_bytes.append(first)
                tally.answers.append((call, digest(b"".join(pieces))))
                tally.done[number] += 1
                break
            wait = answer.headers.get("retry-after", "")
            if answer.status_code != 429 or not wait.isdigit():
                tally.wrong.append(f"{answer.status_code} {b''.join(pieces)[:200]!r}")
                return
            tally.refused += 1
            await asyncio.sleep(int(wait))


async def many(url: str, clients: int, seconds: float, calls: Calls) -> Tally:
    """Be so many clients for so long, each with a key and a connection of its own."""
    tally, end = Tally(), time.monotonic() + seconds
    made = [
        httpx.AsyncClient(base_url=url, timeout=120, headers={"Authorization": f"Bearer key-{n}"})
        for n in range(clients)
    ]
    await asyncio.gather(*(one(client, n, calls, end, tally) for n, client in enumerate(made)))
    for client in made:
        await client.aclose()
    return tally


def watch(client: httpx.Client, server: Server, stop: threading.Event, into: list[dict[str, float]]) -> None:
    """Look at the server's vital numbers every second."""
    while not stop.wait(1.0):
        into.append(vital(client, server))


def measure(clients: int, seconds: float) -> dict[str, Any]:
    """Run the load and return what was found; the sound of every answer is compared with that of a lone client."""
    with tempfile.TemporaryDirectory(prefix="proof-load-") as name:
        keys = ",".join(f"key-{n}" for n in range(clients))
        server = serve(Path(name) / "server", STEPAUDIO_API_KEYS=keys, STEPAUDIO_QUEUE_LIMIT=str(QUEUE))
        headers = {"Authorization": "Bearer key-0"}
        try:
            with httpx.Client(base_url=server.url, timeout=120, headers=headers) as client:
                save_voices(client)
                known = {known_call(n).name: alone(client, known_call(n)) for n in range(KNOWN)}
                calls, base = Calls(), max(seconds / 6, 5.0)
                before = asyncio.run(many(server.url, 1, base, calls))
                start = quiet(client, server)
                seen: list[dict[str, float]] = []
                stop = threading.Event()
                watching = threading.Thread(target=watch, args=(client, server, stop, seen))
                watching.start()
                began = time.monotonic()
                tally = asyncio.run(many(server.url, clients, seconds, calls))
                took = time.monotonic() - began
                stop.set()
                watching.join()
                end = quiet(client, server)
                after = asyncio.run(many(server.url, 1, base, calls))
                misses = [(call, got) for call, got in tally.answers if call.audio is not None][:CHECKED_MISSES]
                unequal = [call.name for call, got in misses if alone(client, call) != got]
                unequal += [call.name for call, got in tally.answers if call.audio is None and known[call.name] != got]
                return summary(clients, seconds, took, before, tally, after, seen, start, end, unequal, len(misses))
        finally:
            server.kill()


def summary(
    clients: int,
    seconds: float,
    took: float,
    before: Tally,
    tally: Tally,
    after: Tally,
    seen: list[dict[str, float]],
    start: dict[str, float],
    end: dict[str, float],
    unequal: list[str],
    checked_misses: int,
) -> dict[str, Any]:
    """Return the numbers of a run."""
    lone = (
        len(before.latencies) / max(sum(before.latencies), 1e-9),
        len(after.latencies) / max(sum(after.latencies), 1e-9),
    )
    rate = len(tally.latencies) / took
    quarter = max(len(seen) // 4, 1)
    memory = [look["megabytes"] for look in seen]
    done = [tally.done[n] for n in range(clients)]
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": len(tally.latencies),
        "misses": sum(call.audio is not None for call, _ in tally.answers),
        "refused_429": tally.refused,
        "wrong": tally.wrong,
        "a_second": round(rate, 3),
        "lone_a_second": [round(value, 3) for value in lone],
        "share_of_lone": round(rate / statistics.mean(lone), 3),
        "latency_p50": round(statistics.median(tally.latencies), 3),
        "latency_p95": round(statistics.quantiles(tally.latencies, n=20)[-1], 3),
        "first_byte_p50": round(statistics.median(tally.first_bytes), 3),
        "first_byte_p95": round(statistics.quantiles(tally.first_bytes, n=20)[-1], 3),
        "answers_of_each_client": {"least": min(done), "median": statistics.median(done), "most": max(done)},
        "fairness_jain": round(sum(done) ** 2 / (clients * sum(n * n for n in done)), 4),
        "compared": len(tally.answers) - sum(call.audio is not None for call, _ in tally.answers) + checked_misses,
        "unequal": unequal,
        "megabytes": {
            "second_quarter": round(statistics.mean(memory[quarter : 2 * quarter] or memory), 1),
            "last_quarter": round(statistics.mean(memory[-quarter:]), 1),
        },
        "before": start,
        "after": end,
    }


def check(result: dict[str, Any]) -> None:
    """Fail where the run does not hold what is promised."""
    assert result["wrong"] == [], result["wrong"]
    assert result["unequal"] == [], result["unequal"]
    assert result["compared"] > 0
    assert result["share_of_lone"] >= 0.9, result
    if result["answers"] >= ENOUGH * result["clients"]:  # with two or three for each, chance alone makes them unequal
        assert result["fairness_jain"] >= 0.9, result
        assert result["answers_of_each_client"]["least"] >= result["answers_of_each_client"]["median"] / 2, result
    assert result["megabytes"]["last_quarter"] <= 1.05 * result["megabytes"]["second_quarter"] + 20, result
    assert result["after"]["threads"] <= result["before"]["threads"] + 2, result
    assert result["after"]["files"] <= result["before"]["files"] + 4, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300.0)
    chosen = parser.parse_args()
    result = measure(chosen.clients, chosen.seconds)
    command = f"python -m tests.proofs.load --clients {chosen.clients} --seconds {chosen.seconds:g}"
    write("load", result, command)
    check(result)


if __name__ == "__main__":
    main()
