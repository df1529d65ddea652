"""The variants of the language model side by side: the same weights, packed otherwise."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stepaudio.bench.stopwatch import Stopwatch
from stepaudio.bench.workbench import Case, Workbench
from stepaudio.device import Runtime
from stepaudio.llm.bnb import PACKERS, pack_projections
from stepaudio.llm.generate import SpeechLM
from stepaudio.llm.loading import load_step1
from stepaudio.llm.quantised import Int4Groups, Packed
from stepaudio.loading import BNB_KINDS
from stepaudio.tokens import GROUP
from stepaudio.variants import BITSANDBYTES
from stepaudio.weights import AWQ, BASE

PRODUCT = (3072, 8192)
"""Columns and rows of the matrices that come before the gates of the real model's layers."""

AWQ_GROUP = 128
"""Numbers that share a scale in the official folder."""

WARM_UPS, PRODUCT_RUNS = 3, 15


def measure_variants(bench: Workbench, case: Case, runs: int) -> list[dict[str, Any]]:
    """Return what each variant takes for some ids, prompt included; those of bitsandbytes where it is installed.

    The awq folder has weights of its own, so that it cannot be made of these. "products" of the first row: what one
    product takes whose matrix is as large as one of the real model's, for one sequence, packed in each way: what these
    weights are too small to tell.
    """
    names = [BASE, *(BNB_KINDS if importlib.util.find_spec(BITSANDBYTES) is not None else ())]
    models = {name: _lm(bench, name) for name in names}
    ids, _ = bench.prompt(case, bench.encoder.encode(case.reference().waveform).encoding)
    most = round(case.sound_seconds * 25 / 3) * GROUP
    watch = Stopwatch(bench.runtime.synchronize)
    with torch.inference_mode():
        for number in range(-1, runs):
            for name, lm in models.items():
                watch.run(
                    name,
                    lambda lm=lm: lm.generate(ids, case.sampling, seed=case.seed, max_tokens=most),  # type: ignore[misc]
                    keep=number >= 0,
                )
    rows = [{"name": name, "ids": most, **watch.result(name)} for name in names]
    rows[0]["products"] = _products(bench.runtime, names[1:])
    return rows


def _products(runtime: Runtime, installed: list[str]) -> dict[str, Any]:
    """Return the seconds of a product of PRODUCT with a plain matrix and as each variant packs it."""
    inner, outer = PRODUCT
    weight = torch.randn(outer, inner, device=runtime.device, dtype=runtime.dtype)
    x = torch.randn(1, inner, device=runtime.device, dtype=runtime.dtype)
    scale = torch.rand(outer, inner // AWQ_GROUP, device=runtime.device, dtype=runtime.dtype)
    codes = torch.randint(0, 256, (outer, inner // 2), device=runtime.device, dtype=torch.uint8)
    packed: dict[str, Packed] = {AWQ: Int4Groups(codes, scale, torch.full_like(scale, 8))}
    packed |= {name: PACKERS[BNB_KINDS[name]](weight) for name in installed}
    ways: dict[str, Callable[[], Tensor]] = {BASE: lambda: torch.mm(x, weight.t())}
    ways |= {name: functools.partial(matrix.product, x) for name, matrix in packed.items()}
    watch = Stopwatch(runtime.synchronize)
    with torch.inference_mode():
        for number in range(-WARM_UPS, PRODUCT_RUNS):
            for name, way in ways.items():
                watch.run(name, way, keep=number >= 0)
    return {"inner": inner, "outer": outer, "seconds": {name: watch.result(name)["seconds"] for name in ways}}


def _lm(bench: Workbench, name: str) -> SpeechLM:
    runtime, kind = bench.runtime, BNB_KINDS.get(name)
    model = load_step1(bench.weights.editx, torch.device("cpu") if kind else runtime.device, runtime.dtype)
    if kind:
        pack_projections(model.model, kind, runtime.device)
        model.to(runtime.device)
    graphs = bench.settings.cuda_graphs and not kind
    return SpeechLM(model, bench.vocabulary, cuda_graphs=graphs, fused_kernels=bench.settings.fused_kernels)
