"""Decoding against what the memory allows: a new id needs every weight once, whatever the processor can do.

    ceiling = measured copy bandwidth / bytes read for an id

Where the weights fit into a cache of the processor (those of mini do) the ceiling is no ceiling, and says so.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from stepaudio.bench.stopwatch import Stopwatch
from stepaudio.bench.workbench import TEXT, Case, Workbench
from stepaudio.llm.attention import KeyValueCache
from stepaudio.llm.sampling import SpeechHead, uniforms
from stepaudio.tokens import GROUP
from stepaudio.types import SamplingParams

if TYPE_CHECKING:
    from stepaudio.llm.step import Step

COPY_BYTES = 2**28
WATCHED = 3 * GROUP
WARM_UP = 2 * GROUP + 1
SYNCHRONISING = ("_local_scalar_dense", "aten::item", "is_nonzero", "nonzero")
"""Operations by which torch hands a value to Python, so that the host waits for the device."""
CALLED = "called a synchronizing CUDA operation"
"""What torch's watch says of one."""


def copy_bandwidth(device: torch.device, synchronize: Callable[[], None], copied: int = COPY_BYTES) -> float:
    """Return bytes a second, read and written, of the best of five copies of a block that no cache holds."""
    source = torch.ones(copied // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(6):
        synchronize()
        start = time.perf_counter()
        target.copy_(source)
        synchronize()
        best = max(best, 2 * copied / (time.perf_counter() - start))
    return best


def bytes_per_id(bench: Workbench, length: int) -> dict[str, int]:
    """Return how many bytes a step reads for one sequence of ``length`` ids: layers, head, keys and values."""
    decoder = bench.model.model
    size, element = decoder.size, bench.step_lm.element_size
    layers = sum(parameter.numel() for layer in decoder.layers for parameter in layer.parameters())
    # Two of five draws are among the linguistic ids, three among the semantic ones.
    rows = (2 * len(bench.vocabulary.linguistic) + 3 * len(bench.vocabulary.semantic)) // GROUP
    head_size = size.hidden // size.heads
    keys = 2 * size.layers * size.groups * head_size * KeyValueCache.rounded(length) * 4
    return {"layers": layers * element, "head": rows * size.hidden * element, "keys_and_values": keys}


def measure_decoding(bench: Workbench, case: Case, runs: int, batch: int) -> dict[str, Any]:
    """Return ids a second of one sequence and of ``batch`` of them, the ceiling, and what a step costs besides."""
    watch = Stopwatch(bench.runtime.synchronize)
    encoding = bench.encoder.encode(case.reference().waveform).encoding
    ids, _ = bench.prompt(case, encoding)
    texts = [f"{TEXT} {number:02d}" for number in range(batch)]
    prompts = [bench.prompt(case, encoding, text)[0] for text in texts]
    shared = bench.prompts.shared(ids)
    most = round(case.sound_seconds * 25 / 3) * GROUP
    rates: list[float] = []
    for number in range(-1, runs):
        keep = number >= 0

        def one_by_one() -> list[Any]:
            return [
                bench.keeping_lm.generate(prompt, case.sampling, seed=seed, max_tokens=most, shared=shared)
                for seed, prompt in enumerate(prompts)
            ]

        def together(prompts: list[list[int]]) -> list[Any]:
            count = len(prompts)
            return bench.keeping_lm.generate_many(
                prompts, case.sampling, seeds=range(count), max_tokens=[most] * count, shared=[shared] * count
            )

        made = watch.run("one_by_one", one_by_one, keep=keep)
        watch.run("together", lambda: together(prompts), keep=keep)
        watch.run("takes", lambda: together([ids] * batch), keep=keep)
        watch.run("take", lambda: together([ids]), keep=keep)
        if keep:
            rates += [one.new_ids / one.decode_seconds for one in made]
    bandwidth = copy_bandwidth(bench.runtime.device, bench.runtime.synchronize)
    read = bytes_per_id(bench, len(ids) + most // 2)
    ceiling = bandwidth / sum(read.values())
    rate = statistics.median(rates)
    return {
        "ids": most,
        "prompt_ids": len(ids),
        "ids_per_second": rate,
        "milliseconds_per_id": 1e3 / rate,
        "copy_bandwidth": bandwidth,
        "bytes_per_id": read,
        "ceiling": ceiling,
        "share_of_ceiling": rate / ceiling,
        "batch": batch,
        **{name: watch.result(name) for name in ("one_by_one", "together", "takes", "take")},
        **steady_state(bench, ids),
    }


def steady_state(bench: Workbench, ids: list[int]) -> dict[str, Any]:
    """Return allocations and host synchronisations an id, counted over some steps after the first ones.

    waits: what torch says of each synchronisation that CUDA's own watch saw.
    The first steps make the views and capture the graphs that later ones use.
    """
    with torch.inference_mode():
        step, run = _step(bench, ids)
        for number in range(WARM_UP):
            run(number)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            for number in range(WARM_UP, WARM_UP + WATCHED):
                run(number)
        events = seen.profiler.kineto_results.events()
        taken = sum(event.name() == "[memory]" and event.nbytes() > 0 for event in events)
        with _Waits() as waits, _cuda_waits(bench.runtime.on_gpu) as told:
            for number in range(WARM_UP + WATCHED, WARM_UP + 2 * WATCHED):
                run(number)
        del step
    return {
        "watched": WATCHED,
        "allocations_per_id": taken / WATCHED,
        "synchronisations_per_id": (waits.count + len(told)) / WATCHED,
        "waits": told,
    }


def _step(bench: Workbench, ids: list[int]) -> tuple[Step, Callable[[int], None]]:
    """Return the step of one sequence, and what runs it as draw ``number``, within one bucket of positions."""
    decoder, head = bench.model.model, SpeechHead(bench.model.lm_head.weight, bench.vocabulary)
    draws = WARM_UP + 2 * WATCHED + 1
    workspace = bench.step_lm._new_workspace(1, len(ids) + draws)
    cache = workspace.state.cache.row(0)
    hidden = decoder(torch.tensor([ids], device=decoder.device), cache=cache)[0, -1]
    workspace.state.begin(0, tuple(ids), hidden, uniforms(0, draws))
    step = workspace.step(1, replace(SamplingParams(), seed=None))
    step.draw(head.choice(0))
    keys = KeyValueCache.rounded(len(ids) + draws)
    return step, lambda number: step.run(keys, head.choice(number + 1))


@contextmanager
def _cuda_waits(on_gpu: bool) -> Iterator[list[str]]:
    """Give a list that in the end holds what CUDA's own watch says of every wait of the host; [] without a GPU."""
    told: list[str] = []
    if not on_gpu:
        yield told
        return
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield told
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # Not "synchroniz" alone: the watch begins with a notice that it does not see every synchronizing operation.
    told += [str(one.message) for one in heard if CALLED in str(one.message)]


class _Waits(TorchDispatchMode):
    """Counts the operations that hand a value to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        self.count += any(word in name for word in SYNCHRONISING)
        return func(*args, **(kwargs or {}))
