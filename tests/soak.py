"""Fixed load for a long time: memory, descriptors, threads and times must stay what they are after warming up.

Run by scripts/soak. Ends with status 1 where something grows; the figures are put down either way.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stepaudio.audiofile import encode_wav
from stepaudio.bench.conditions import commit, cpu_model
from stepaudio.bench.folders import MINI, write_folder
from tests.conftest import voice
from tests.fault_kit import post, resident_megabytes
from tests.server import Server

RSS_SLOPE, P95_GROWTH = 1.0, 1.5
"""Megabytes a minute after warming up, and how much slower the last third may be than the first."""
NEW_VOICE_EVERY = 10


@dataclass(frozen=True)
class Sample:
    """What was found at one moment: minutes since the start, megabytes, open files, threads."""

    minutes: float
    rss: float
    descriptors: int
    threads: int


def look(process: int, start: float) -> Sample:
    """Return how the process stands."""
    files = len(list(Path(f"/proc/{process}/fd").iterdir()))
    threads = len(list(Path(f"/proc/{process}/task").iterdir()))
    return Sample((time.monotonic() - start) / 60, resident_megabytes(process), files, threads)


def p95(seconds: list[float]) -> float:
    """Return what 95 of 100 took at most."""
    return float(np.quantile(seconds, 0.95)) if seconds else float("nan")


def soak(minutes: float, warm_share: float, a_second: float, weights: str) -> dict[str, Any]:
    """Ask a server of its own again and again at a fixed rate, and return what was found."""
    folder = Path(tempfile.mkdtemp(prefix="stepaudio-soak-"))
    # Small, so that what is kept on purpose is full after warming up and cannot be taken for a leak.
    bounds = {"STEPAUDIO_CACHE_MEGABYTES": "8", "STEPAUDIO_PREFIX_MEGABYTES": "8"}
    settings = {**bounds, **({"STEPAUDIO_WEIGHTS": weights} if weights else {})}
    server = Server(folder, settings)
    samples: list[Sample] = []
    took: list[tuple[float, float]] = []
    statuses: dict[str, int] = {}
    try:
        server.start()
        assert server.process is not None
        start = due = time.monotonic()
        number = 0
        while time.monotonic() - start < minutes * 60:
            # Every so often a voice that was never heard before, so that the cache fills and lets go.
            seed = number if number % NEW_VOICE_EVERY == 0 else number % 3
            sound = encode_wav(voice(1.0 + number % 4, pitch=100 + seed % 100, seed=seed))
            begun = time.monotonic()
            answer = post(server.url, sound, max_seconds="1.2", text="word " * (1 + number % 20))
            took.append(((begun - start) / 60, time.monotonic() - begun))
            statuses[str(answer.status_code)] = statuses.get(str(answer.status_code), 0) + 1
            samples.append(look(server.process.pid, start))
            number += 1
            due += 1 / a_second
            time.sleep(max(due - time.monotonic(), 0))
        title = next((line for line in server.log.splitlines() if "Weights: " in line), "").partition("Weights: ")[2]
        quiet = "Traceback" not in server.log
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
    warm = [sample for sample in samples if sample.minutes >= minutes * warm_share]
    third = minutes * (1 - warm_share) / 3
    first = [seconds for at, seconds in took if minutes * warm_share <= at < minutes * warm_share + third]
    last = [seconds for at, seconds in took if at >= minutes - third]
    slope, _ = statistics.linear_regression([s.minutes for s in warm], [s.rss for s in warm])
    found = {
        "rss_slope_megabytes_a_minute": round(slope, 3),
        "rss_megabytes": {"warm": round(warm[0].rss, 1), "end": round(warm[-1].rss, 1)},
        "descriptors": {"least": min(s.descriptors for s in warm), "most": max(s.descriptors for s in warm)},
        "threads": {"least": min(s.threads for s in warm), "most": max(s.threads for s in warm)},
        "p95_seconds": {"first_third": round(p95(first), 3), "last_third": round(p95(last), 3)},
        "statuses": statuses,
        "no_traceback": quiet,
    }
    holds = {
        "rss_flat": slope < RSS_SLOPE,
        "descriptors_flat": statistics.mean(s.descriptors for s in warm[-20:])
        <= statistics.mean(s.descriptors for s in warm[:20]) + 3,
        "threads_flat": statistics.mean(s.threads for s in warm[-20:])
        <= statistics.mean(s.threads for s in warm[:20]) + 3,
        "p95_steady": p95(last) <= P95_GROWTH * p95(first),
        "all_answered": set(statuses) == {"200"},
        "no_traceback": quiet,
    }
    every = max(len(samples) // 60, 1)
    return {
        "commit": commit(),
        "command": " ".join(["scripts/soak", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": f"{cpu_model()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "weights": title.partition(" in ")[0],
        "minutes": minutes,
        "warm_after_minutes": minutes * warm_share,
        "requests": len(took),
        "requests_a_second_wanted": a_second,
        "found": found,
        "holds": holds,
        "samples": [[round(s.minutes, 2), round(s.rss, 1), s.descriptors, s.threads] for s in samples[::every]],
    }


def main() -> int:
    """Run the soak, put its figures down, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--warm-share", type=float, default=0.2, help="share of the time that is warming up")
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second, as far as they are done in time")
    parser.add_argument("--weights", default="", help="a weights folder (default: as the server chooses)")
    parser.add_argument("--mini-size", action="store_true", help="random weights of the size of mini")
    parser.add_argument("--to", type=Path, required=True)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stepaudio-soak-") as made:
        weights = str(write_folder(Path(made) / "weights", MINI)) if parsed.mini_size else parsed.weights
        result = soak(parsed.minutes, parsed.warm_share, parsed.rate, weights)
    parsed.to.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps({"found": result["found"], "holds": result["holds"]}, indent=1) + "\n")
    return 0 if all(result["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
