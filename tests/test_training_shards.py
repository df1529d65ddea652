"""Shards of clips: whole or absent, and read back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from training.shards import Clip, is_whole, read_clips, read_records, write_shard


def clip(name: str, count: int) -> Clip:
    noise = np.random.default_rng(count).uniform(-1, 1, count).astype(np.float32)
    return Clip(name, f"speaker of {name}", noise, 24000, "en", "Grüße, “you”.", "ab", (0, 1, count))


def test_clips_come_back_as_they_were_but_for_rounding_to_16_bits(tmp_path: Path) -> None:
    written = [clip("a", 100), clip("b", 1), clip("c", 2400)]
    seconds = write_shard(tmp_path, 3, written)
    assert seconds == pytest.approx(2501 / 24000)
    for before, after in zip(written, read_clips(tmp_path), strict=True):
        np.testing.assert_allclose(after.samples, before.samples, atol=0.51 / 32767)
        assert (after.name, after.speaker, after.rate, after.text, after.phones, after.bounds) == (
            before.name,
            before.speaker,
            before.rate,
            before.text,
            before.phones,
            before.bounds,
        )


def test_a_shard_that_was_broken_off_does_not_exist(tmp_path: Path) -> None:
    def broken() -> Iterator[Clip]:
        yield clip("a", 10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, 0, broken())
    assert not is_whole(tmp_path, 0)
    assert read_records(tmp_path) == []


def test_samples_without_an_index_are_not_a_shard(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [clip("a", 10)])
    (tmp_path / "shard-00000.jsonl").unlink()
    assert not is_whole(tmp_path, 0)
    assert list(read_clips(tmp_path)) == []


def test_sound_beyond_full_scale_is_clipped_and_does_not_wrap_around(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [Clip("a", "s", np.array([2.0, -2.0], np.float32), 16000)])
    np.testing.assert_allclose(next(read_clips(tmp_path)).samples, [1.0, -1.0])


def test_the_same_clips_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_shard(tmp_path / folder, 0, [clip("a", 10), clip("b", 20)])
    one, two = (sorted((tmp_path / folder).iterdir()) for folder in ("one", "two"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
