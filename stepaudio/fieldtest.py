"""``python -m stepaudio doctor --real``: the chosen weights on this machine, tried for real; one report to paste.

Every file is hashed and held against what the download recorded, every part is loaded, engines are compared code by
code, and one voice is cloned twice and written down again. It is written for the real weights, which the product's
own tests do not have, and runs on any others.
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stepaudio import audio, device, loading, memory
from stepaudio.asr import Transcriber
from stepaudio.audiofile import Limits, encode_wav, load_reference
from stepaudio.bench.engines import compare
from stepaudio.device import Runtime
from stepaudio.doctor import Examination, Finding, examine, render
from stepaudio.encoder.engines import EXPORTS, TORCH, LinguisticChoice
from stepaudio.encoder.fingerprint import hash_file
from stepaudio.encoder.paraformer import LinguisticEncoder
from stepaudio.errors import InvalidInput, StepAudioError
from stepaudio.files import read_file
from stepaudio.hub import KNOWN
from stepaudio.loading import Engine
from stepaudio.report import GET_ENGINE, POST_PROCESS, request_block
from stepaudio.settings import Settings
from stepaudio.snapshot import RECORD
from stepaudio.tiny.encoder import synthetic_sound
from stepaudio.types import Reference, SamplingParams, Synthesis, Waveform
from stepaudio.weights import WeightsFolder, choose_weights

SEED = 1
TEXT = "The quick brown fox jumps over the lazy dog, and nobody in the garden is surprised."
ALIKE = 0.8
"""How alike the words asked for and the words heard must be; a voice that speaks well stays above 0.9."""
SYNTHETIC_SECONDS, SYNTHETIC_RATE = 4.0, 16_000
COMPARED_RUNS = 3


@dataclass(frozen=True)
class Trial:
    """What is tried: a recording with its transcript (None: synthetic sound), and the text to speak."""

    audio: Path | None = None
    transcript: str = ""
    text: str = TEXT


def trial(recording: Path | None, transcript: str, text: str) -> Trial:
    """Return what is to be tried; raises InvalidInput for a recording without its words."""
    if recording is not None and not transcript.strip():
        raise InvalidInput("A recording needs the words that are spoken in it: please add --transcript.")
    return Trial(recording, transcript, text or TEXT)


def try_out(settings: Settings, tried: Trial) -> tuple[str, bool]:
    """Return the report as Markdown, and whether all is well. Raises InvalidInput for a recording that cannot serve."""
    sound = _sound(settings, tried)
    examination = examine(settings)
    sections = [("What is here", [f"```\n{render(examination).rstrip()}\n```"])]
    healthy = examination.healthy
    if healthy:
        runtime = device.choose(settings.device, settings.dtype, tf32=settings.tf32, threads=settings.threads or None)
        weights = choose_weights(settings)
        found = Examination((*_memory(weights, runtime), *_files(weights)))
        sections.append(("Files and memory", _told(found)))
        healthy = found.healthy
        codes, codes_well = _engines(weights, settings, runtime, sound)
        cloned, cloned_well = _clones(weights, settings, runtime, sound, tried)
        sections += [("Engines of the linguistic encoder", codes), ("One voice, cloned twice", cloned)]
        healthy = healthy and codes_well and cloned_well
    verdict = "**All is well.**" if healthy else "**Something is wrong: see the ❌ above.**"
    body = "\n\n".join(f"## {title}\n\n" + "\n".join(lines) for title, lines in sections)
    return f"# stepaudio on this machine\n\n{body}\n\n{verdict}\n", healthy


def heard_as(wanted: str, heard: str) -> float:
    """Return how alike two texts are, 0 to 1: the share of letters in common, without case and punctuation."""
    first, second = (re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold()) for text in (wanted, heard))
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()


def _sound(settings: Settings, trial: Trial) -> Waveform:
    if trial.audio is None:
        return Waveform(synthetic_sound(SYNTHETIC_SECONDS, SEED).astype(np.float32), SYNTHETIC_RATE)
    return load_reference(read_file(trial.audio), Limits.of(settings)).waveform


def _told(examination: Examination) -> list[str]:
    return [f"```\n{render(examination).rstrip()}\n```"]


def _memory(weights: WeightsFolder, runtime: Runtime) -> Iterator[Finding]:
    wanted, free = memory.needed(weights, runtime.dtype), memory.available(runtime)
    there = f"{free / 1e9:.1f} GB are free" if free is not None else "how much is free cannot be known"
    enough = free is None or free >= wanted
    yield Finding("good" if enough else "note", "Memory", f"about {wanted / 1e9:.1f} GB are needed, {there}")
    for sentence in memory.advice(weights, runtime):
        yield Finding("note", "", sentence)


def _files(weights: WeightsFolder) -> Iterator[Finding]:
    """Hash every file; those that the download recorded, or whose checksum is known, must be unchanged."""
    recorded = _recorded(weights.path)
    paths = sorted(path for path in weights.path.rglob("*") if path.is_file() and not path.name.startswith("."))
    for path in paths:
        name = path.relative_to(weights.path).as_posix()
        digest, size = hash_file(path)
        sums = {f"sha256:{digest}"}
        expected = recorded.get(name, set())
        # A folder of other weights has files of the same names, which are none of the hub's.
        known = _known(name) if weights.card.title == "Step-Audio-EditX" else None
        sha256 = {entry for entry in expected if entry.startswith("sha256:")} | ({known} if known else set())
        mark, words = "note", "no checksum is known"
        if sha256:
            well = sha256 == sums
            mark, words = ("good", "as published") if well else ("bad", f"not as published: {' '.join(sorted(sha256))}")
        elif expected:
            words = "recorded by the download with git's checksum"
        yield Finding(mark, name, f"{size:,} bytes, sha256 {digest}, {words}")


def _recorded(folder: Path) -> dict[str, set[str]]:
    """Return the checksums that the download verified, by file; {} for weights that came otherwise."""
    try:
        seals = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {str(name): {str(entry) for entry in seal["checksums"]} for name, seal in seals.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _known(name: str) -> str | None:
    folder, _, rest = name.partition("/")
    for repo, files in KNOWN.items():
        if repo.endswith(f"/{folder}") and rest in files:
            return f"sha256:{files[rest][1]}"
    return None


def _engines(weights: WeightsFolder, settings: Settings, runtime: Runtime, sound: Waveform) -> tuple[list[str], bool]:
    """Compare the engines that can run here with torch in float32, code by code."""
    folder = Path(settings.linguistic_onnx_dir) if settings.linguistic_onnx_dir else weights.funasr
    choices = [TORCH, LinguisticChoice("torch-bf16")]
    choices += [LinguisticChoice(name, folder) for name, file in EXPORTS.items() if (folder / file).is_file()]
    try:
        encoders: dict[str, LinguisticEncoder] = {
            choice.engine: loading.load_linguistic_encoder(weights, runtime, choice) for choice in choices
        }
        clip = audio.prepare_for_codes(audio.resample(audio.limit_peak(sound), audio.CODE_RATE))
        results = compare(encoders, [clip], COMPARED_RUNS, runtime.synchronize)
    except (StepAudioError, ValueError) as error:
        return [f"❌ {error}"], False
    lines = ["| engine | codes | equal to torch | equal where certain | seconds |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {row.name} | {row.codes} | {row.equal:.2%} | {row.equal_where_certain:.2%} | {row.seconds:.3f} |"
        for row in results
    ]
    missing = sorted(set(EXPORTS) - {choice.engine for choice in choices})
    if missing:
        lines += ["", f"Not exported, so not compared: {', '.join(missing)} (`python -m stepaudio export-encoder`)."]
    return lines, True


def _clones(
    weights: WeightsFolder, settings: Settings, runtime: Runtime, sound: Waveform, trial: Trial
) -> tuple[list[str], bool]:
    """Clone twice, the second time from the cache, and hear what was said."""
    try:
        with closing(loading.load_engine(weights, settings, runtime)) as engine:
            engine.pipeline.warm()
            reference = Reference(sound, trial.transcript or "A sound that nobody spoke.")
            first, second = (_clone(engine, reference, trial.text) for _ in range(2))
            lines = [f"{engine.summary}.", ""]
            for synthesis in (first, second):
                lines += ["```", request_block(synthesis), "```"]
            same = np.array_equal(first.waveform.samples, second.waveform.samples)
            lines.append(f"{'✅' if same else '❌'} The same seed gave the same samples{'' if same else ': no'}.")
            hit = second.cache_hit
            lines.append(f"{'✅' if hit else '❌'} The second one {'hit' if hit else 'missed'} the cache.")
            heard, understood = _heard(engine.transcriber, first, trial)
    except StepAudioError as error:
        return [f"❌ {error}"], False
    return [*lines, heard], same and hit and understood


def _clone(engine: Engine, reference: Reference, text: str) -> Synthesis:
    timer = engine.pipeline.timer()
    with timer.stage(GET_ENGINE):
        pass  # it is there already; the line stands in every block
    with timer.stage("Clone"):
        synthesis = engine.pipeline.clone(reference, text, SamplingParams(seed=SEED), timer=timer)
    with timer.stage(POST_PROCESS):
        encode_wav(synthesis.waveform)
    return replace(synthesis, timings=timer.finish())


def _heard(transcriber: Transcriber, synthesis: Synthesis, trial: Trial) -> tuple[str, bool]:
    """Return what was heard in the clone, and whether that is what was asked for."""
    if not transcriber.available:
        return f"ℹ️ Not written down again: {transcriber.why_not}", True
    words = transcriber.transcribe(synthesis.waveform)
    alike = heard_as(trial.text, words)
    asked = f"asked for {trial.text!r}, {transcriber.name} heard {words!r}: {alike:.0%} alike"
    if trial.audio is None:
        return f"ℹ️ {asked}. The reference was no voice; give one with --audio and --transcript.", True
    return (f"✅ {asked}.", True) if alike >= ALIKE else (f"❌ {asked}; at least {ALIKE:.0%} are wanted.", False)
