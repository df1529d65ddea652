"""The report's three scenarios: many texts in one voice, a day of requests, voices that come back."""

from __future__ import annotations

from typing import Any

import numpy as np

from stepaudio.bench.clones import FIRST_WRITE, HIT_2, ORIGINAL, OURS_FIRST, OURS_HIT_2
from stepaudio.bench.predecessor import REQUESTS, day
from stepaudio.bench.stopwatch import Stopwatch
from stepaudio.bench.workbench import TEXT, Case, Workbench
from stepaudio.pipeline import Pipeline

TEXTS = 100
ORDER = "ABCAB"


def measure_batch(bench: Workbench, case: Case, runs: int, batch: int) -> dict[str, Any]:
    """Return what ``batch`` texts in one voice take as one batch, a hit, and what as many takes of one text do."""
    watch = Stopwatch(bench.runtime.synchronize)
    texts = [f"{TEXT} {number:02d}." for number in range(batch)]
    reference = case.reference(900)
    told: Any = {"flow_steps": case.flow_steps, "max_seconds": case.sound_seconds}
    bench.ours.encode(reference.waveform)
    for number in range(-1, runs):
        keep = number >= 0
        made = watch.run("texts", lambda: bench.ours.clone_many(reference, texts, case.sampling, **told), keep=keep)
        takes = watch.run("takes", lambda: bench.ours.takes(reference, TEXT, batch, case.sampling, **told), keep=keep)
        watch.run("one", lambda: bench.ours.clone(reference, TEXT, case.sampling, **told), keep=keep)
        if {one.waveform.seconds for one in (*made, *takes)} != {made[0].waveform.seconds}:
            raise RuntimeError("The sounds of a batch differ in length.")
    return {"batch": batch, "runs": runs, **{name: watch.result(name) for name in ("texts", "takes", "one")}}


def one_voice(rows: dict[str, Any], batch: dict[str, Any], texts: int = TEXTS) -> dict[str, Any]:
    """Return scenario 1 from the medians of the clones: seconds for all texts, and the arithmetic in words."""
    more = texts - 1

    def ways(kind: str) -> dict[str, tuple[float, str]]:
        first, hit = rows[OURS_FIRST][kind], rows[OURS_HIT_2][kind]
        write, cached, original = rows[FIRST_WRITE][kind], rows[HIT_2][kind], rows[ORIGINAL][kind]
        share = batch["texts"][kind] / batch["batch"]
        return {
            "baseline": (texts * original, f"{texts} x {original:.3f}"),
            "baseline_cached": (write + more * cached, f"{write:.3f} + {more} x {cached:.3f}"),
            "ours": (first + more * hit, f"{first:.3f} + {more} x {hit:.3f}"),
            "ours_batched": (
                first + more * share,
                f"{first:.3f} + {more} x {batch['texts'][kind]:.3f} / {batch['batch']}",
            ),
        }

    processor = ways("processor")
    told = {
        way: {"seconds": value, "how": how, "processor": processor[way][0]}
        for way, (value, how) in ways("seconds").items()
    }
    return {"texts": texts, "runs": len(rows[ORIGINAL]["all_seconds"]), **told}


def a_day(rows: dict[str, Any]) -> dict[str, Any]:
    """Return scenario 2 for the baseline, the baseline with a cache, and the product."""
    ways = {
        "baseline": (ORIGINAL, ORIGINAL),
        "baseline_cached": (FIRST_WRITE, HIT_2),
        "ours": (OURS_FIRST, OURS_HIT_2),
    }
    told = {
        way: {
            **day(rows[miss]["seconds"], rows[hit]["seconds"]),
            "processor_mean": day(rows[miss]["processor"], rows[hit]["processor"])["mean"],
        }
        for way, (miss, hit) in ways.items()
    }
    return {"requests": REQUESTS, **told}


def voices_that_come_back(bench: Workbench, case: Case, runs: int) -> dict[str, Any]:
    """Return scenario 3, measured: the voices A B C A B one after another, nothing known at the start."""
    watch = Stopwatch(bench.runtime.synchronize)
    voices = {name: 10 + number for number, name in enumerate(sorted(set(ORDER)))}
    encoder = bench.baseline_encoder(tuned_onnx=True)
    hits: dict[str, list[bool]] = {}

    def go(kind: str, pipeline: Pipeline, number: int) -> None:
        hits[kind] = []
        for place, name in enumerate(ORDER):
            reference = case.reference(500 + number, voices[name])

            def clone(reference: Any = reference) -> Any:
                return pipeline.clone(
                    reference, TEXT, case.sampling, flow_steps=case.flow_steps, max_seconds=case.sound_seconds
                )

            hits[kind].append(watch.run(f"{kind} {place}", clone).cache_hit)

    with bench.new_cache(enabled=False) as off:
        for number in range(runs):
            go("baseline", bench.baseline(encoder, off), number)
            with bench.new_cache() as cache:
                go("baseline_cached", bench.baseline(encoder, cache), number)
            bench.ours.cache.clear()
            go("ours", bench.ours, number)
    results = {}
    for kind, found in hits.items():
        taken = [watch.result(f"{kind} {place}") for place in range(len(ORDER))]
        seconds, processor = ([one[key] for one in taken] for key in ("seconds", "processor"))
        total = {"total": float(np.sum(seconds)), "total_processor": float(np.sum(processor))}
        results[kind] = {"seconds": seconds, "processor": processor, "hits": found, **total}
    return {"order": ORDER, "runs": runs, **results}
