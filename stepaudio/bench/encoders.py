"""The reference's encoder at the real model's size: from 1 to 30 s, and run by each engine; and what a hit costs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stepaudio.bench.encode import RATE, REAL_SIZE, _build, _sound, measure_windows
from stepaudio.bench.stopwatch import Stopwatch
from stepaudio.device import Runtime

SMALL_SIZE: dict[str, int] = {}


def measure_scaling(seconds: Sequence[float], runs: int, *, small: bool) -> list[dict[str, Any]]:
    """Return chunk loop and all windows at once for sounds of these lengths, on the CPU."""
    loop_encoder, frontend, ours = _build(**(SMALL_SIZE if small else REAL_SIZE))
    return [measure_windows(loop_encoder, frontend, ours, length, runs) for length in seconds]


def measure_engines(seconds: float, runs: int, runtime: Runtime, *, small: bool, exported: bool) -> dict[str, Any]:
    """Return what every engine takes for a sound of this length, and the chunk loop beside them.

    exported: also ONNX Runtime's, float32 and int8, from a folder of random weights that is written for it.
    """
    import numpy as np
    import torch

    from stepaudio.bench.baseline import LoopedLinguisticEncoder
    from stepaudio.encoder.engines import LinguisticChoice, load_chosen
    from stepaudio.encoder.export import export_encoder
    from stepaudio.tiny.encoder import write_paraformer

    samples = _sound(seconds, RATE, 1)
    size = SMALL_SIZE if small else REAL_SIZE
    names = ["torch", "torch-bf16"] + (["onnx", "onnx-int8"] if exported else [])
    watch = Stopwatch(runtime.synchronize)
    with tempfile.TemporaryDirectory() as name:
        folder, centroids = Path(name) / "funasr", Path(name) / "centroids.npy"
        write_paraformer(folder, 1, **size)
        width = size.get("size", 64)
        np.save(centroids, np.random.default_rng(0).standard_normal((1024, width), np.float32))
        if exported:
            export_encoder(folder, folder, int8=True)
        engines: dict[str, Any] = {
            engine: load_chosen(
                LinguisticChoice(engine),  # type: ignore[arg-type]
                folder,
                centroids,
                device=runtime.device,
                threads=runtime.threads,
            )
            for engine in names
        }
        engines = {"loop": LoopedLinguisticEncoder(engines["torch"]), **engines}
        codes = {}
        with torch.inference_mode():
            for number in range(-1, runs):
                for engine, encoder in engines.items():
                    codes[engine] = watch.run(engine, partial(encoder.encode, samples), keep=number >= 0)
    rows = []
    for engine in engines:
        row = {"name": engine, **watch.result(engine), "codes_equal": float(np.mean(codes[engine] == codes["torch"]))}
        rows.append(row)
    return {"seconds": seconds, "codes": len(codes["torch"]), "rows": rows}
