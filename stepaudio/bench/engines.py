"""The engines of the linguistic encoder side by side: which codes differ, and how long each takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stepaudio.encoder.paraformer import LinguisticEncoder
from stepaudio.types import FloatArray

CERTAIN = 1e-4
"""Where the nearest centroid leads by less than this, rounding alone may choose another."""


@dataclass(frozen=True)
class EngineResult:
    """One engine against the first one on the same clips.

    equal: share of equal codes.   equal_where_certain: the same where the first engine's margin exceeds CERTAIN.
    difference: largest of the output frames.   seconds: median over the runs, each through all clips.
    """

    name: str
    codes: int
    equal: float
    equal_where_certain: float
    difference: float
    seconds: float
    all_seconds: tuple[float, ...]


def compare(
    engines: Mapping[str, LinguisticEncoder],
    clips: Sequence[FloatArray],
    runs: int,
    synchronize: Callable[[], None] = lambda: None,
) -> list[EngineResult]:
    """Return how each engine does against the first on 16 kHz ``clips``; one run of each in turn, ``runs`` times.

    Raises ValueError where the clips are too short to hold a code.
    """
    names = list(engines)
    first = engines[names[0]]
    frames = {
        name: _joined([engine.frames(clip) for clip in clips]) for name, engine in engines.items()
    }  # warms up too
    wanted = first.nearest(frames[names[0]])
    if not len(wanted):
        raise ValueError("The clips hold no code.")
    certain = first.margins(frames[names[0]]) > CERTAIN
    took: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(runs):
        for name, engine in engines.items():
            start = time.perf_counter()
            for clip in clips:
                engine.encode(clip)
            synchronize()
            took[name].append(time.perf_counter() - start)
    results = []
    for name in names:
        equal = first.nearest(frames[name]) == wanted
        results.append(
            EngineResult(
                name,
                len(wanted),
                float(equal.mean()),
                float(equal[certain].mean()) if certain.any() else 1.0,
                float(np.abs(frames[name] - frames[names[0]]).max()),
                statistics.median(took[name]),
                tuple(took[name]),
            )
        )
    return results


def _joined(parts: Sequence[FloatArray]) -> FloatArray:
    out: FloatArray = np.concatenate(parts)
    return out
