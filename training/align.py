"""Where the phonemes of the recordings lie: ``python -m training.align --work W``, after the linguistic encoder.

Recordings have texts but no times, so at first they teach by CTC, slowly. Once the recogniser can read, it tells where
each phoneme of the known text lies best (Viterbi), and in the next round recordings teach as the teachers' clips do,
by labels of every answer. Written beside the filterbanks; trainers use it where it exists.
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from training.command import begin
from training.data import RATE, STRIDE, Example, read_examples
from training.phones import SILENCE, classes
from training.shards import ClipRecord

log = logging.getLogger(__name__)

PAUSE = 3
"""Answers of silence between two words that count as a pause."""

WORST = -4.0
"""A clip whose answers agree less with its text than this (mean log-probability) is not believed."""

SILENCE_DISCOUNT = 1.5
"""Taken off silence's log-probability: a recogniser that learned by CTC is silent within phonemes, too."""


def states(phones: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return the states that a string of phonemes is walked through: class, whether it may be skipped, its character.

    Silence may stand before and after everything and in place of what is between words (character -1 at both ends).
    """
    found = [(SILENCE, True, -1)]
    for place, phone in enumerate(phones):
        if classes(phone):
            found.append((classes(phone)[0], False, place))
        elif phone == " " and not found[-1][1]:
            found.append((SILENCE, True, place))
    if not found[-1][1]:
        found.append((SILENCE, True, -1))
    kinds, optional, places = zip(*found, strict=True)
    return np.array(kinds), np.array(optional), list(places)


def best_path(scores: np.ndarray, optional: np.ndarray) -> np.ndarray:
    """Return the state at each step of the best walk, int64 (T,), for log-probabilities (T, S) of the states.

    A step stays, goes on by one state, or passes over one that is optional. Raises ValueError where the walk is
    longer than there are steps.
    """
    steps, count = scores.shape
    if steps < int((~optional).sum()):
        raise ValueError(f"{int((~optional).sum())} phonemes do not fit into {steps} answers.")
    value = np.full(count, -np.inf)
    value[0] = scores[0, 0]
    if count > 1 and optional[0]:
        value[1] = scores[0, 1]
    back = np.zeros((steps, count), np.int8)
    passable = np.concatenate(([False, False], optional[1:-1])) if count > 2 else np.zeros(count, bool)
    for step in range(1, steps):
        by_one = np.concatenate(([-np.inf], value[:-1]))
        by_two = np.where(passable, np.concatenate(([-np.inf] * min(2, count), value[:-2]))[:count], -np.inf)
        choices = np.stack((value, by_one, by_two))
        back[step] = choices.argmax(0)
        value = choices.max(0) + scores[step]
    state = count - 1
    if count > 1 and optional[-1] and value[-2] > value[-1]:
        state = count - 2
    path = np.empty(steps, np.int64)
    for step in range(steps - 1, -1, -1):
        path[step] = state
        state -= int(back[step, state])
    return path


def aligned(
    scores: np.ndarray, phones: str, discount: float = SILENCE_DISCOUNT, pause_answers: int = PAUSE
) -> tuple[str, list[int], float]:
    """Return phonemes, bounds in answers (one more than phonemes) and the mean log-probability of the best walk.

    scores: log-probabilities (T, CLASSES). A space at which the speaker paused comes back as a comma.
    """
    kinds, optional, places = states(phones)
    given = scores.copy()
    given[:, SILENCE] -= discount
    path = best_path(given[:, kinds], optional)
    starts = np.searchsorted(path, np.arange(len(kinds)), side="left")
    ends = np.searchsorted(path, np.arange(len(kinds)), side="right")
    of_character = {place: (int(a), int(b)) for place, a, b in zip(places, starts, ends, strict=True) if place >= 0}
    first = next((int(a) for place, a in zip(places, starts, strict=True) if place >= 0), 0)
    bounds, spelled = [first], ""
    for place, phone in enumerate(phones):
        start, end = of_character.get(place, (bounds[-1], bounds[-1]))
        pause = phone == " " and end - start >= pause_answers
        spelled += "," if pause else phone
        bounds.append(max(bounds[-1], end))
    mean = float(scores[np.arange(len(path)), kinds[path]].mean())
    return spelled, bounds, mean


def write(work: Path, records: list[ClipRecord]) -> None:
    """Write what was found out about the recordings."""
    path = work / "aligned" / "recordings.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    lines = [json.dumps({"name": one.name, "phones": one.phones, "bounds": one.bounds}) for one in records]
    partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    partial.replace(path)


def with_bounds(example: Example, phones: str, bounds: list[int], answers: int) -> Example:
    """Return an example whose record knows its alignment; ``answers``: in one output frame of the encoder."""
    step = STRIDE * RATE / 100 / answers
    samples = [round((bound * step + example.offset) * example.record.rate / RATE) for bound in bounds]
    return replace(example, record=replace(example.record, phones=phones, bounds=tuple(samples)))


def read_aligned(work: Path, name: str, cache: Path) -> list[Example]:
    """Return the examples of a set, with what ``main`` has found out about their bounds, if anything."""
    known = Alignments(work, name)
    return [replace(one, record=known.of(one.record)) for one in read_examples(work / name, cache)]


class Alignments:
    """What ``main`` has found out about the bounds of a set's clips, if anything."""

    def __init__(self, work: Path, name: str) -> None:
        path = work / "aligned" / f"{name}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self._known = {line["name"]: line for line in map(json.loads, lines)}

    def of(self, record: ClipRecord) -> ClipRecord:
        """Return the record with its bounds, or as it is where they are not known."""
        line = self._known.get(record.name)
        return record if line is None else replace(record, phones=line["phones"], bounds=tuple(line["bounds"]))


def main() -> None:
    """Align the recordings and write aligned/recordings.jsonl; all in one go, some minutes."""
    from training.linguistic import ANSWERS, LONGEST, load, usable

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    begin(options.work, "align", options.threads)
    model = load(options.work / "linguistic")
    records, means = [], []
    for example in read_examples(options.work / "recordings", options.work / "banks" / "recordings"):
        if not usable(example, frozenset()) or example.frames > LONGEST:
            continue
        with torch.inference_mode():
            logits = model([torch.from_numpy(np.asarray(example.bank, np.float32))])
        phones, bounds, mean = aligned(logits.log_softmax(-1).numpy(), example.record.phones)
        means.append(mean)
        if mean >= WORST:
            records.append(with_bounds(example, phones, bounds, ANSWERS).record)
    write(options.work, records)
    log.info("%d of %d clips aligned, mean log-probability %.2f", len(records), len(means), float(np.mean(means)))


if __name__ == "__main__":
    main()
