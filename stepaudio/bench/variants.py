"""The variants of the language model side by side: the same weights, packed otherwise."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from stepaudio.bench.stopwatch import Stopwatch
from stepaudio.bench.workbench import Case, Workbench
from stepaudio.llm.bnb import pack_projections
from stepaudio.llm.generate import SpeechLM
from stepaudio.llm.loading import load_step1
from stepaudio.loading import BNB_KINDS
from stepaudio.tokens import GROUP
from stepaudio.variants import BITSANDBYTES
from stepaudio.weights import BASE


def measure_variants(bench: Workbench, case: Case, runs: int) -> list[dict[str, Any]]:
    """Return what each variant takes for an id, prompt included; those of bitsandbytes where it is installed.

    The awq folder has weights of its own, so that it cannot be made of these.
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
    return [{"name": name, "ids": most, **watch.result(name)} for name in names]


def _lm(bench: Workbench, name: str) -> SpeechLM:
    runtime, kind = bench.runtime, BNB_KINDS.get(name)
    model = load_step1(bench.weights.editx, torch.device("cpu") if kind else runtime.device, runtime.dtype)
    if kind:
        pack_projections(model.model, kind, runtime.device)
        model.to(runtime.device)
    graphs = bench.settings.cuda_graphs and not kind
    return SpeechLM(model, bench.vocabulary, cuda_graphs=graphs, fused_kernels=bench.settings.fused_kernels)
