"""Mini's preset voices: as many as are promised, new texts, and files as the product reads them."""

from __future__ import annotations

import io
import json

import numpy as np
import soundfile

from stepaudio.presets import PresetFolder
from training import presets
from training.teachers import RATE, Spoken
from training.texts import held_out, normal_form


class Teacher:
    """Says every text as a tone, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def phonemes(self, text: str) -> str:
        return text.lower()

    def say(self, text: str, *how: object) -> Spoken:
        self.asked.append((text, *how))
        return Spoken(np.sin(np.arange(RATE) * 0.05).astype(np.float32), text, (0, RATE))


def test_there_are_at_least_four_and_nobody_was_judged_by_their_texts() -> None:
    assert len(presets.VOICES) >= 4
    assert len({voice.name for voice in presets.VOICES}) == len(presets.VOICES)
    for voice in presets.VOICES:
        assert normal_form(voice.transcript) not in held_out().forms
        assert not voice.mixture or abs(sum(voice.mixture.values()) - 1) < 1e-9


def test_the_mixed_voices_read_training_texts_in_turn() -> None:
    hibari, kokoro = Teacher(), Teacher()
    texts = ["One.", "Two words here.", "Three words here."]
    made = list(presets.clips(range(5), texts, hibari, kokoro))
    assert [clip.speaker for clip in made] == [
        "preset-ada", "preset-grace", "preset-edward", "preset-henry", "preset-ada",
    ]  # fmt: skip
    assert {clip.text for clip in made} == set(texts[1:])  # a text of one word tells a voice nothing
    assert len({clip.name for clip in made}) == 5
    assert hibari.asked == []


def test_what_is_written_is_what_the_product_reads(tmp_path) -> None:
    presets.write(tmp_path, Teacher(), Teacher())
    folder = PresetFolder(tmp_path)
    assert [(one.name, one.transcript) for one in folder.list()] == [
        (voice.name, voice.transcript) for voice in presets.VOICES
    ]
    for one in folder.list():
        samples, rate = soundfile.read(io.BytesIO(folder.load(one.id)[1]))
        assert rate == presets.WRITTEN_RATE
        assert abs(len(samples) - rate) < 10
        assert abs(np.abs(samples).max() - presets.PEAK) < 0.01
    notes = json.loads((tmp_path / "presets" / "1-nora.json").read_text(encoding="utf-8"))
    assert notes["language"] == "en"
