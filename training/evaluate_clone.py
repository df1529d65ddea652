"""Judge the whole of mini: ``python -m training.evaluate clone --weights models/mini --speech S --out O``.

Unseen texts are spoken in unseen voices, and in the preset ones, through the product's pipeline. The judges say what
is left of words, voice and quality; the pipeline says how it ended and what it took. With ``--work`` also the gate:
the same texts in the teachers' own codes, which bounds what a language model can reach with this vocoder.
"""

from __future__ import annotations

import difflib
import io
import logging
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from stepaudio import device
from stepaudio.loading import Engine, load_engine
from stepaudio.presets import PresetFolder
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

Pictures = list[tuple[str, Clip, np.ndarray]]

log = logging.getLogger(__name__)

DRAWN = 6
"""Of how many voices the mel is drawn, reference above and clone below."""

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
    "presets: word error rate": (0.1, "at most"),
}
PRESET_FIGURES = ("word error rate", "quality", "ends by itself", "nothing dropped or repeated")


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


def preset_voices(weights: Path) -> list[Voice]:
    """Return the preset voices of a weights folder; each is known by its own sound."""
    folder, found = PresetFolder(weights), []
    for one in folder.list():
        preset, data = folder.load(one.id)
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
        prompt = Clip(preset.id, preset.name, samples, rate, preset.language, preset.transcript)
        found.append(Voice(preset.name, prompt, [], [prompt]))
    return found


def speak(engine: Engine, panel: Panel, voices: list[Voice], texts: int, seeds: int) -> tuple[list[Cloned], Pictures]:
    """Return what is said of ``texts`` held-out texts in each voice, and the first sound of each to be drawn."""
    made: list[Cloned] = []
    pictures: Pictures = []
    known = held_out().texts
    for place, voice in enumerate(voices):
        for number in range(texts):
            # In steps of 7 through the texts, which are sorted by length: every voice gets short and long ones.
            text = known[7 * (place * texts + number) % len(known)]
            for seed in range(1, seeds + 1):
                one, samples = judged(engine, panel, voice, text, seed)
                made.append(one)
                if number == 0 and seed == 1:
                    pictures.append((f"{voice.name}: {text[:60]}", voice.prompt, samples))
        log.info("%s: %s", voice.name, summary([one.heard for one in made if one.heard.voice == voice.name]))
    return made, pictures


def clone(weights: Path, speech: Path, out: Path, texts: int, seeds: int, work: Path | None) -> dict[str, Any]:
    """Judge, write clone.json, .md and .png into ``out``, and return what the first of them holds."""
    with tempfile.TemporaryDirectory() as cache:
        settings = Settings(weights=str(weights.resolve()), cache_dir=Path(cache), device="cpu")
        runtime = device.choose("cpu")
        device.apply(runtime)
        engine = load_engine(choose_weights(settings), settings, runtime)
        engine.pipeline.warm()
        voices, presets = choose_voices(speech, 1), preset_voices(weights)
        panel = Panel(voices, runtime.threads)
        made, pictures = speak(engine, panel, voices, texts, seeds)
        panel.know(presets)
        spoken, _ = speak(engine, panel, presets, texts, seeds)
        engine.close()
    figures = figures_of(made)
    if spoken:
        of_presets = figures_of(spoken)
        figures |= {f"presets: {name}": of_presets[name] for name in PRESET_FIGURES}
    by_voice = {
        voice.name: figures_of([one for one in group if one.heard.voice == voice.name])
        for group, voices_of in ((made, voices), (spoken, presets))
        for voice in voices_of
    }
    report = conditions("clone", f"--texts {texts} --seeds {seeds}", runtime.threads) | {
        "figures": figures,
        "limits kept": verdicts(figures, LIMITS),
        "gate": gate(weights, work, panel) if work else {},
        "voices": by_voice,
        "sounds": [asdict(one) for one in [*made, *spoken]],
    }
    write(report, out, "clone", "Texts in held-out voices, and in the presets", LIMITS)
    draw(pictures[:DRAWN], engine.encoder.mel, out / "clone.png")
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
