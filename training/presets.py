"""Mini's preset voices: ``python -m training.presets {clips,write} --work W --voices T``.

Five voices that no person has: four mixtures of Kokoro's styles, and hibari's own. ``clips`` lets the four read
training texts into the set "presets", so that mini has heard them; ``write`` puts a sound and a transcript of each
into a weights folder, as stepaudio/presets.py reads them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from stepaudio import presets
from training.command import begin
from training.prepare import KOKORO_SHARD, KOKORO_WORDS, run
from training.shards import Clip
from training.teachers import RATE, Hibari, Kokoro, Spoken
from training.texts import training_texts

SET = "presets"
SEED = 7
WRITTEN_RATE = 16000
"""The mel ends at 8 kHz: what lies above is not heard, and half of the file."""

PEAK = 0.7


@dataclass(frozen=True)
class PresetVoice:
    """Name and transcript of a preset, and the style packs it is mixed of; none: hibari's own voice."""

    name: str
    transcript: str
    mixture: dict[str, float]


VOICES = (
    PresetVoice("Nora", "The kettle sings while the morning papers wait beside the window.", {}),
    PresetVoice("Ada", "I found an old map between the pages of a book.", {"af_heart": 0.7, "af_bella": 0.3}),
    PresetVoice("Grace", "Every spring the river rises and covers the lower meadow.", {"bf_emma": 0.8, "af_nova": 0.2}),
    PresetVoice(
        "Edward", "The last boat leaves at nine, so we have time for tea.", {"bm_george": 0.7, "bm_fable": 0.3}
    ),
    PresetVoice(
        "Henry", "Put the heavy boxes down here, next to the green door.", {"am_michael": 0.7, "am_fenrir": 0.3}
    ),
)


def said(voice: PresetVoice, text: str, hibari: Hibari, kokoro: Kokoro, seed: int, speed: float = 1.0) -> Spoken:
    """Return a text in a preset voice."""
    if not voice.mixture:
        return hibari.say(text, speed, seed)
    return kokoro.say(hibari.phonemes(text), voice.mixture, speed)


def clips(numbers: range, texts: list[str], hibari: Hibari, kokoro: Kokoro) -> Iterator[Clip]:
    """Yield training texts in the mixed voices, one clip of each in turn."""
    mixed = [voice for voice in VOICES if voice.mixture]
    fitting = [text for text in texts if KOKORO_WORDS[0] <= len(text.split()) <= KOKORO_WORDS[1]]
    for number in numbers:
        voice, text = mixed[number % len(mixed)], fitting[-1 - number % len(fitting)]
        speed = float(np.random.default_rng([SEED, number]).uniform(0.9, 1.1))
        spoken = said(voice, text, hibari, kokoro, number, speed)
        speaker = f"preset-{voice.name.lower()}"
        yield Clip(f"preset-{number:05d}", speaker, spoken.samples, RATE, "en", text, spoken.phones, spoken.bounds)


def write(folder: Path, hibari: Hibari, kokoro: Kokoro) -> None:
    """Write NAME.flac and NAME.json of every voice into ``folder``/presets; in the order of VOICES by their names."""
    target = folder / presets.PRESETS
    target.mkdir(exist_ok=True)
    for number, voice in enumerate(VOICES, 1):
        spoken = said(voice, voice.transcript, hibari, kokoro, SEED)
        samples = soxr.resample(spoken.samples, RATE, WRITTEN_RATE)
        path = target / f"{number}-{voice.name.lower()}.flac"
        soundfile.write(path, samples * (PEAK / np.abs(samples).max()), WRITTEN_RATE, subtype="PCM_16")
        notes = {"name": voice.name, "transcript": voice.transcript, "language": "en"}
        path.with_suffix(".json").write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("clips", "write"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--speech", type=Path, help="folder of the recordings, with index.tsv (clips)")
    parser.add_argument("--voices", type=Path, required=True, help="kokoro-js-1.2.1.tgz")
    parser.add_argument("--to", type=Path, help="the weights folder, models/mini (write)")
    parser.add_argument("--hours", type=float, default=0.3)
    options = parser.parse_args()
    begin(options.work, f"presets-{options.part}", 1)
    hibari, kokoro = Hibari(), Kokoro(options.voices)
    if options.part == "write":
        write(options.to, hibari, kokoro)
        return
    texts = training_texts(options.speech / "index.tsv", SEED)

    def batch(numbers: range) -> Iterator[Clip]:
        return clips(numbers, texts, hibari, kokoro)

    run(options.work / SET, KOKORO_SHARD, len(texts), batch, options.hours)


if __name__ == "__main__":
    main()
