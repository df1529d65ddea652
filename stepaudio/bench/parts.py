"""The parts of a measurement, and what the documents read of those that are there."""

from __future__ import annotations

from typing import Any

PARTS = (
    *("decoding", "stream", "hit", "batch", "clones", "switches", "concurrency", "variants", "engines", "voices"),
    "scaling",
)
"""What is measured, in this order, in case the time runs out: what is short and matters comes before what is long.
At full size the clones of the baseline take minutes."""

PLAIN = ("clones", "switches", "decoding", "variants", "batch", "stream", "concurrency", "hit")
"""Those that the documents read as they were measured."""


def takes_gain(decoding: dict[str, Any]) -> float:
    """Return how many times as fast takes of one text are decoded side by side as one after another."""
    return float(decoding["batch"] * decoding["take"]["seconds"] / decoding["takes"]["seconds"])


def assembled(parts: dict[str, Any], *, small: bool, on_gpu: bool) -> dict[str, Any]:
    """Return the parts as the documents read them, with what is computed from them; for want of a part, without.

    small: whether the encoder of "scaling" and "engines" had a small size.
    """
    from stepaudio.bench import predecessor, projection, scenarios  # these load torch

    results: dict[str, Any] = {name: parts[name] for name in PLAIN if name in parts}
    if {"scaling", "engines"} <= parts.keys():
        results["encoder"] = {"scaling": parts["scaling"], "engines": parts["engines"], "small": small}
    if {"clones", "batch", "voices"} <= parts.keys():
        rows = parts["clones"]["rows"]
        results["scenarios"] = {
            "one_voice": scenarios.one_voice(rows, parts["batch"]),
            "a_day": scenarios.a_day(rows),
            "voices": parts["voices"],
        }
    decoding = parts.get("decoding") if on_gpu else None
    return {**results, "report": predecessor.report(), "projection": projection.from_decoding(decoding)}


def unfinished(record: dict[str, Any]) -> dict[str, Any]:
    """Return what a record of parts (NAME.parts.json) has, as the documents read it; missing: the parts it lacks."""
    told, parts = record["conditions"], record["parts"]
    return {
        "conditions": {**told, "load_after": [], "earlier": record["earlier"]},
        "measured": [name for name in PARTS if name in parts],
        "missing": [name for name in PARTS if name not in parts],
        **assembled(parts, small=told["plan"]["small"], on_gpu=told["on_gpu"]),
    }
