"""What flow and language model learn from: ``python -m training.codes --work W --weights models/mini``.

Tells codes and voice of every clip, by the product's own encoders from the exported files: what was trained is not
needed for it any more.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stepaudio import audio, device
from stepaudio.loading import load_encoder
from stepaudio.tokens import interleave, rows
from stepaudio.types import Waveform
from stepaudio.weights import WeightsFolder, read_card
from training.command import begin
from training.data import RATE, read_examples
from training.shards import ClipRecord, read_samples, read_shard_records, save_array, shard_numbers, shard_paths

log = logging.getLogger(__name__)

SETS = ("recordings", "kokoro", "presets", "hibari", "disguised")
ROW_FRAMES = 2
"""Mel frames of one row."""


@dataclass(frozen=True, eq=False)
class Coded:
    """A clip's codes.

    rows: int16 (L, 2), as stepaudio.tokens.rows gives them.   voice: float32 (192,), the clip's speaker vector.
    offset: where the codes begin in the clip, in samples at 16 kHz (may be negative).
    """

    record: ClipRecord
    rows: np.ndarray
    voice: np.ndarray
    offset: int


@dataclass(frozen=True, eq=False)
class Spoken(Coded):
    """A clip as the flow sees it. mel: float16 (2 L, 81), the last column the pitch in Hz."""

    mel: np.ndarray


class Encoders:
    """The product's encoders, one after the other on one thread."""

    def __init__(self, weights: Path) -> None:
        runtime = device.choose("cpu", threads=1)
        self._encoder = load_encoder(WeightsFolder(weights, read_card(weights), "mini's encoders"), runtime)

    def encode(self, samples: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Return rows int16 (L, 2), voice float32 (192,) and offset of a clip (see Coded)."""
        limited = audio.limit_peak(Waveform(samples, rate))
        at_16k = audio.resample(limited, RATE).samples
        prepared = audio.prepare_for_codes(limited)
        codes = interleave(self._encoder.linguistic.encode(prepared), self._encoder.semantic.encode(prepared))
        offset = audio.loud_range(audio.normalize_peak(at_16k))[0] - audio.KEEP_BEFORE
        return rows(codes.numbers).astype(np.int16), self._encoder.speaker.encode(at_16k), offset


def encode_shard(encoders: Encoders, work: Path, name: str, number: int) -> None:
    """Write rows, their places and voices of one shard; the last file makes it whole."""
    folder = work / "codes" / name
    folder.mkdir(parents=True, exist_ok=True)
    records = read_shard_records(work / name, number)
    found = [encoders.encode(read_samples(work / name, number, one), one.rate) for one in records]
    path = shard_paths(folder, number)[0]
    save_array(path.with_suffix(".voices.npy"), np.stack([voice for _, voice, _ in found]))
    save_array(path.with_suffix(".places.npy"), np.asarray([(len(one), offset) for one, _, offset in found], np.int64))
    save_array(path, np.concatenate([one for one, _, _ in found]))


def read_codes(work: Path, name: str, codes: Path | None = None) -> Iterator[Coded]:
    """Yield the clips of a set whose codes were made.   codes: their folder, W/codes unless told otherwise."""
    folder = (codes or work / "codes") / name
    for number in shard_numbers(folder, "npy"):
        path = shard_paths(folder, number)[0]
        flat, places, voices = (
            np.load(path.with_suffix(suffix), allow_pickle=False) for suffix in (".npy", ".places.npy", ".voices.npy")
        )
        records, end = read_shard_records(work / name, number), 0
        for record, (count, offset), voice in zip(records, places, voices, strict=True):
            yield Coded(record, flat[end : end + count], voice, int(offset))
            end += count


def read_spoken(work: Path, name: str) -> Iterator[Spoken]:
    """Yield the clips of a set whose codes and acoustic rows were both made."""
    acoustic = {one.record.name: one for one in read_examples(work / name, work / "acoustic" / name)}
    for coded in read_codes(work, name):
        known = acoustic.get(coded.record.name)
        if known is not None:
            length = min(len(coded.rows), len(known.bank) // ROW_FRAMES)
            mel = known.bank[: ROW_FRAMES * length]
            yield Spoken(coded.record, coded.rows[:length], coded.voice, coded.offset, mel)


def main() -> None:
    """Tell codes and voices of every set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="the weights folder, models/mini")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    options = parser.parse_args()
    begin(options.work, "codes", 1)
    encoders = Encoders(options.weights)
    with torch.inference_mode():
        for name in options.sets:
            for number in shard_numbers(options.work / name, "jsonl"):
                if not shard_paths(options.work / "codes" / name, number)[0].is_file():
                    encode_shard(encoders, options.work, name, number)
                    log.info("%s: shard %d", name, number)


if __name__ == "__main__":
    main()
