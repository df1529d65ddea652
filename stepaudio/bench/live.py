"""How soon sound is there, and what happens to several requests at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from stepaudio.audiofile import Limits, encode_wav, load_reference
from stepaudio.bench.stopwatch import Stopwatch
from stepaudio.bench.workbench import TEXT, Case, Workbench
from stepaudio.service import CloneRequest, Service
from stepaudio.types import Synthesis, Waveform

CLIENTS = (1, 2, 4)
WAIT_SECONDS = 600.0


def measure_stream(bench: Workbench, case: Case, runs: int) -> dict[str, Any]:
    """Return first sound, total and RTF of the stream, beside those of the whole made in one piece; both are hits."""
    watch = Stopwatch(bench.runtime.synchronize)
    reference = case.reference()
    first: list[float] = []
    pieces, sound = 0, 0.0

    def ask(make: Callable[..., Any]) -> Any:
        return make(reference, TEXT, case.sampling, flow_steps=case.flow_steps, max_seconds=case.sound_seconds)

    def listen() -> tuple[Synthesis, int]:
        heard: list[Waveform] = []
        return ask(bench.ours.stream).into(heard.append), len(heard)

    for number in range(-1, runs):
        keep = number >= 0
        whole = watch.run("whole", lambda: ask(bench.ours.clone), keep=keep)
        made, pieces = watch.run("stream", listen, keep=keep)
        if made.first_sound is None or len(made.waveform.samples) != len(whole.waveform.samples):
            raise RuntimeError("The stream is not as long as the whole.")
        sound = made.waveform.seconds
        if keep:
            first.append(made.first_sound)
    return {
        "sound_seconds": sound,
        "pieces": pieces,
        "first_sound": statistics.median(first),
        "all_first_sound": first,
        **{name: {**(row := watch.result(name)), "rtf": row["seconds"] / sound} for name in ("stream", "whole")},
    }


def measure_concurrency(bench: Workbench, case: Case, runs: int) -> list[dict[str, Any]]:
    """Return for 1, 2 and 4 requests at once, through the product's own queue: how long each takes, and the rate.

    The next requests are sent when all of the last ones are done; all are hits. Seconds count from the sending.
    """
    service = Service(bench.settings, lambda: bench.engine)
    service.start()
    if service.wait_until_decided(WAIT_SECONDS) != "ready":
        raise RuntimeError(f"The service did not start: {service.problem}")
    reference = case.reference()
    request = CloneRequest(
        audio=encode_wav(reference.waveform),
        transcript=reference.text,
        text=TEXT,
        sampling=case.sampling,
        flow_steps=case.flow_steps,
        max_seconds=case.sound_seconds,
    )
    service.submit_clone(request).result(WAIT_SECONDS)
    rows = []
    for clients in CLIENTS:
        seconds: list[float] = []
        start, processor = time.perf_counter(), time.process_time()
        for _ in range(runs):
            jobs = [service.submit_clone(request) for _ in range(clients)]
            for job in jobs:
                job.result(WAIT_SECONDS)
                seconds.append((job.finished or job.submitted) - job.submitted)
        took, processor = time.perf_counter() - start, time.process_time() - processor
        rows.append(
            {
                "clients": clients,
                "requests": len(seconds),
                "median_seconds": statistics.median(seconds),
                "longest_seconds": max(seconds),
                "per_minute": 60 * len(seconds) / took,
                "processor_per_request": processor / len(seconds),
            }
        )
    service.queue.close(0.0)
    return rows


def measure_hit(bench: Workbench, seconds: float, runs: int) -> dict[str, Any]:
    """Return what a hit costs for a WAV file of this length: decoding the file, hashing and looking up."""
    watch = Stopwatch()
    data = encode_wav(Case(seconds, 1.0, 1).reference().waveform)
    limits = Limits.of(bench.settings)
    hashes: list[float] = []
    lookups: list[float] = []
    with bench.new_cache() as cache:
        waveform = load_reference(data, limits).waveform
        cache.get_or_encode(waveform, bench.encoder.encode)
        for number in range(-1, runs):
            waveform = watch.run("decode", lambda: load_reference(data, limits).waveform, keep=number >= 0)
            outcome = watch.run(
                "hit",
                lambda waveform=waveform: cache.get_or_encode(waveform, bench.encoder.encode),  # type: ignore[misc]
                keep=number >= 0,
            )
            if not outcome.hit:
                raise RuntimeError("The cache missed what it had just been given.")
            if number >= 0:
                hashes.append(outcome.hash_seconds)
                lookups.append(outcome.lookup_seconds)
    return {
        "seconds": seconds,
        "decode": watch.result("decode"),
        "hit": watch.result("hit"),
        "hash": statistics.median(hashes),
        "lookup": statistics.median(lookups),
    }
