"""``python -m stepaudio export-encoder``: write the linguistic encoder as ONNX, then say what it is worth.

Heavy imports wait until something is exported, because the command line imports this file for its flags.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stepaudio.errors import InvalidInput
from stepaudio.settings import Settings

if TYPE_CHECKING:
    from stepaudio.bench.engines import EngineResult
    from stepaudio.encoder.paraformer import LinguisticEncoder
    from stepaudio.types import FloatArray

SYNTHETIC_SECONDS = 8.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``python -m stepaudio export-encoder``."""
    parser.add_argument("--int8", action="store_true", help="also write the encoder with its products in int8")
    parser.add_argument("--to", type=Path, metavar="DIR", help="the folder to write (default: the FunASR folder)")
    parser.add_argument("--audio", type=Path, nargs="+", metavar="FILE", help="recordings to compare the codes on")
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each engine, in turn (default: 3)")


def run(parsed: argparse.Namespace, settings: Settings) -> int:
    """Write the files, compare the engines, tell it on standard output, and return 0."""
    from stepaudio import device, loading
    from stepaudio.bench.engines import compare
    from stepaudio.encoder.engines import EXPORTS, TORCH, LinguisticChoice
    from stepaudio.encoder.export import export_encoder
    from stepaudio.weights import choose_weights

    if parsed.runs < 1:
        raise InvalidInput(f"The number of runs is {parsed.runs}; at least 1 is needed.")
    clips = [_recording(path, settings) for path in parsed.audio] if parsed.audio else [_synthetic()]
    runtime = device.choose(settings.device, "float32", tf32=settings.tf32, threads=settings.threads or None)
    device.apply(runtime)
    weights = choose_weights(settings)
    target = parsed.to or weights.funasr
    written = export_encoder(weights.funasr, target, int8=parsed.int8)
    for path in written:
        sys.stdout.write(f"Wrote {path.name} ({path.stat().st_size / 1e6:.1f} MB) to {target}.\n")
    engines = [TORCH, LinguisticChoice("torch-bf16")]
    engines += [LinguisticChoice(name, target) for name, file in EXPORTS.items() if target / file in written]
    encoders: dict[str, LinguisticEncoder] = {
        c.engine: loading.load_linguistic_encoder(weights, runtime, c) for c in engines
    }
    results = compare(encoders, clips, parsed.runs, runtime.synchronize)
    seconds = sum(len(clip) for clip in clips) / 16000
    sys.stdout.write(_report(results, seconds, f"{runtime.threads} threads, {runtime.reason}", bool(parsed.audio)))
    sys.stdout.write(_advice(parsed, target))
    return 0


def _report(results: Sequence[EngineResult], seconds: float, where: str, real: bool) -> str:
    """Return what was measured, one sentence an engine."""
    first = results[0]
    kind = "recordings" if real else "synthetic sound"
    lines = [
        f"Compared on {seconds:.1f} s of {kind}, {first.codes} codes ({where}; "
        f"median of {len(first.all_seconds)} runs of each engine in turn):",
        f"  {first.name}: {first.seconds:.3f} s a run; the others are held against its codes.",
    ]
    lines += [
        f"  {row.name}: {row.seconds:.3f} s a run; {row.equal:.2%} of the codes are equal "
        f"({row.equal_where_certain:.2%} where the nearest centroid leads by more than 1e-4); "
        f"the frames differ by at most {row.difference:.1e}."
        for row in results[1:]
    ]
    if not real:
        lines.append("How well an engine keeps the codes of speech, only recordings can say: give some with --audio.")
    return "\n".join([*lines, ""])


def _advice(parsed: argparse.Namespace, target: Path) -> str:
    where = f" and STEPAUDIO_LINGUISTIC_ONNX_DIR={target}" if parsed.to else ""
    return f"To use it, set STEPAUDIO_LINGUISTIC_ENGINE={'onnx-int8' if parsed.int8 else 'onnx'}{where}.\n"


def _recording(path: Path, settings: Settings) -> FloatArray:
    """Return what the encoder hears of a recording; raises InvalidInput naming a file that cannot serve."""
    from stepaudio import audio
    from stepaudio.audiofile import Limits, load_reference

    limits = Limits(settings.max_upload_bytes, settings.min_reference_seconds, settings.max_reference_seconds)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"The recording {path} cannot be read ({error.strerror}).") from error
    try:
        sound = load_reference(data, limits).waveform
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error
    return audio.prepare_for_codes(audio.limit_peak(sound))


def _synthetic() -> FloatArray:
    from stepaudio.tiny.encoder import synthetic_sound

    sound: FloatArray = synthetic_sound(SYNTHETIC_SECONDS, 1).astype(np.float32)
    return sound
