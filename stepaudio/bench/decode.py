"""How long the language model takes for an id: plain decoding against the step, rows side by side, a kept beginning.

The networks have random weights (time does not depend on them): one of mini's size, one between it and the real one.
Heavy imports wait until something is measured, because the command line imports this file for its flags.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from stepaudio.bench.conditions import commit, cpu_model

if TYPE_CHECKING:
    from stepaudio.llm.generate import SpeechLM
    from stepaudio.llm.network import Decoder
    from stepaudio.llm.sampling import SpeechHead

LINGUISTIC, SEMANTIC, TEXT = 1024, 2000, 976
SIZES = {
    "mini": {"hidden": 192, "intermediate": 448, "layers": 6, "heads": 6, "groups": 2},
    "middle": {"hidden": 1024, "intermediate": 2816, "layers": 12, "heads": 16, "groups": 4},
    "small": {"hidden": 32, "intermediate": 32, "layers": 1, "heads": 2, "groups": 1},
}
PROMPT, SHARED, TAKES = 400, 350, 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``python -m stepaudio bench decode``."""
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["mini", "middle"], help="networks")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads (default: 1 2)")
    parser.add_argument("--ids", type=int, default=100, help="ids drawn in a run (default: 100)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each kind, interleaved (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")


def run(args: argparse.Namespace) -> int:
    """Measure, write a Markdown report to standard output (and JSON to a file), and return 0."""
    import torch

    before = torch.get_num_threads()
    rows = []
    try:
        for threads in args.threads:
            torch.set_num_threads(threads)
            rows += [{"size": size, "threads": threads, **measure(size, args.ids, args.runs)} for size in args.sizes]
    finally:
        torch.set_num_threads(before)
    results = {"conditions": _conditions(args), "rows": rows}
    sys.stdout.write(render(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(size: str, ids: int, runs: int) -> dict[str, Any]:
    """Return medians in milliseconds, and whether greedy ids agree, for a network of this size.

    plain, step: for an id, by the wall clock; plain_cpu, step_cpu: the same in processor time, which other work on
    the machine disturbs less. batch: for one id of each of TAKES takes decoded side by side. read, read_kept: for a
    prompt of PROMPT ids of which SHARED are known.
    """
    import torch

    from stepaudio.types import SamplingParams

    decoder, head, lm = _build(size)
    prompt = torch.randint(4, TEXT, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
    greedy = SamplingParams(temperature=0.0)
    with torch.inference_mode():
        equal = _plain(decoder, head, prompt, greedy, 50)[1] == _greedy_ids(lm, prompt, greedy, 50)
    taken: dict[str, list[float]] = {}

    def note(**values: float) -> None:
        for name, value in values.items():
            taken.setdefault(name, []).append(value * 1e3)

    params = SamplingParams()
    for number in range(-1, runs):  # the first round warms up
        with torch.inference_mode():
            (plain, plain_cpu), _ = _plain(decoder, head, prompt, params, ids)
        known = [*prompt[:SHARED], *reversed(prompt[SHARED:])]
        fresh = [number + 5, *known[1:]]
        read = lm.generate(fresh, params, seed=number + 1, max_tokens=ids, shared=SHARED)
        lm.generate(known, params, seed=0, max_tokens=5, shared=SHARED)
        cpu = time.process_time()
        kept = lm.generate(known, params, seed=number + 1, max_tokens=ids, shared=SHARED)
        cpu = time.process_time() - cpu
        takes = lm.generate_many([prompt] * TAKES, params, seeds=range(TAKES), max_tokens=[ids] * TAKES)
        if number >= 0:
            note(plain=plain / ids, plain_cpu=plain_cpu / ids, step=kept.decode_seconds / kept.new_ids)
            share = kept.decode_seconds / (kept.prefill_seconds + kept.decode_seconds)
            note(step_cpu=cpu * share / kept.new_ids)
            note(batch=max(take.decode_seconds for take in takes) / max(take.new_ids for take in takes))
            note(read=read.prefill_seconds, read_kept=kept.prefill_seconds)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return {**medians, "greedy_equal": equal, "all": taken}


def _build(name: str) -> tuple[Decoder, SpeechHead, SpeechLM]:
    import torch

    from stepaudio.llm.generate import SpeechLM
    from stepaudio.llm.network import Decoder, Dimensions
    from stepaudio.llm.sampling import SpeechHead
    from stepaudio.tokens import SpeechVocabulary

    vocabulary = TEXT + LINGUISTIC + SEMANTIC
    size = Dimensions(vocabulary=vocabulary, norm_eps=1e-5, max_length=8192, **SIZES[name])
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        decoder = Decoder(size).requires_grad_(False).eval()
        lm_head = torch.nn.Linear(size.hidden, vocabulary, bias=False).requires_grad_(False)
    lm_head.weight[3] = 0.0  # the end, which then is never among the best fifty
    speech = SpeechVocabulary(range(TEXT, TEXT + LINGUISTIC), range(TEXT + LINGUISTIC, vocabulary), 3)
    lm = SpeechLM(SimpleNamespace(model=decoder, lm_head=lm_head), speech, prefix_bytes=2**28)
    return decoder, SpeechHead(lm_head.weight, speech), lm


def _plain(decoder: Decoder, head: SpeechHead, prompt: list[int], params: Any, ids: int) -> Any:
    """Return ((wall seconds, processor seconds), ids) of plain decoding after the prompt has been read."""
    from stepaudio.bench.plain_decode import PlainDecoding

    decoding = PlainDecoding(decoder, head, prompt, ids, params, seed=0)
    start, cpu = time.perf_counter(), time.process_time()
    new = [decoding.draw()]
    while len(new) < ids:
        decoding.advance()
        new.append(decoding.draw())
    return (time.perf_counter() - start, time.process_time() - cpu), new


def _greedy_ids(lm: SpeechLM, prompt: list[int], params: Any, ids: int) -> list[int]:
    numbers = lm.generate(prompt, params, seed=0, max_tokens=ids).tokens.numbers
    return [int(number) + TEXT for number in numbers]


def _conditions(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the numbers depend on."""
    import torch

    from stepaudio.cores import core_count

    flags = f"--sizes {' '.join(args.sizes)} --threads {' '.join(map(str, args.threads))}"
    return {
        "command": f"python -m stepaudio bench decode {flags} --ids {args.ids} --runs {args.runs}",
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": core_count(),
        "torch": torch.__version__,
        "dtype": "float32",
        "runs": args.runs,
        "ids": args.ids,
        "sizes": {name: SIZES[name] for name in args.sizes},
    }


def render(results: dict[str, Any]) -> str:
    """Return the Markdown report."""
    told = results["conditions"]
    sizes = "; ".join(
        f"{name}: width {size['hidden']}, {size['layers']} layers, {size['heads']} heads, {size['intermediate']} units"
        for name, size in told["sizes"].items()
    )
    lines = [
        "### Decoding",
        "",
        f"{told['cpu']}, {told['cores']} cores; torch {told['torch']}, {told['dtype']}; {sizes}; random weights; "
        f"{told['ids']} ids after {PROMPT}; median of {told['runs']} interleaved runs, warm. Milliseconds; in "
        "brackets: processor time, which other work on the machine disturbs less.",
        "",
        f"| Network | Threads | Plain, an id | Step, an id | {TAKES} takes, an id of each "
        f"| {PROMPT} ids read | {SHARED} of them kept | Greedy ids equal |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {row['size']} | {row['threads']} | {row['plain']:.2f} ({row['plain_cpu']:.2f}) "
        f"| {row['step']:.2f} ({row['step_cpu']:.2f}) | {row['batch']:.2f} | {row['read']:.1f} "
        f"| {row['read_kept']:.1f} | {'yes' if row['greedy_equal'] else 'no'} |"
        for row in results["rows"]
    ]
    return "\n".join([*lines, ""])
