"""The report's three scenarios: many texts in one voice, a day of requests, voices that come back."""

from __future__ import annotations

from typing import Any

import numpy as np

from stepaudio.bench.clones import FIRST_WRITE, HIT_2, OURS_FIRST, OURS_HIT_2
from stepaudio.bench.predecessor import REQUESTS, day
from stepaudio.bench.stopwatch import Stopwatch
from stepaudio.bench.workbench import TEXT, Case, Workbench
from stepaudio.pipeline import LLM, Pipeline

TEXTS = 100
ORDER = "ABCAB"


def one_voice(rows: dict[str, Any], decoding: dict[str, Any], texts: int = TEXTS) -> dict[str, Any]:
    """Return scenario 1 from the medians of the clones: seconds for all texts, and the arithmetic in words.

    batched: the language model's part of a hit is exchanged for its share of a batch; flow and vocoder stay.
    """
    original, first, hit = (rows[name]["seconds"] for name in ("original", OURS_FIRST, OURS_HIT_2))
    write, cached = rows[FIRST_WRITE]["seconds"], rows[HIT_2]["seconds"]
    beside = decoding["together"]["seconds"] / decoding["batch"]
    rest = hit - rows[OURS_HIT_2]["stages"][LLM]
    more = texts - 1
    return {
        "texts": texts,
        "runs": len(rows["original"]["all_seconds"]),
        "baseline": {"seconds": texts * original, "how": f"{texts} x {original:.3f}"},
        "baseline_cached": {"seconds": write + more * cached, "how": f"{write:.3f} + {more} x {cached:.3f}"},
        "ours": {"seconds": first + more * hit, "how": f"{first:.3f} + {more} x {hit:.3f}"},
        "ours_batched": {
            "seconds": first + more * (rest + beside),
            "how": f"{first:.3f} + {more} x ({rest:.3f} + {beside:.3f})",
        },
    }


def a_day(rows: dict[str, Any]) -> dict[str, Any]:
    """Return scenario 2 for the baseline, the baseline with a cache, and the product."""
    original = rows["original"]["seconds"]
    return {
        "requests": REQUESTS,
        "baseline": day(original, original),
        "baseline_cached": day(rows[FIRST_WRITE]["seconds"], rows[HIT_2]["seconds"]),
        "ours": day(rows[OURS_FIRST]["seconds"], rows[OURS_HIT_2]["seconds"]),
    }


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
        seconds = [watch.result(f"{kind} {place}")["seconds"] for place in range(len(ORDER))]
        results[kind] = {"seconds": seconds, "hits": found, "total": float(np.sum(seconds))}
    return {"order": ORDER, "runs": runs, **results}
