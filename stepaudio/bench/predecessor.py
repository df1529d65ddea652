"""The figures of the report that this product answers, as it states them, and its arithmetic put right.

The report measured on an NVIDIA L40S. It does not say how long its sounds were, so its seconds can be set beside
ours but not divided by them: what compares is the ratio of each row to the first.
"""

from __future__ import annotations

from typing import Any

from stepaudio.bench.clones import FIRST_WRITE, HIT_2, HIT_3, ONNX, ORIGINAL

HARDWARE = "NVIDIA L40S"
TUNED_SECONDS = 17.0
"""After TF32 and ONNX Runtime together; the report has no figure for TF32 alone."""

CLONE_SECONDS = {ORIGINAL: 24.0, ONNX: TUNED_SECONDS, FIRST_WRITE: 12.046, HIT_2: 8.168, HIT_3: 8.672}
ENCODING_SECONDS, HIT_SECONDS = 4.812, 0.015
CLAIMED_SPREAD = 0.06
REQUESTS, HIT_SHARE = 10_000, 0.7
CLAIMED_MEAN = 10.8
ROUNDED_MISS, ROUNDED_HIT = 12.0, 8.0
"""What the report's scenarios reckon with."""


def day(miss: float, hit: float, requests: int = REQUESTS, share: float = HIT_SHARE) -> dict[str, float]:
    """Return mean seconds, hours a day and share of one machine's day for so many requests at this share of hits."""
    mean = (1 - share) * miss + share * hit
    hours = requests * mean / 3600
    return {"miss": miss, "hit": hit, "mean": mean, "hours": hours, "machine": hours / 24}


def report() -> dict[str, Any]:
    """Return the report's figures and what follows from them."""
    hits = CLONE_SECONDS[HIT_2], CLONE_SECONDS[HIT_3]
    return {
        "hardware": HARDWARE,
        "clone_seconds": CLONE_SECONDS,
        "encoding_seconds": ENCODING_SECONDS,
        "hit_seconds": HIT_SECONDS,
        "spread": (max(hits) - min(hits)) / min(hits),
        "claimed_spread": CLAIMED_SPREAD,
        "claimed_mean": CLAIMED_MEAN,
        "day": day(ROUNDED_MISS, ROUNDED_HIT),
        "day_of_original": day(CLONE_SECONDS[ORIGINAL], CLONE_SECONDS[ORIGINAL]),
    }
