"""Judge the whole of mini: ``python -m training.evaluate clone --weights models/mini --speech S --out O``.

Unseen texts are spoken in unseen voices, through the product's pipeline. The judges say what is left of words, voice
and quality; the pipeline says how it ended and what it took. With ``--work`` also the gate: the same texts in the
teachers' own codes, which bounds what a language model can reach with this vocoder.
"""

from __future__ import annotations

import difflib
import logging
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stepaudio import device
from stepaudio.loading import Engine, load_engine
from stepaudio.settings import Settings
from stepaudio.types import Reference, SamplingParams, Waveform
from stepaudio.weights import WeightsFolder, choose_weights, read_card
from training import judges
from training.evaluate import (
    Bench,
    Heard,
    Panel,
    Voice,
    choose_voices,
    conditions,
    draw,
    medians,
    summary,
    verdicts,
    write,
)
from training.shards import Clip, read_clips
from training.texts import held_out

log = logging.getLogger(__name__)

GAP = 3
"""Words in a row that are missing or too many: a sentence, or a part of one, was dropped or repeated."""

LIMITS = {
    "word error rate": (0.2, "at most"),
    "nearest, resemblyzer": (0.75, "at least"),
    "nearest, d-vector": (0.75, "at least"),
    "quality": (2.8, "at least"),
    "ends by itself": (0.95, "at least"),
    "nothing dropped or repeated": (0.9, "at least"),
    "RTF": (0.6, "at most"),
}


@dataclass(frozen=True, eq=False)
class Cloned:
    """One clone: what the judges say, and how it was made."""

    heard: Heard
    ended: bool
    whole: bool
    rtf: float


def whole(spoken: list[str], heard: list[str]) -> bool:
    """Return whether nowhere GAP words in a row are missing or too many."""
    steps = difflib.SequenceMatcher(None, spoken, heard, autojunk=False).get_opcodes()
    return all(abs((i2 - i1) - (j2 - j1)) < GAP for _, i1, i2, j1, j2 in steps)


def figures_of(cloned: list[Cloned]) -> dict[str, float]:
    """Return the medians over the seeds of the judges' figures, and the shares and medians of the rest."""
    return medians([one.heard for one in cloned]) | {
        "ends by itself": round(float(np.mean([one.ended for one in cloned])), 4),
        "nothing dropped or repeated": round(float(np.mean([one.whole for one in cloned])), 4),
        "RTF": round(float(np.median([one.rtf for one in cloned])), 4),
    }


def gate(weights: Path, work: Path, panel: Panel) -> dict[str, float]:
    """Return the word error rates of the held-out texts, spoken by each teacher, coded and made sound again."""
    bench = Bench(WeightsFolder(weights, read_card(weights), "to be judged"))
    found = {}
    for teacher in ("hibari", "kokoro"):
        clips = [clip for clip in read_clips(work / "heldout") if clip.speaker.startswith(teacher)]
        errors = total = 0
        for place, clip in enumerate(clips):
            same = [other for other in clips if other.speaker == clip.speaker and other is not clip]
            sound = bench.speak(clip, same[place % len(same)], 1)
            wrong, count = panel.listener.word_errors(sound, bench.vocoder.sample_rate, clip.text)
            errors, total = errors + wrong, total + count
        found[f"{teacher}'s codes"] = round(errors / total, 4)
    bench.encoder.close()
    return found


def clone(weights: Path, speech: Path, out: Path, texts: int, seeds: int, work: Path | None) -> dict[str, Any]:
    """Judge, write clone.json, .md and .png into ``out``, and return what the first of them holds."""
    with tempfile.TemporaryDirectory() as cache:
        settings = Settings(weights=str(weights.resolve()), cache_dir=Path(cache), device="cpu")
        runtime = device.choose("cpu")
        device.apply(runtime)
        engine = load_engine(choose_weights(settings), settings, runtime)
        engine.pipeline.warm()
        voices = choose_voices(speech, 1)
        panel = Panel(voices, runtime.threads)
        made, pictures = [], []
        for place, voice in enumerate(voices):
            own = [held_out().texts[(place * texts + n) % len(held_out().texts)] for n in range(texts)]
            for number, text in enumerate(own):
                for seed in range(1, seeds + 1):
                    one, samples = judged(engine, panel, voice, text, seed)
                    made.append(one)
                    if number == 0 and seed == 1:
                        pictures.append((f"{voice.name}: {text[:60]}", voice.prompt, samples))
            log.info("%s: %s", voice.name, summary([one.heard for one in made if one.heard.voice == voice.name]))
        engine.close()
    figures = figures_of(made)
    report = conditions("clone", f"--texts {texts} --seeds {seeds}", runtime.threads) | {
        "figures": figures,
        "limits kept": verdicts(figures, LIMITS),
        "gate": gate(weights, work, panel) if work else {},
        "voices": {voice.name: figures_of([one for one in made if one.heard.voice == voice.name]) for voice in voices},
        "sounds": [asdict(one) for one in made],
    }
    write(report, out, "clone", "Texts in held-out voices", LIMITS)
    draw(pictures, engine.encoder.mel, out / "clone.png")
    return report


def judged(engine: Engine, panel: Panel, voice: Voice, text: str, seed: int) -> tuple[Cloned, np.ndarray]:
    """Return what is to be said of a clone, and its samples."""
    reference = Reference(Waveform(voice.prompt.samples, voice.prompt.rate), voice.prompt.text)
    synthesis = engine.pipeline.clone(reference, text, SamplingParams(seed=seed))
    samples = synthesis.waveform.samples
    said = Clip(text[:40], voice.name, samples, synthesis.waveform.sample_rate, "en", text)
    heard = panel.hear(samples, said.rate, voice.name, said, voice.name, seed)
    complete = whole(judges.words(text), judges.words(heard.transcript))
    return Cloned(heard, synthesis.stopped == "end", complete, synthesis.rtf), samples
