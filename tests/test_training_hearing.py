"""What the tokenizer hears in training: parts of clips, squeezed in time, from other throats; what is told stays."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from training import hearing
from training.data import whisper_centres
from training.phones import IGNORED
from training.shards import ClipRecord

STILL = hearing.Changes(stretched=0, hurried=0, disturbed=0)


@dataclass(frozen=True, eq=False)
class Ramp:
    """A clip whose rows tell their own place: of the log-mel in rows of 10 ms, told in 20 ms."""

    groups: int
    record: ClipRecord
    offset: int = 0

    @property
    def whisper(self) -> np.ndarray:
        return np.arange(12.0 * self.groups)[:, None] * np.ones((1, 128))

    @property
    def told(self) -> np.ndarray:
        return np.arange(6.0 * self.groups)[:, None] * np.ones((1, 3))


@dataclass(frozen=True, eq=False)
class Short(Ramp):
    """A ramp with fewer or more rows of the log-mel than its groups have."""

    rows: int = 0

    @property
    def whisper(self) -> np.ndarray:
        return np.arange(float(self.rows))[:, None] * np.ones((1, 128))


def ramp(groups: int) -> Ramp:
    count = int(groups * 0.12 * 16000)
    return Ramp(groups, ClipRecord("n", "s", 0, count, 16000, "en", "ah", "ɑs", (0, count // 2, count)))


def test_a_hurried_clip_is_squeezed_with_what_is_told_and_its_phonemes() -> None:
    changes = replace(STILL, hurried=1.0, hurry=0.16)
    paces, changing = set(), set()
    for seed in range(12):
        cut = hearing.cut(ramp(21), 12, changes, torch.Generator().manual_seed(seed))
        assert [one.shape for one in (cut.whisper, cut.told)] == [(144, 128), (72, 3)]
        pace = float(cut.told[40, 0] - cut.told[20, 0]) / 20
        paces.add(round(pace, 3))
        np.testing.assert_allclose(float(cut.whisper[80, 0] - cut.whisper[40, 0]) / 40, pace, atol=0.02)
        begin = 2 * float(cut.told[10, 0]) - 20 * pace  # in rows of 10 ms
        assert abs(begin - float(cut.whisper[0, 0])) < 3
        changing.add(len(set(cut.labels.tolist())))
    assert min(paces) < 0.95
    assert max(paces) > 1.05
    assert 2 in changing


def test_where_nothing_is_to_change_a_part_comes_as_it_is() -> None:
    cut = hearing.cut(ramp(20), 12, STILL, torch.Generator().manual_seed(3))
    place = int(cut.whisper[0, 0])
    assert place % 12 == 0
    np.testing.assert_array_equal(cut.whisper[:, 0].numpy(), np.arange(place, place + 144))
    np.testing.assert_array_equal(cut.told[:, 0].numpy(), np.arange(place // 2, place // 2 + 72))
    heard = hearing.changed([cut], STILL, torch.Generator().manual_seed(1))
    torch.testing.assert_close(heard.mels[0].T, cut.whisper)


def test_batches_of_one_length_have_one_shape_however_many_clips_came() -> None:
    shapes = []
    for count in (1, 2, 5):
        cuts = hearing.cuts_of([ramp(20)] * count, 120, hearing.Changes(), torch.Generator().manual_seed(count))
        assert len(cuts) == 3
        heard = hearing.changed([one for _, one in cuts], hearing.Changes(), torch.Generator().manual_seed(count))
        shapes.append([part.shape for part in heard.tensors()])
    assert shapes[0] == shapes[1] == shapes[2]


def test_another_throat_moves_formants_by_one_factor() -> None:
    centres = whisper_centres()
    whisper = torch.from_numpy(-(((np.log(centres) - np.log(1000)) / 0.2) ** 2)).float().repeat(5, 1)
    changes = replace(STILL, stretched=1.0, stretch=0.34)
    moved = []
    for seed in range(20):
        found = hearing.another_throat(whisper, changes, torch.Generator().manual_seed(seed))
        moved.append(math.log(float(centres[int(found[0].argmax())]) / 1000))
    assert -0.4 < min(moved) < -0.2
    assert 0.2 < max(moved) < 0.4
    assert hearing.another_throat(whisper, STILL, torch.Generator().manual_seed(0)) is whisper


def test_nobody_knows_the_phonemes_of_a_clip_without_bounds() -> None:
    clip = ramp(12)
    assert set(hearing.labels_of(clip, 0, 72).tolist()) != {IGNORED}
    assert set(hearing.labels_of(replace(clip, record=replace(clip.record, bounds=())), 0, 72).tolist()) == {IGNORED}


@pytest.mark.parametrize("rows", [120, 144, 150])
def test_a_whole_clip_is_heard_to_its_last_group_and_no_further(rows: int) -> None:
    clip = ramp(12)
    heard = hearing.whole(Short(clip.groups, clip.record, rows=rows))
    assert heard.mels.shape == (1, 128, 144)
    assert heard.lengths.tolist() == [144]
    known = min(rows, 144)
    assert heard.mels[0, 0, :known].tolist() == list(range(known))
    assert not heard.mels[0, :, known:].any()


@pytest.mark.parametrize("count", [50, 72])
def test_rows_are_squeezed_evenly(count: int) -> None:
    rows = np.arange(60, dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    found = hearing.squeezed(rows, count)
    assert found.shape == (count, 2)
    steps = found[2:-2, 0].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 60 / count), atol=1e-4, rtol=0)
