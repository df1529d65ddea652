"""Prepare the data: ``python -m training.prepare PART --work W --speech S``, a part being a set of clips.

Every part writes numbered shards (shards.py) under the work folder and may be killed at any time: the same command
goes on with the first missing shard. Clip n of a set depends on n and the seed alone, wherever a run began.
"""

from __future__ import annotations

import argparse
import io
import logging
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from training.command import begin
from training.shards import Clip, is_whole, read_shard_records, write_shard
from training.teachers import RATE, Disguise, Hibari, Kokoro
from training.texts import held_out, recordings, training_texts

log = logging.getLogger(__name__)

SEED = 1
HIBARI_SHARD, KOKORO_SHARD, RECORDING_SHARD = 200, 16, 200
"""Clips in a shard: a kill loses the work on one."""

DISGUISES = 400
MIXTURES = 400
PACKS_MIXED = 3
SPEEDS = (0.85, 1.2)
KOKORO_WORDS = (3, 16)
FEMALE_PITCH, MALE_PITCH = (0.85, 1.35), (0.45, 0.7)
"""Factors on hibari's pitch (a woman of about 200 Hz) that make women or children, and men."""


def hibari_clips(numbers: range, texts: list[str], teacher: Hibari) -> Iterator[Clip]:
    """Yield hibari's own voice reading texts in order, at varied speeds."""
    for number in numbers:
        rng = np.random.default_rng([SEED, 1, number])
        text = texts[number % len(texts)]
        spoken = teacher.say(text, float(rng.uniform(*SPEEDS)), number)
        yield Clip(f"hibari-{number:06d}", "hibari", spoken.samples, RATE, "en", text, spoken.phones, spoken.bounds)


def disguise_of(speaker: int) -> Disguise:
    """Return how disguised speaker ``speaker`` differs from hibari; every second is a man."""
    rng = np.random.default_rng([SEED, 2, speaker])
    male = speaker % 2 == 1
    pitch = rng.uniform(*(MALE_PITCH if male else FEMALE_PITCH))
    formants = rng.uniform(0.8, 0.97) if male else rng.uniform(0.92, 1.15)
    return Disguise(float(pitch), float(formants), float(rng.uniform(-1.0, 1.0)))


def disguised_clips(numbers: range, texts: list[str], teacher: Hibari) -> Iterator[Clip]:
    """Yield hibari disguised as many speakers, reading texts in reverse order."""
    for number in numbers:
        rng = np.random.default_rng([SEED, 3, number])
        speaker = number % DISGUISES
        text = texts[-1 - number % len(texts)]
        spoken = teacher.say(text, float(rng.uniform(*SPEEDS)), number, disguise_of(speaker))
        name = f"disguised-{number:06d}"
        yield Clip(name, f"disguised-{speaker:03d}", spoken.samples, RATE, "en", text, spoken.phones, spoken.bounds)


def mixture_of(speaker: int, packs: list[str]) -> dict[str, float]:
    """Return the style packs of mixed speaker ``speaker`` and their weights, which sum to 1."""
    rng = np.random.default_rng([SEED, 4, speaker])
    chosen = rng.choice(sorted(packs), PACKS_MIXED, replace=False)
    weights = rng.dirichlet(np.full(PACKS_MIXED, 0.7))
    return {str(name): float(weight) for name, weight in zip(chosen, weights, strict=True)}


def kokoro_clips(numbers: range, texts: list[str], phonemes: Callable[[str], str], teacher: Kokoro) -> Iterator[Clip]:
    """Yield mixed voices, one clip of each in turn."""
    fitting = [text for text in texts if KOKORO_WORDS[0] <= len(text.split()) <= KOKORO_WORDS[1]]
    for number in numbers:
        speaker = number % MIXTURES
        speed = float(np.random.default_rng([SEED, 5, speaker]).uniform(0.9, 1.15))
        text = fitting[number % len(fitting)]
        spoken = teacher.say(phonemes(text), mixture_of(speaker, list(teacher.packs)), speed)
        yield Clip(
            f"kokoro-{number:06d}",
            f"kokoro-{speaker:03d}",
            spoken.samples,
            RATE,
            "en",
            text,
            spoken.phones,
            spoken.bounds,
        )


def held_out_clips(hibari: Hibari, kokoro: Kokoro) -> Iterator[Clip]:
    """Yield the held-out texts, by hibari and by mixed voices that are no training voices; for judging alone."""
    for number, text in enumerate(held_out().texts):
        spoken = hibari.say(text, 1.0, number)
        yield Clip(
            f"heldout-hibari-{number:02d}", "hibari", spoken.samples, RATE, "en", text, spoken.phones, spoken.bounds
        )
        speaker = MIXTURES + number % 10
        spoken = kokoro.say(hibari.phonemes(text), mixture_of(speaker, list(kokoro.packs)), 1.0)
        yield Clip(
            f"heldout-kokoro-{number:02d}",
            f"kokoro-{speaker}",
            spoken.samples,
            RATE,
            "en",
            text,
            spoken.phones,
            spoken.bounds,
        )


def recording_clips(rows: list[dict[str, str]], speech: Path, phonemes: Callable[[str], str] | None) -> Iterator[Clip]:
    """Yield recordings at 16 kHz, or 24 kHz where the original had more; English ones with phonemes of their text."""
    tars: dict[str, tarfile.TarFile] = {}
    for row in rows:
        corpus = row["corpus"]
        if corpus not in tars:
            tars[corpus] = tarfile.open(speech / f"{corpus}.tar")  # noqa: SIM115 (open while its rows last)
        file = tars[corpus].extractfile(row["path"])
        assert file is not None
        samples, decoded = soundfile.read(io.BytesIO(file.read()), dtype="float32")
        rate = 16000 if int(row["original_hz"]) <= 16000 else RATE
        phones = phonemes(_cased(row["text"])) if phonemes and row["lang"] == "en" and row["text"] else ""
        yield Clip(
            Path(row["path"]).stem,
            row["speaker"],
            soxr.resample(samples, decoded, rate),
            rate,
            row["lang"],
            row["text"],
            phones,
        )
    for tar in tars.values():
        tar.close()


def run(folder: Path, size: int, total: int, clips: Callable[[range], Iterator[Clip]], hours: float) -> None:
    """Write the missing shards of ``total`` clips, ``size`` each, until ``hours`` of sound exist."""
    made = 0.0
    for number in range(-(-total // size)):
        if is_whole(folder, number):
            made += _seconds(folder, number)
            continue
        if made >= hours * 3600:
            break
        begun, busy = time.perf_counter(), time.process_time()
        seconds = write_shard(folder, number, clips(range(number * size, min(total, (number + 1) * size))))
        made += seconds
        log.info(
            "%s: shard %d, %.0f s of sound in %.0f s (%.0f s of CPU), %.2f h so far",
            folder.name,
            number,
            seconds,
            time.perf_counter() - begun,
            time.process_time() - busy,
            made / 3600,
        )
    log.info("%s: done, %.2f h", folder.name, made / 3600)


def _seconds(folder: Path, number: int) -> float:
    return sum(record.seconds for record in read_shard_records(folder, number))


def _cased(text: str) -> str:
    """Return an upper-case transcript in lower case, which the teachers' dictionary wants, with its I."""
    if not text.isupper():
        return text
    return " ".join("I" + word[1:] if word == "i" or word.startswith("i'") else word for word in text.lower().split())


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("hibari", "disguised", "kokoro", "recordings", "heldout"))
    parser.add_argument("--work", type=Path, required=True, help="folder for everything derived")
    parser.add_argument("--speech", type=Path, required=True, help="folder of the recordings, with index.tsv")
    parser.add_argument("--voices", type=Path, help="kokoro-js-1.2.1.tgz (kokoro, heldout)")
    parser.add_argument("--hours", type=float, default=1000.0, help="stop when so much sound exists")
    parser.add_argument("--threads", type=int, default=1, help="threads (kokoro only)")
    options = parser.parse_args()
    begin(options.work, f"prepare-{options.part}", options.threads)
    index = options.speech / "index.tsv"
    folder, hibari = options.work / options.part, Hibari()
    if options.part == "recordings":
        rows = recordings(index)
        run(
            folder,
            RECORDING_SHARD,
            len(rows),
            lambda numbers: recording_clips([rows[n] for n in numbers], options.speech, hibari.phonemes),
            options.hours,
        )
        return
    if options.part == "heldout":
        kokoro = Kokoro(options.voices, options.threads)
        run(folder, 1, 1, lambda numbers: held_out_clips(hibari, kokoro), options.hours)
        return
    texts = training_texts(index, SEED)
    if options.part == "kokoro":
        kokoro = Kokoro(options.voices, options.threads)
        total = 40 * MIXTURES
        run(
            folder,
            KOKORO_SHARD,
            total,
            lambda numbers: kokoro_clips(numbers, texts, hibari.phonemes, kokoro),
            options.hours,
        )
        return
    make = hibari_clips if options.part == "hibari" else disguised_clips
    run(folder, HIBARI_SHARD, len(texts), lambda numbers: make(numbers, texts, hibari), options.hours)


if __name__ == "__main__":
    main()
