"""Clips on disk: numbered shards, each one array of 16-bit samples and one line of JSON a clip.

A shard is written under other names and renamed, samples first and index last, so a shard whose index exists is
whole, whatever was killed while it was made. A shard's content must depend on its number and the seed alone; then
the same command, started again, goes on where it was stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

FULL_SCALE = 32767.0


@dataclass(frozen=True)
class Clip:
    """One clip of one speaker.

    samples: float32 (N,) in [-1, 1] at ``rate`` Hz.   text: as spoken, "" where unknown.
    phones: phonemes in the teachers' alphabet, "" where unknown.
    bounds: where the first phoneme begins and each of them ends, in samples; () where there was no teacher.
    """

    name: str
    speaker: str
    samples: np.ndarray
    rate: int
    lang: str = "en"
    text: str = ""
    phones: str = ""
    bounds: tuple[int, ...] = ()


@dataclass(frozen=True)
class ClipRecord:
    """A clip's line in the index: everything but the samples, and where those lie in the shard's array."""

    name: str
    speaker: str
    start: int
    count: int
    rate: int
    lang: str
    text: str
    phones: str
    bounds: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return self.count / self.rate


def shard_paths(folder: Path, number: int) -> tuple[Path, Path]:
    """Return the paths of a shard's samples and of its index."""
    return folder / f"shard-{number:05d}.npy", folder / f"shard-{number:05d}.jsonl"


def shard_numbers(folder: Path, ending: str) -> list[int]:
    """Return the numbers of the shards that have a file of that ending ("jsonl": the whole ones), in order."""
    return sorted(int(path.name[len("shard-") :].split(".")[0]) for path in folder.glob(f"shard-?????.{ending}"))


def save_array(path: Path, values: np.ndarray) -> None:
    """Write an array under another name and rename it: it exists wholly or not at all."""
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        np.save(file, values, allow_pickle=False)
    partial.replace(path)


def is_whole(folder: Path, number: int) -> bool:
    """Return whether the shard was written to its end."""
    return shard_paths(folder, number)[1].is_file()


def write_shard(folder: Path, number: int, clips: Iterable[Clip]) -> float:
    """Write a shard and return its seconds; it exists wholly or, if this is killed, not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces, lines, place, seconds = [], [], 0, 0.0
    for clip in clips:
        piece = np.clip(np.round(clip.samples * FULL_SCALE), -FULL_SCALE, FULL_SCALE).astype(np.int16)
        record = ClipRecord(
            clip.name, clip.speaker, place, len(piece), clip.rate, clip.lang, clip.text, clip.phones, tuple(clip.bounds)
        )
        lines.append(json.dumps(asdict(record), ensure_ascii=False))
        pieces.append(piece)
        place += len(piece)
        seconds += record.seconds
    samples, index = shard_paths(folder, number)
    save_array(samples, np.concatenate(pieces) if pieces else np.zeros(0, np.int16))
    partial = index.with_suffix(".part")
    partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    partial.replace(index)
    return seconds


def read_shard_records(folder: Path, number: int) -> list[ClipRecord]:
    """Return the records of one whole shard."""
    lines = shard_paths(folder, number)[1].read_text(encoding="utf-8").splitlines()
    fields = (json.loads(line) for line in lines)
    return [ClipRecord(**{**field, "bounds": tuple(field["bounds"])}) for field in fields]


def read_records(folder: Path) -> list[tuple[int, ClipRecord]]:
    """Return (shard number, record) of every clip in the whole shards of ``folder``, in order."""
    numbers = shard_numbers(folder, "jsonl")
    return [(number, record) for number in numbers for record in read_shard_records(folder, number)]


def read_samples(folder: Path, number: int, record: ClipRecord) -> np.ndarray:
    """Return a clip's samples, float32 (N,) in [-1, 1]; reads that part of the file only."""
    flat = np.load(shard_paths(folder, number)[0], mmap_mode="r", allow_pickle=False)
    return flat[record.start : record.start + record.count].astype(np.float32) / np.float32(FULL_SCALE)


def read_clips(folder: Path) -> Iterator[Clip]:
    """Yield every clip of a folder of shards, in order."""
    for number, record in read_records(folder):
        yield Clip(
            record.name,
            record.speaker,
            read_samples(folder, number, record),
            record.rate,
            record.lang,
            record.text,
            record.phones,
            record.bounds,
        )
