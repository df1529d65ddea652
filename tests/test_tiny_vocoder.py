from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.tiny.vocoder import write_vocoder
from stepaudio.vocoder.config import read_config
from stepaudio.vocoder.vocoder import Vocoder, load_vocoder
from tests.vocoder_recordings import speech, voice_of

FILES = ("cosyvoice.yaml", "flow.pt", "hift.pt")


def loaded(folder: Path, seed: int) -> Vocoder:
    write_vocoder(folder, seed)
    return load_vocoder(folder, torch.device("cpu"))


@pytest.mark.parametrize("seed", range(4))
def test_the_sound_is_audible_lively_noise(tmp_path: Path, seed: int) -> None:
    vocoder = loaded(tmp_path, seed)
    mel, speaker = voice_of()
    sound = vocoder.sound(vocoder.flow(speech(10), speech(5), mel, speaker, seed=seed), seed=seed)
    frames = sound.samples.reshape(-1, 480)
    assert np.isfinite(frames).all()
    assert 0.01 < sound.samples.std() < 0.3
    assert (frames.std(axis=1) > 0.001).all()
    assert (np.abs(frames) >= 0.99).mean() < 0.01


def test_one_seed_gives_the_same_bytes_and_another_gives_others(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second", "other")]
    for folder, seed in zip(folders, (5, 5, 6), strict=True):
        folder.mkdir()
        write_vocoder(folder, seed)
    first, second, other = ([(folder / name).read_bytes() for name in FILES] for folder in folders)
    assert first == second
    assert first[0] == other[0]
    assert first[1] != other[1]
    assert first[2] != other[2]


def test_the_folder_has_the_layout_and_keys_of_the_recorded_one(tmp_path: Path, conformance: Path) -> None:
    write_vocoder(tmp_path, 0)
    recorded = conformance / "vocoder" / "CosyVoice-300M-25Hz"
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)

    def fields(text: str) -> list[str]:
        return [line.split(":")[0].strip() for line in text.splitlines() if ":" in line]

    def tags(text: str) -> list[str]:
        return [word for word in text.split() if word.startswith("!new:")]

    own, theirs = (folder / "cosyvoice.yaml" for folder in (tmp_path, recorded))
    assert fields(own.read_text()) == fields(theirs.read_text())
    assert tags(own.read_text()) == tags(theirs.read_text())
    assert read_config(tmp_path).mel == read_config(recorded).mel
    keys = [torch.load(folder / "hift.pt", weights_only=True).keys() for folder in (tmp_path, recorded)]
    assert keys[0] == keys[1]


def test_five_seconds_take_about_one(tmp_path: Path) -> None:
    vocoder = loaded(tmp_path, 0)
    mel, speaker = voice_of(frames=150)
    start = time.process_time()
    sound = vocoder.sound(vocoder.flow(speech(42), speech(25), mel, speaker, seed=0), seed=0)
    assert sound.seconds == pytest.approx(5.04)
    # Processor time, so that a busy machine does not fail it; measured 0.2 s.
    assert time.process_time() - start < 3.0
    assert sum((tmp_path / name).stat().st_size for name in FILES) < 3_000_000
