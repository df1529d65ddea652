"""How long encoding a reference takes: the chunk loop against all windows at once, and a miss against a hit.

The Paraformer's encoder has its real size (random weights: time does not depend on them); the semantic tokenizer and
the speaker encoder, where they are needed, are tiny stand-ins, as the output says. Heavy imports wait until
something is measured, because the command line imports this file for its flags.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stepaudio.bench.conditions import commit, cpu_model
from stepaudio.bench.stopwatch import Stopwatch

if TYPE_CHECKING:
    from stepaudio.encoder.paraformer import LinguisticEncoder
    from stepaudio.types import FloatArray

REAL_SIZE = {"size": 512, "heads": 4, "linear_units": 2048, "blocks": 50}
RATE = 16000
CACHE_RATE = 24000
CACHE_BYTES = 2**28

Result = TypeVar("Result")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``python -m stepaudio bench encode``."""
    parser.add_argument("--seconds", type=float, nargs="+", default=[5.0, 20.0], help="lengths of the clips")
    parser.add_argument("--runs", type=int, default=3, help="runs of each kind, interleaved (default: 3)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: one a core)")
    parser.add_argument("--small", action="store_true", help="a small encoder, to try the measurement itself")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to FILE")


def run(args: argparse.Namespace) -> int:
    """Measure, write a Markdown report to standard output (and JSON to a file), and return 0."""
    import torch

    from stepaudio.cores import core_count

    before, threads = torch.get_num_threads(), args.threads or core_count()
    torch.set_num_threads(threads)
    try:
        loop_encoder, frontend, ours = _build(**({} if args.small else REAL_SIZE))
        windows = [measure_windows(loop_encoder, frontend, ours, seconds, args.runs) for seconds in args.seconds]
        cache = [measure_cache(ours, seconds, args.runs, threads) for seconds in args.seconds]
    finally:
        torch.set_num_threads(before)
    results = {"conditions": _conditions(threads, args.runs, ours), "windows": windows, "cache": cache}
    sys.stdout.write(render(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def _build(**sizes: int) -> tuple[Any, Any, LinguisticEncoder]:
    """Return funasr's encoder and front end with random weights, and our encoder with the same tensors."""
    import torch

    from stepaudio.encoder.funasr_folder import import_automodel
    from stepaudio.encoder.paraformer import LinguisticEncoder, StackedFbank, window_encoder
    from stepaudio.tiny.encoder import paraformer_config
    from stepaudio.tokens import LINGUISTIC_CODES

    import_automodel()
    from funasr.frontends.wav_frontend import WavFrontendOnline
    from funasr.models.scama.encoder import SANMEncoderChunkOpt

    config = paraformer_config(**sizes)
    frontend = WavFrontendOnline(cmvn_file=None, dither=0.0, **config["frontend_conf"])
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        encoder = SANMEncoderChunkOpt(input_size=frontend.output_size(), **config["encoder_conf"]).eval()
    network = window_encoder(encoder, Path("random weights"))
    noise = np.random.default_rng(0).standard_normal((LINGUISTIC_CODES, network.config.size), np.float32)
    ours = LinguisticEncoder(StackedFbank.of(frontend), network, noise, device=torch.device("cpu"))
    return encoder, frontend, ours


def measure_windows(loop_encoder: Any, frontend: Any, ours: LinguisticEncoder, seconds: float, runs: int) -> Any:
    """Return medians, ratio and differences of the chunk loop and of all windows at once on the same sound."""
    from stepaudio.bench.chunk_loop import chunk_loop

    samples = _sound(seconds, RATE, 1)
    chunk_loop(loop_encoder, frontend, samples[: 2 * RATE])
    ours.frames(samples)
    watch = Stopwatch()
    for _ in range(runs):
        looped = watch.run("loop", lambda: chunk_loop(loop_encoder, frontend, samples))
        together = watch.run("windows", lambda: ours.frames(samples))
    loop, windows = watch.result("loop"), watch.result("windows")
    return {
        "seconds": seconds,
        "frames": len(together),
        "chunk_loop": loop["seconds"],
        "window_parallel": windows["seconds"],
        "chunk_loop_processor": loop["processor"],
        "window_parallel_processor": windows["processor"],
        "all_chunk_loop": loop["all_seconds"],
        "all_window_parallel": windows["all_seconds"],
        "ratio": loop["seconds"] / windows["seconds"],
        "largest_difference": float(np.abs(looped - together).max()),
        "codes_equal": float(np.mean(ours.nearest(looped) == ours.nearest(together))),
    }


def measure_cache(ours: LinguisticEncoder, seconds: float, runs: int, threads: int) -> Any:
    """Return medians of a miss and of a hit of the encoding cache; every run has a sound of its own."""
    import torch

    from stepaudio.cache import EncodingCache
    from stepaudio.encoder.reference import ReferenceEncoder
    from stepaudio.encoder.s3 import SemanticEncoder
    from stepaudio.encoder.speaker import SpeakerEncoder
    from stepaudio.features import MelConfig
    from stepaudio.tiny.encoder import write_campplus, write_s3
    from stepaudio.types import Waveform

    cpu = torch.device("cpu")
    misses: list[dict[str, float]] = []
    hits: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_s3(folder / "s3.onnx", 0)
        write_campplus(folder / "campplus.onnx", 0)
        encoder = ReferenceEncoder(
            linguistic=ours,
            semantic=SemanticEncoder(folder / "s3.onnx", device=cpu, threads=threads),
            speaker=SpeakerEncoder(folder / "campplus.onnx", device=cpu, threads=threads),
            mel=MelConfig(),
            threads=threads,
        )
        with EncodingCache(folder / "cache", "bench", size_limit=CACHE_BYTES) as cache:
            for index in range(-1, runs):  # the first pair warms up
                sound = Waveform(_sound(seconds, CACHE_RATE, 100 + index), CACHE_RATE)
                for kept in (misses, hits):
                    took, outcome = _timed(partial(cache.get_or_encode, sound, encoder.encode))
                    if index >= 0:
                        kept.append({"total": took, "hash": outcome.hash_seconds, "lookup": outcome.lookup_seconds})
                    if outcome.hit != (kept is hits):
                        raise RuntimeError("The cache did not miss first and hit then.")
        encoder.close()
    miss, hit = ({key: statistics.median(run[key] for run in kept) for key in kept[0]} for kept in (misses, hits))
    return {"seconds": seconds, "miss": miss, "hit": hit, "ratio": miss["total"] / hit["total"]}


def _sound(seconds: float, rate: int, seed: int) -> FloatArray:
    """Return synthetic sound of ``seconds``, float32."""
    from stepaudio.tiny.encoder import synthetic_sound

    sound: FloatArray = synthetic_sound(seconds * rate / RATE + 1, seed)[: int(seconds * rate)].astype(np.float32)
    return sound


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _conditions(threads: int, runs: int, ours: LinguisticEncoder) -> dict[str, Any]:
    """Return what the numbers depend on."""
    import torch

    from stepaudio.cores import core_count

    config = ours.config
    return {
        "command": f"python -m stepaudio bench encode --runs {runs}",
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": core_count(),
        "threads": threads,
        "torch": torch.__version__,
        "dtype": str(ours.dtype).removeprefix("torch."),
        "runs": runs,
        "encoder": f"{config.blocks} blocks, width {config.size}, {config.heads} heads, {config.linear_units} units",
    }


def render(results: dict[str, Any]) -> str:
    """Return the Markdown report."""
    told = results["conditions"]
    lines = [
        "### Encoding a reference",
        "",
        f"{told['cpu']}, {told['cores']} cores, {told['threads']} threads; torch {told['torch']}, {told['dtype']}; "
        f"Paraformer encoder of {told['encoder']}, random weights; median of {told['runs']} interleaved runs, warm.",
        "",
        "| Clip | Chunk loop | All windows at once | Ratio | Largest difference | Codes equal |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['seconds']:g} s | {row['chunk_loop']:.3f} s | {row['window_parallel']:.3f} s | {row['ratio']:.1f} x "
        f"| {row['largest_difference']:.1e} | {row['codes_equal']:.2%} |"
        for row in results["windows"]
    ]
    lines += [
        "",
        "The whole reference encoder behind its cache (semantic tokenizer and speaker encoder: tiny stand-ins):",
        "",
        "| Clip | Miss | Hit | Hit: hash | Hit: lookup | Ratio |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['seconds']:g} s | {row['miss']['total']:.3f} s | {row['hit']['total']:.4f} s "
        f"| {row['hit']['hash']:.4f} s | {row['hit']['lookup']:.4f} s | {row['ratio']:.0f} x |"
        for row in results["cache"]
    ]
    return "\n".join([*lines, ""])
