"""Clients that leave at any moment: python -m tests.proofs.storm [--requests 200]; writes benchmarks/storm.json."""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tests.proofs.kit import alone, fresh_call, known_call, quiet, save_voices, serve, write

AT_ONCE = 12
ROUNDS = 3
MOST_SECONDS = 120.0


async def drop(url: str, number: int, turns: asyncio.Semaphore, dice: random.Random) -> str:
    """Ask for a long sound and leave at a moment that the dice choose; return when that was."""
    amid = number % 3 == 0
    patience = dice.uniform(0.0, 1.0) if amid else dice.choice((dice.uniform(0.0, 0.05), dice.uniform(0.0, 2.0)))
    call = fresh_call(number, 20.0) if number % 4 == 0 else known_call(number, 20.0)
    headers = {"Authorization": f"Bearer key-{number % AT_ONCE}"}
    state = "before the answer"
    async with turns:
        try:
            async with (
                asyncio.timeout(MOST_SECONDS if amid else patience) as limit,
                httpx.AsyncClient(base_url=url, timeout=MOST_SECONDS, headers=headers) as client,
                client.stream("POST", **call.send()) as answer,
            ):
                state = "amid the sound" if answer.status_code == 200 else str(answer.status_code)
                if amid:  # these wait for their sound, and leave while it comes
                    limit.reschedule(asyncio.get_running_loop().time() + patience)
                async for _ in answer.aiter_raw():
                    pass
                state = "at the end" if answer.status_code == 200 else state
        except TimeoutError:
            pass
        except httpx.TransportError as error:
            state = type(error).__name__
    return state


async def storm(url: str, requests: int, seed: int) -> Counter[str]:
    """Drop so many requests, a dozen at a time; return when they were dropped."""
    dice, turns = random.Random(seed), asyncio.Semaphore(AT_ONCE)
    return Counter(await asyncio.gather(*(drop(url, seed * requests + n, turns, dice) for n in range(requests))))


def measure(requests: int) -> dict[str, Any]:
    """Run several storms and return what they left behind; the first one is to warm up."""
    with tempfile.TemporaryDirectory(prefix="proof-storm-") as name:
        keys = ",".join(f"key-{n}" for n in range(AT_ONCE))
        server = serve(Path(name) / "server", STEPAUDIO_API_KEYS=keys)
        try:
            with httpx.Client(base_url=server.url, timeout=120, headers={"Authorization": "Bearer key-0"}) as client:
                save_voices(client)
                expected = alone(client, known_call(1))
                dropped: Counter[str] = Counter()
                looks, start = [], time.monotonic()
                for round_number in range(ROUNDS):
                    found = asyncio.run(storm(server.url, requests, round_number))
                    dropped += found if round_number else Counter()
                    looks.append(quiet(client, server))
                return {
                    "requests": requests,
                    "storms": ROUNDS - 1,
                    "seconds": round(time.monotonic() - start, 1),
                    "dropped": dict(dropped),
                    "after_each": looks,
                    "equal_afterwards": alone(client, known_call(1)) == expected,
                    "errors_in_the_log": server.log.count(" ERROR "),
                }
        finally:
            server.kill()


def check(result: dict[str, Any]) -> None:
    """Fail where anything was left behind."""
    first, *_, last = result["after_each"]
    assert result["equal_afterwards"]
    assert result["errors_in_the_log"] == 0, result
    assert result["dropped"].get("before the answer", 0) > 0
    assert result["dropped"].get("amid the sound", 0) > 0
    assert last["waiting"] == last["running"] == 0
    assert last["threads"] <= first["threads"] + 2, result
    assert last["files"] <= first["files"] + 4, result
    assert last["temporary_files"] <= first["temporary_files"], result
    assert last["megabytes"] <= 1.05 * first["megabytes"] + 20, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    chosen = parser.parse_args()
    result = measure(chosen.requests)
    write("storm", result, f"python -m tests.proofs.storm --requests {chosen.requests}")
    check(result)


if __name__ == "__main__":
    main()
