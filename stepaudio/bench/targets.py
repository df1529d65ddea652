"""What a measurement is to show: bounds, and whether the figures of a JSON keep them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A bound and what was measured, by the clock and, where that can be said, in processor time.

    unit: "x" for a ratio, "s", "ms", "%" for a share, or nothing.
    """

    name: str
    at_most: bool
    target: float
    measured: float
    processor: float | None
    unit: str

    @property
    def met(self) -> bool:
        return self.measured <= self.target if self.at_most else self.measured >= self.target


def targets(results: dict[str, Any]) -> list[Target]:
    """Return all targets that a suite can judge."""
    rows, decoding, hit = results["clones"]["rows"], results["decoding"], results["hit"]
    engines = {row["name"]: row for row in results["encoder"]["engines"]["rows"]}
    first, second, original = rows["ours_first"], rows["ours_hit_2"], rows["original"]
    sound = results["clones"]["sound_seconds"]
    looked = 1e3 * (hit["hash"] + hit["lookup"])
    decoded, decoded_processor = (1e3 * hit["decode"][kind] for kind in ("seconds", "processor"))
    narrow = [engines[name] for name in ("torch-bf16", "onnx-int8") if name in engines]

    def ratio(name: str, at_most: bool, bound: float, over: Any, under: Any) -> Target:
        by_clock, by_processor = (over[kind] / max(under[kind], 1e-9) for kind in ("seconds", "processor"))
        return Target(name, at_most, bound, by_clock, by_processor, "x")

    best = min(narrow, key=lambda row: float(row["processor"]))
    return [
        ratio("windows", False, 4.0, engines["loop"], engines["torch"]),
        ratio("narrow", False, 7.0, engines["loop"], best),
        Target("hit", True, 5.0, looked, 1e3 * hit["hit"]["processor"], "ms"),
        Target("hit_file", True, 30.0, looked + decoded, 1e3 * hit["hit"]["processor"] + decoded_processor, "ms"),
        ratio("miss_hit", True, 1.3, first, second),
        ratio("first", False, 2.5, original, first),
        ratio("second", False, 2.5, original, second),
        Target("rtf", True, 0.5, second["seconds"] / sound, second["processor"] / sound, ""),
        Target("sound", True, 1.0, results["stream"]["first_sound"], None, "s"),
        ratio("batch", False, 4.0, decoding["one_by_one"], decoding["together"]),
        Target("allocations", True, 0.0, decoding["allocations_per_id"], None, ""),
        Target("waits", True, 0.0, decoding["synchronisations_per_id"], None, ""),
        Target(
            "spread", True, 0.06, results["clones"]["spread"]["seconds"], results["clones"]["spread"]["processor"], "%"
        ),
    ]
