"""What the flow learns from: ``python -m training.codes --work W`` tells codes and voice of every clip.

Run it when linguistic encoder, semantic tokenizer and speaker encoder are trained. For speed
it goes through the trainers' networks and the features that were made for them; that the exported files give the same
is what the tests of the exports prove.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from stepaudio.tokens import interleave, rows
from training import linguistic, semantic, speaker
from training.data import Example, read_examples
from training.linguistic_export import rounded
from training.shards import ClipRecord, read_shard_records, shard_paths

log = logging.getLogger(__name__)

SETS = ("recordings", "kokoro", "hibari")
ROW_FRAMES = 2
"""Mel frames of one row."""


@dataclass(frozen=True, eq=False)
class Coded:
    """A clip's rows and voice, as in Spoken."""

    record: ClipRecord
    rows: np.ndarray
    voice: np.ndarray


@dataclass(frozen=True, eq=False)
class Spoken:
    """A clip as the flow sees it.

    rows: int16 (L, 2), as stepaudio.tokens.rows gives them. mel: float16 (2 L, 81), the last column the pitch in Hz.
    voice: float32 (192,), the speaker vector of the whole clip.
    """

    record: ClipRecord
    rows: np.ndarray
    mel: np.ndarray
    voice: np.ndarray


class Encoders:
    """The three trained encoders, reading the features that were made for them."""

    def __init__(self, work: Path) -> None:
        self.recogniser = rounded(linguistic.load_quantised(work / "linguistic"))
        self.tokenizer = semantic.load(work / "semantic").tokenizer
        self.voices = speaker.load(work / "speaker")

    @torch.inference_mode()
    def encode(self, bank: np.ndarray, mel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return rows int16 (L, 2) and voice float32 (192,) of a clip's filterbank and Whisper log-mel."""
        heard = torch.from_numpy(np.asarray(bank, np.float32))
        first = self.recogniser.codes([heard])
        feats, lengths = semantic.gathered([torch.from_numpy(np.asarray(mel, np.float32))])
        second = self.tokenizer(feats, lengths)[0]
        found = rows(interleave(first.numpy(), second.numpy()).numbers)
        voice = self.voices((heard - heard.mean(0))[None])[0]
        return found.astype(np.int16), voice.numpy()


def encode_shard(
    encoders: Encoders, work: Path, name: str, number: int, banks: list[Example], mels: list[Example]
) -> None:
    """Write rows, their places and voices of one shard; the last file makes it whole."""
    folder = work / "codes" / name
    folder.mkdir(parents=True, exist_ok=True)
    found = [encoders.encode(bank.bank, mel.bank) for bank, mel in zip(banks, mels, strict=True)]
    path = shard_paths(folder, number)[0]
    for suffix, value in (
        (".voices.npy", np.stack([voice for _, voice in found])),
        (".places.npy", np.asarray([len(one) for one, _ in found], np.int64)),
        (".npy", np.concatenate([one for one, _ in found])),
    ):
        partial = path.with_suffix(".part")
        with partial.open("wb") as file:
            np.save(file, value)
        partial.replace(path.with_suffix(suffix))


def read_codes(work: Path, name: str) -> Iterator[Coded]:
    """Yield the clips of a set whose codes were made."""
    for path in sorted((work / "codes" / name).glob("shard-?????.npy")):
        flat = np.load(path, allow_pickle=False)
        counts = np.load(path.with_suffix(".places.npy"), allow_pickle=False)
        voices = np.load(path.with_suffix(".voices.npy"), allow_pickle=False)
        records = read_shard_records(work / name, int(path.stem.removeprefix("shard-")))
        for record, count, end, voice in zip(records, counts, np.cumsum(counts), voices, strict=True):
            yield Coded(record, flat[end - count : end], voice)


def read_spoken(work: Path, name: str) -> Iterator[Spoken]:
    """Yield the clips of a set whose codes and acoustic rows were both made."""
    acoustic = {one.record.name: one for one in read_examples(work / name, work / "acoustic" / name)}
    for coded in read_codes(work, name):
        known = acoustic.get(coded.record.name)
        if known is not None:
            length = min(len(coded.rows), len(known.bank) // ROW_FRAMES)
            yield Spoken(coded.record, coded.rows[:length], known.bank[: ROW_FRAMES * length], coded.voice)


def features_of(work: Path, name: str) -> dict[int, tuple[list[Example], list[Example]]]:
    """Return filterbanks and log-mels of the clips of every shard of which both were made."""
    made = {
        kind: {int(path.stem.removeprefix("shard-")) for path in (work / kind / name).glob("shard-?????.npy")}
        for kind in ("banks", "mels")
    }
    found: dict[int, tuple[list[Example], list[Example]]] = {}
    streams = [read_examples(work / name, work / kind / name) for kind in ("banks", "mels")]
    for number in sorted(made["banks"] | made["mels"]):
        count = len(read_shard_records(work / name, number))
        banks, mels = (
            list(itertools.islice(stream, count)) if number in made[kind] else []
            for stream, kind in zip(streams, ("banks", "mels"), strict=True)
        )
        if banks and mels:
            found[number] = banks, mels
    return found


def main() -> None:
    """Tell codes and voices of every set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    work = options.work
    logging.basicConfig(filename=work / "logs" / "codes.log", level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    encoders = Encoders(work)
    for name in SETS:
        for number, (banks, mels) in features_of(work, name).items():
            if not shard_paths(work / "codes" / name, number)[0].is_file():
                encode_shard(encoders, work, name, number, banks, mels)
                log.info("%s: shard %d", name, number)


if __name__ == "__main__":
    main()
