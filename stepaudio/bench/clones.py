"""Whole clones: the baseline and what was added to it step by step, the product, and each of its switches alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch

from stepaudio.bench.baseline import SerialEncoder
from stepaudio.bench.stopwatch import Stopwatch, spread
from stepaudio.bench.workbench import TEXT, Case, Workbench
from stepaudio.device import without_tf32
from stepaudio.pipeline import FUNASR, Pipeline
from stepaudio.speaking import FLOW, LLM, VOCODER
from stepaudio.types import Synthesis

ORIGINAL, TF32, ONNX = "original", "tf32", "onnx"
FIRST_WRITE, HIT_2, HIT_3 = "first_write", "hit_2", "hit_3"
OURS_FIRST, OURS_HIT_2, OURS_HIT_3 = "ours_first", "ours_hit_2", "ours_hit_3"
STAGES = (FUNASR, LLM, FLOW, VOCODER)
LEAST_HITS = 5


def measure_clones(bench: Workbench, case: Case, runs: int) -> dict[str, Any]:
    """Return the table's rows, the stages and the spread of hits.

    One round makes every kind of clone once, in the table's order; the first round only warms up. Every round has a
    transcript of its own, so that the product's first clone finds neither encoding nor prompt.
    """
    watch = Stopwatch(bench.runtime.synchronize)
    stages: dict[str, list[dict[str, float]]] = {}
    lengths: set[float] = set()
    plain, tuned = bench.baseline_encoder(tuned_onnx=False), bench.baseline_encoder(tuned_onnx=True)
    off = bench.new_cache(enabled=False)
    for number in range(-1, runs):
        reference = case.reference(number + 1)

        def clone(name: str, pipeline: Pipeline, hit: bool, *, warm: bool = number < 0) -> None:
            work = partial(
                pipeline.clone,
                reference,  # noqa: B023 - called before the next round
                TEXT,
                case.sampling,
                flow_steps=case.flow_steps,
                max_seconds=case.sound_seconds,
            )
            made = watch.run(name, work, keep=not warm)
            _expect(made.cache_hit == hit, f"{name} is a {'miss' if hit else 'hit'}")
            lengths.add(made.waveform.seconds)
            if not warm:
                stages.setdefault(name, []).append(_stages(made))

        with _no_tf32(bench):
            clone(ORIGINAL, bench.baseline(plain, off), False)
        if bench.runtime.tf32:
            clone(TF32, bench.baseline(plain, off), False)
        clone(ONNX, bench.baseline(tuned, off), False)
        with bench.new_cache() as cache:
            cached = bench.baseline(tuned, cache)
            for name in (FIRST_WRITE, HIT_2, HIT_3):
                clone(name, cached, name != FIRST_WRITE)
        bench.ours.cache.clear()
        for name in (OURS_FIRST, OURS_HIT_2, OURS_HIT_3):
            clone(name, bench.ours, name != OURS_FIRST)
        if number == runs - 1:
            for _ in range(max(LEAST_HITS, runs)):
                clone("same", bench.ours, True)
    _expect(len(lengths) == 1, f"The sounds differ in length: {sorted(lengths)}")
    same = watch.result("same")
    return {
        "rows": {name: {**watch.result(name), "stages": _medians(taken)} for name, taken in stages.items()},
        "sound_seconds": lengths.pop(),
        "spread": {
            "hits": len(same["all_seconds"]),
            "seconds": spread(same["all_seconds"]),
            "processor": spread(same["all_processor"]),
            "all_seconds": same["all_seconds"],
            "all_processor": same["all_processor"],
        },
    }


def measure_switches(bench: Workbench, case: Case, runs: int) -> list[dict[str, Any]]:
    """Return for each switch what its part takes without it and with it, everything else being equal."""
    from stepaudio import audio

    watch = Stopwatch(bench.runtime.synchronize)
    reference = case.reference()
    sound = audio.limit_peak(reference.waveform)
    prepared = audio.prepare_for_codes(audio.resample(sound, audio.CODE_RATE))
    parts = bench.encoder
    serial = SerialEncoder(linguistic=parts.linguistic, semantic=parts.semantic, speaker=parts.speaker, mel=parts.mel)
    encoding = bench.encoder.encode(reference.waveform).encoding
    ids, prompt = bench.prompt(case, encoding)
    shared = bench.prompts.shared(ids)
    most = round(case.sound_seconds * 25 / 3) * 5
    agreeing = {}

    def generate(lm: Any) -> Any:
        return lm.generate(ids, case.sampling, seed=case.seed, max_tokens=most, shared=shared)

    def flow(vocoder: Any, tokens: Any) -> torch.Tensor:
        mel: torch.Tensor = vocoder.flow(
            tokens, prompt, encoding.mel, encoding.speaker, seed=case.seed, steps=case.flow_steps
        )
        return mel

    with torch.inference_mode(), bench.new_cache() as cache:
        cache.get_or_encode(reference.waveform, bench.encoder.encode)
        for number in range(-1, runs):
            run: Callable[..., Any] = partial(watch.run, keep=number >= 0)
            looped = run("loop", lambda: bench.looped.encode(prepared))
            windows = run("windows", lambda: bench.linguistic.encode(prepared))
            run("serial", lambda: serial.encode(reference.waveform))
            run("beside", lambda: bench.encoder.encode(reference.waveform))
            run("hit", lambda: cache.get_or_encode(reference.waveform, bench.encoder.encode))
            plain = run("plain", lambda: generate(bench.plain_lm))
            torchs = run("torchs", lambda: generate(bench.torch_lm))
            step = run("step", lambda: generate(bench.step_lm))
            if number < 0:
                generate(bench.keeping_lm)
            kept = run("kept", lambda: generate(bench.keeping_lm))
            ahead, anew = flow(bench.vocoder, step.tokens), flow(bench.plain_vocoder, step.tokens)
            run("adaln", lambda tokens=step.tokens: flow(bench.plain_vocoder, tokens))
            run("ahead", lambda tokens=step.tokens: flow(bench.vocoder, tokens))
            agreeing = {
                "windows": float(np.mean(looped == windows)),
                "step": float(np.mean(plain.tokens.numbers == torchs.tokens.numbers)),
                "kernels": float(np.mean(torchs.tokens.numbers == step.tokens.numbers)),
                "kept": float(np.mean(step.tokens.numbers == kept.tokens.numbers)),
                "ahead": float((ahead - anew).abs().max()),
            }
    pairs = (
        ("windows", "loop", "windows"),
        ("beside", "serial", "beside"),
        ("cache", "beside", "hit"),
        ("step", "plain", "torchs"),
        ("kernels", "torchs", "step"),
        ("kept", "step", "kept"),
        ("ahead", "adaln", "ahead"),
    )
    results = []
    for name, without, having in pairs:
        before, after = watch.result(without), watch.result(having)
        row = {"name": name, "without": before, "with": after, "agreeing": agreeing.get(name)}
        results.append({**row, "factor": before["seconds"] / after["seconds"]})
    return results


def _no_tf32(bench: Workbench) -> AbstractContextManager[None]:
    return without_tf32(bench.runtime.device) if bench.runtime.tf32 else nullcontext()


def _stages(made: Synthesis) -> dict[str, float]:
    """Return the seconds of the stages, and of all between them."""
    found = {name: stage.seconds for name in STAGES if (stage := made.timings.find(name)) is not None}
    return {**found, "other": max(made.timings.total - sum(found.values()), 0.0)}


def _medians(taken: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in taken) for name in taken[0]}


def _expect(true: bool, wrong: str) -> None:
    if not true:
        raise RuntimeError(f"The measurement is not what it says: {wrong}.")
