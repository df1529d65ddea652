"""What the vocoder learns from: mel and pitch begin where the codes of the clip begin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stepaudio import features
from training import acoustic
from training.data import RATE, heard, read_examples
from training.hift import CROP, Piece, cropped
from training.shards import Clip, read_records, write_shard

from .conftest import voice


def clip(rate: int) -> Clip:
    samples = voice(1.5, sample_rate=rate).samples
    quiet = np.zeros(rate // 2, np.float32)
    return Clip("c", "s", np.concatenate((quiet, samples, quiet)).astype(np.float32), rate)


@pytest.mark.parametrize("rate", [16000, 24000])
def test_the_sound_begins_and_ends_with_what_the_code_encoders_hear(rate: int) -> None:
    one = clip(rate)
    sound, offset = acoustic.sound_of(one.samples, one.rate)
    codes, begin = heard(one.samples, one.rate)
    assert offset == begin
    assert abs(len(sound) / 24000 - len(codes) / RATE) <= 0.26  # whole windows are padded
    first = int(np.flatnonzero(np.abs(sound) > 0.05)[0]) / 24000
    assert first == pytest.approx(int(np.flatnonzero(np.abs(codes) > 0.08)[0]) / RATE, abs=0.01)


def test_where_the_clip_begins_loud_zeros_stand_before_it() -> None:
    samples = voice(1.0, sample_rate=16000).samples
    sound, offset = acoustic.sound_of(samples, 16000)
    assert offset < 0
    assert not sound[: -offset * 3 // 2].any()


@pytest.mark.parametrize("rate", [16000, 24000])
def test_a_crop_of_the_sound_is_what_its_mel_was_made_of(
    rate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acoustic, "pitch", lambda sound, frames: np.arange(frames, dtype=np.float32))
    write_shard(tmp_path / "set", 0, [clip(rate)])
    assert acoustic.cache_features(tmp_path / "set", tmp_path / "rows", acoustic.rows_of) == 1
    (number, _), *_ = read_records(tmp_path / "set")
    (example,) = read_examples(tmp_path / "set", tmp_path / "rows")
    piece = Piece(example, tmp_path / "set", number)
    import torch

    mel, pitch, sound = cropped(piece, torch.Generator().manual_seed(3))
    assert mel.shape == (80, CROP)
    assert pitch[1] - pitch[0] == 1
    made = features.log_mel(sound.numpy(), acoustic.MEL)
    inner = slice(3, -3)  # the crop's own edges are reflected
    assert np.abs(made[inner] - mel.numpy().T[inner]).mean() < 0.05
