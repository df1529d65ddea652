"""The report on mini: its rates, its verdicts, and that it runs through the product's encoder and vocoder."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stepaudio.weights import WeightsFolder, read_card
from training import evaluate, evaluate_clone, judges
from training.evaluate import Bench, Heard, choose_voices, medians, summary, verdicts
from training.shards import Clip
from training.texts import held_out

from .conftest import voice


def heard(voice_name: str, seed: int, errors: int, best: str, quality: float = 3.0) -> Heard:
    scores = {name: (0.9 if name == best else 0.5) for name in ("a", "b")}
    ears = {"resemblyzer": scores, "d-vector": {"a": 0.1, "b": 0.2}}
    return Heard(voice_name, "a", "clip", seed, errors, 10, "", -errors / 4, quality, ears)


def test_word_errors_are_summed_and_voices_counted() -> None:
    found = summary([heard("a", 1, 1, "a"), heard("a", 1, 3, "b", quality=2.0)])
    assert found["word error rate"] == 0.2
    assert found["log-probability of the text"] == -0.5
    assert found["quality"] == 2.5
    assert found["nearest, resemblyzer"] == 0.5
    assert found["similarity, resemblyzer"] == pytest.approx(0.7)
    assert found["nearest, d-vector"] == 0.0


def test_figures_are_medians_over_the_seeds() -> None:
    found = medians([heard("a", seed, errors, "a") for seed, errors in ((1, 0), (2, 9), (3, 1))])
    assert found["word error rate"] == 0.1


def test_a_limit_is_kept_on_its_own_side() -> None:
    figures = {name: limit for name, (limit, _) in evaluate.LIMITS.items()}
    assert all(verdicts(figures, evaluate.LIMITS).values())
    worse = {
        name: value + (0.01 if evaluate.LIMITS[name][1] == "at most" else -0.01) for name, value in figures.items()
    }
    assert not any(verdicts(worse, evaluate.LIMITS).values())


def test_prompts_targets_and_what_the_judges_know_are_different_clips(tmp_path: Path) -> None:
    speakers = sorted(held_out().speakers)
    with (
        tarfile.open(tmp_path / "corpus.tar", "w") as tar,
        (tmp_path / "index.tsv").open("w", encoding="utf-8", newline="") as index,
    ):
        table = csv.writer(index, delimiter="\t")
        table.writerow(["corpus", "path", "speaker", "seconds", "original_hz", "lang", "text"])
        for speaker in [*speakers, "somebody"]:
            for number in range(8):
                path = f"{speaker}-{number}.flac"
                sound = io.BytesIO()
                soundfile.write(sound, np.full(1600, number / 100), 16000, format="FLAC")
                entry = tarfile.TarInfo(path)
                entry.size = len(sound.getvalue())
                tar.addfile(entry, io.BytesIO(sound.getvalue()))
                table.writerow(["corpus", path, speaker, 5.0, 16000, "en", f"TEXT {number}"])
    voices = choose_voices(tmp_path, clips=2)
    assert [one.name for one in voices] == speakers
    for one in voices:
        names = [clip.name for clip in (one.prompt, *one.targets, *one.enrolled)]
        assert len(names) == len(set(names)) == 1 + 2 + evaluate.ENROLLED
        assert all(name.startswith(f"{one.name}-") for name in names)
    with pytest.raises(ValueError, match="only 8 clips"):
        choose_voices(tmp_path, clips=3)


def test_the_report_is_made_by_the_products_encoder_and_vocoder(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clip(name: str) -> Clip:
        return Clip(name, name[0], voice(1.2, sample_rate=16000).samples, 16000, "en", "one two")

    voices = [evaluate.Voice(name, clip(f"{name}0"), [clip(f"{name}1")], [clip(f"{name}2")]) for name in "abc"]
    lengths = []

    class Panel:
        def __init__(self, voices: list[evaluate.Voice], threads: int) -> None: ...

        def hear(self, samples: np.ndarray, rate: int, voice: str, said: Clip, codes_of: str, seed: int) -> Heard:
            lengths.append((codes_of, rate, len(samples) / rate))
            scores = {name: {one: float(one == voice) for one in "abc"} for name in ("resemblyzer", "d-vector")}
            return Heard(voice, codes_of, said.name, seed, 0, 2, "one two", -0.5, 3.0, scores)

    monkeypatch.setattr(evaluate, "choose_voices", lambda speech, clips: voices)
    monkeypatch.setattr(evaluate, "Panel", Panel)
    monkeypatch.setattr(evaluate, "draw", lambda *_: None)
    report = evaluate.resynthesis(tiny_weights, tmp_path, tmp_path / "out", clips=1, seeds=2)
    made = [length for _, rate, length in lengths if rate == 24000]
    assert len(made) == 3 * 2 + 3 * 2 * 2  # own voice and two others, two seeds
    assert all(length == pytest.approx(1.2, abs=0.4) for length in made)
    assert report["figures"]["word error rate"] == 0
    assert report["limits kept"]["nearest, resemblyzer"]
    assert report["figures"]["vocoder RTF"] > 0
    text = (tmp_path / "out" / "resynthesis.md").read_text(encoding="utf-8")
    assert "| word error rate | 0.0 | at most 0.12 ✓ |" in text
    assert "| b |" in text


def test_a_dropped_or_repeated_stretch_is_told_from_single_errors() -> None:
    spoken = ["one", "two", "three", "four", "five", "six", "seven"]
    assert evaluate_clone.whole(spoken, ["one", "to", "three", "for", "five", "seven"])
    assert not evaluate_clone.whole(spoken, ["one", "two", "six", "seven"])
    assert not evaluate_clone.whole(spoken, [*spoken, *spoken[:3]])


def test_clones_are_made_by_the_products_pipeline(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Path(shutil.copytree(tiny_weights, tmp_path / "weights"))
    (weights / "presets").mkdir()
    soundfile.write(weights / "presets" / "ada.wav", voice(1.2).samples, 24000)
    notes = {"name": "Ada", "transcript": "one two", "language": "en"}
    (weights / "presets" / "ada.json").write_text(json.dumps(notes), encoding="utf-8")

    def clip(name: str) -> Clip:
        return Clip(name, name, voice(1.2, sample_rate=16000).samples, 16000, "en", "one two")

    class Panel:
        def __init__(self, voices: list[evaluate.Voice], threads: int) -> None:
            self.know(voices)

        def know(self, voices: list[evaluate.Voice]) -> None:
            self.known = [voice.name for voice in voices]

        def hear(self, samples: np.ndarray, rate: int, voice: str, said: Clip, codes_of: str, seed: int) -> Heard:
            scores = {name: {one: float(one == voice) for one in self.known} for name in ("resemblyzer", "d-vector")}
            return Heard(voice, codes_of, said.name, seed, 2 if voice == "Ada" else 1, 5, said.text, -0.5, 3.0, scores)

    voices = [evaluate.Voice(name, clip(name), [], []) for name in "ab"]
    monkeypatch.setattr(evaluate_clone, "choose_voices", lambda speech, clips: voices)
    monkeypatch.setattr(evaluate_clone, "Panel", Panel)
    monkeypatch.setattr(judges, "words", str.split)
    monkeypatch.setattr(evaluate_clone, "draw", lambda *_: None)
    report = evaluate_clone.clone(weights, tmp_path, tmp_path / "out", texts=1, seeds=1, work=None)
    assert len(report["sounds"]) == 3
    assert report["figures"]["word error rate"] == 0.2
    assert report["figures"]["presets: word error rate"] == 0.4
    assert not report["limits kept"]["presets: word error rate"]
    assert list(report["voices"]) == ["a", "b", "Ada"]
    assert report["figures"]["ends by itself"] == 0.0  # tiny weights never end
    assert report["figures"]["nothing dropped or repeated"] == 1.0
    assert report["figures"]["RTF"] > 0
    assert not report["limits kept"]["ends by itself"]
    assert "| ends by itself | 0.0 | at least 0.95 ✗ |" in (tmp_path / "out" / "clone.md").read_text(encoding="utf-8")


def test_an_encoding_is_made_once(tiny_weights: Path) -> None:
    bench = Bench(WeightsFolder(tiny_weights, read_card(tiny_weights), "test"))
    one = Clip("n", "s", voice(1.0, sample_rate=16000).samples, 16000)
    assert bench.encode(one) is bench.encode(one)
    bench.encoder.close()
