"""The reader of phonemes: it learns from clear speech, lays known texts along recordings, and learns from those."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training import data, joint, reader
from training.align import Alignments, write
from training.codes import Encoders
from training.hearing import labels_of
from training.phones import CLASSES, SILENCE, classes
from training.shards import Clip, ClipRecord, write_shard
from training.texts import held_out

PHONES = "sɪks mɛn ðæt"
WIDTH = 160
MINI = Path("models/mini")


def clip(name: str, seed: int, speaker: str = "s", *, aligned: bool = True, noise: float = 0.3) -> reader.Known:
    """A clip whose features tell its phonemes, of some length each; ``aligned``: and that it knows where they lie."""
    rng = np.random.default_rng(seed)
    lengths = [int(rng.integers(4, 9)) if classes(phone) else 0 for phone in PHONES]
    frames = 6 * 12
    ends = 6 + np.cumsum(lengths)
    bounds = tuple(int(one * 320) for one in (6, *ends))
    record = ClipRecord(name, speaker, 0, frames * 320, 16000, "en", "six men that", PHONES, bounds)
    labels = np.full(frames, SILENCE)
    for phone, start, length in zip(PHONES, bounds, lengths, strict=False):
        if length:
            labels[start // 320 : start // 320 + length] = classes(phone)[0]
    where = np.random.default_rng(0).standard_normal((CLASSES, WIDTH))
    told = (where[labels] + noise * rng.standard_normal((frames, WIDTH))).astype(np.float16)
    if not aligned:
        record = replace(record, bounds=())
    return reader.Known(record, 0, 12, np.zeros((144, 128), np.float16), told)


@pytest.fixture(scope="module")
def fitted() -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(WIDTH, CLASSES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "FRAMES", 256)
        patch.setattr(reader, "PASSES", 20)
        reader.fit(linear, [clip(f"c{seed}", seed) for seed in range(8)])
    return linear


def test_clips_are_listened_to_as_long_as_their_codes_are(tmp_path: Path) -> None:
    t = np.arange(32000) / 16000
    hum = 0.1 * sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 20)) * (1 + np.sin(2 * np.pi * 3 * t))
    sounds = [hum, hum[:9600], hum[::-1]]  # the second one is too short
    made = [Clip(f"n{n}", "s", sound.astype(np.float32), 16000, phones="ɑ") for n, sound in enumerate(sounds)]
    write_shard(tmp_path / "recordings", 0, iter(made))
    for folder, make in (("banks", data.bank_of), ("mels", data.mel_of)):
        data.cache_features(tmp_path / "recordings", tmp_path / folder / "recordings", make)
    write(tmp_path, [ClipRecord("n0", "s", 0, 32000, 16000, "en", "", "ɑ,", (0, 3, 9))])
    found = list(reader.listened(joint.begun(MINI).eval(), tmp_path, "recordings"))
    assert [one.record.name for one in found] == ["n0", "n2"]
    assert found[0].record.phones == "ɑ"  # what an earlier round made of it does not count
    for one in found:
        assert one.told.shape == (6 * one.groups, WIDTH)
        assert np.isfinite(one.told).all()
    codes = Encoders(MINI).encode(made[0].samples, 16000)[0]
    assert 0 <= found[0].groups - len(codes) // 3 < 2  # filterbanks are made of whole windows
    assert float(np.abs(found[0].told[:60].astype(float) - found[1].told[:60]).mean()) > 0.05


def test_it_reads_what_it_was_taught(fitted: nn.Linear) -> None:
    frames, phonemes = reader.misread(fitted, [clip("new", 99)])
    assert frames < 0.05
    assert phonemes < 0.1
    wrong = replace(clip("new", 99), told=clip("new", 99).told[::-1])
    assert reader.misread(fitted, [wrong])[0] > 0.3


def test_a_known_text_is_laid_along_a_recording(fitted: nn.Linear) -> None:
    silent = replace(clip("silent", 7), told=np.zeros((72, WIDTH), np.float16))
    mute = replace(clip("mute", 8), record=replace(clip("mute", 8).record, phones="", bounds=()))
    with ThreadPoolExecutor(1) as pool:
        found = reader.along(fitted, [clip("new", 99, aligned=False), mute], pool)
        few = replace(clip("fast", 9, aligned=False), told=clip("fast", 9).told[:6])
        assert reader.along(fitted, [few, silent], pool) != []  # what does not fit is left out, and nothing fails
    assert [one.record.name for one in found] == ["new"]
    placed, true = (labels_of(one, 0, 72) for one in (found[0], clip("new", 99)))
    assert float((placed == true).mean()) > 0.95


def test_recordings_come_to_know_where_their_phonemes_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = min(held_out().speakers)
    sets = {
        reader.CLEAR: [clip(f"c{seed}", seed) for seed in range(8)],
        reader.RECORDED: [clip("ours", 50, aligned=False), clip("theirs", 51, held, aligned=False)],
    }
    taught = []
    monkeypatch.setattr(reader, "listened", lambda model, work, name, every=1: iter(sets[name]))
    monkeypatch.setattr(reader, "begun", lambda weights: nn.Linear(1, 1))
    monkeypatch.setattr(reader, "ProcessPoolExecutor", ThreadPoolExecutor)
    monkeypatch.setattr(reader, "FRAMES", 256)
    monkeypatch.setattr(reader, "PASSES", 20)
    plain = reader.fit
    monkeypatch.setattr(
        reader, "fit", lambda one, clips: (taught.append([clip.record.speaker for clip in clips]), plain(one, clips))
    )
    reader.fit_and_align(tmp_path, Path("models/mini"), "cpu", 1)
    record = Alignments(tmp_path, reader.RECORDED).of(replace(sets[reader.RECORDED][0].record, bounds=()))
    assert len(record.bounds) == len(PHONES) + 1
    assert list(record.bounds) == sorted(record.bounds)
    assert len(taught) == 1 + reader.ROUNDS
    assert not any(held in speakers for speakers in taught)
