"""Where the phonemes of the recordings lie: ``python -m training.reader --work W --weights models/mini``.

The flow's encoder makes features of codes. A linear reader of phonemes is fitted to those of clear speech, whose
teacher told the places; by it the known texts are laid along the recordings (Viterbi, training.align), and what was
found teaches the reader in turn, a few times. So no checkpoint is needed, and the recordings teach by labels.
Writes ``aligned/recordings.jsonl``; the log tells how many phonemes are misread.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stepaudio.tokens import LINGUISTIC_PER_GROUP, ROWS_PER_GROUP
from training.align import WORST, aligned, write
from training.command import DEVICES, begin
from training.data import RATE, frame_count, read_examples
from training.hearing import FRAME_SECONDS, labels_of, whole
from training.joint import LONGEST, SHORTEST, Joint, begun
from training.judges import errors
from training.phones import CLASSES, IGNORED, SILENCE, classes, collapsed
from training.shards import ClipRecord
from training.sizes import flow_config
from training.texts import held_out
from training.trainer import home

log = logging.getLogger(__name__)

CLEAR, RECORDED = "hibari", "recordings"
EVERY = 4
"""Of the clear speech, one voice, only every so manieth clip is listened to."""

ROUNDS, PASSES, FRAMES, LEARNING_RATE = 3, 2, 4096, 1e-2
PAUSE_FRAMES = 5
SEED = 11


@dataclass(frozen=True, eq=False)
class Known:
    """A clip as training.hearing wants it; told: what the flow's encoder makes of its codes, float16 (6 G, D).

    groups: how many whole groups of codes there are.
    """

    record: ClipRecord
    offset: int
    groups: int
    whisper: np.ndarray
    told: np.ndarray


@torch.inference_mode()
def listened(model: Joint, work: Path, name: str, every: int = 1) -> Iterator[Known]:
    """Yield every ``every``-th clip of a set with the features of its codes; see SHORTEST and LONGEST for which."""
    mels = {one.record.name: one for one in read_examples(work / name, work / "mels" / name)}
    for one in itertools.islice(read_examples(work / name, work / "banks" / name), 0, None, every):
        groups = frame_count(len(one.bank)) // LINGUISTIC_PER_GROUP
        clip = Known(one.record, one.offset, groups, mels[one.record.name].bank, np.zeros(0))
        if SHORTEST <= clip.groups * ROWS_PER_GROUP <= LONGEST:
            yield replace(clip, told=features(model, clip))


def features(model: Joint, clip: Known) -> np.ndarray:
    """Return what the flow's encoder makes of the codes of a clip, float16 (6 G, D)."""
    place = home(model)
    rows = model.embedded(whole(clip).to(place))
    with torch.autocast(place.type, torch.bfloat16):
        (found,) = model.trainee.flow.encoder(rows)
    return found.half().cpu().numpy()


def fit(reader: nn.Linear, clips: Sequence[Known]) -> None:
    """Teach the reader the phonemes of clips, as far as it is known where they lie."""
    rows = np.concatenate([clip.told for clip in clips])
    labels = np.concatenate([labels_of(clip, 0, len(clip.told)) for clip in clips])
    rows, labels = rows[labels != IGNORED], labels[labels != IGNORED]
    steps = max(1, PASSES * len(rows) // FRAMES)
    optimizer = torch.optim.AdamW(reader.parameters(), LEARNING_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(SEED)
    for _ in range(steps):
        chosen = np.sort(rng.integers(0, len(rows), FRAMES))
        logits = reader(torch.from_numpy(rows[chosen].astype(np.float32)))
        loss = F.cross_entropy(logits, torch.from_numpy(labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


@torch.inference_mode()
def scores_of(reader: nn.Linear, clip: Known) -> np.ndarray:
    """Return the log-probabilities of the classes in every frame of a clip, float32 (6 G, CLASSES)."""
    found: np.ndarray = reader(torch.from_numpy(clip.told.astype(np.float32))).log_softmax(-1).numpy()
    return found


def placed(record: ClipRecord, offset: int, scores: np.ndarray) -> tuple[ClipRecord, float] | None:
    """Return a record that knows where its phonemes lie, and the mean log-probability of that; None if they don't fit.

    scores: log-probabilities (T, CLASSES) of the classes in every frame.
    """
    try:
        spelled, bounds, mean = aligned(scores, record.phones, discount=0.0, pause_answers=PAUSE_FRAMES)
    except ValueError:  # said faster than can be: the text is another one
        return None
    at_16k = (one * FRAME_SECONDS * RATE + offset for one in bounds)
    # Codes may begin before the clip and end after it.
    samples = tuple(min(max(round(one * record.rate / RATE), 0), record.count) for one in at_16k)
    return replace(record, phones=spelled, bounds=samples), mean


def along(reader: nn.Linear, clips: Sequence[Known], pool: Executor) -> list[Known]:
    """Return the clips along which their texts could be laid; those that agree too little with them are left out."""
    spoken = [clip for clip in clips if clip.record.lang == "en" and clip.record.phones]
    scores = [scores_of(reader, clip) for clip in spoken]
    found = list(pool.map(placed, [one.record for one in spoken], [one.offset for one in spoken], scores, chunksize=64))
    fitting = [(clip, *one) for clip, one in zip(spoken, found, strict=True) if one is not None]
    kept = [replace(clip, record=record) for clip, record, mean in fitting if mean >= WORST]
    mean = float(np.mean([mean for _, _, mean in fitting]))
    log.info("%d of %d clips aligned, mean log-probability %.2f", len(kept), len(spoken), mean)
    return kept


def misread(reader: nn.Linear, clips: Sequence[Known]) -> tuple[float, float]:
    """Return the shares of wrong frames of phonemes, and of wrong phonemes of the best answers, merged."""
    frames = missed = phonemes = wrong = 0
    for clip in clips:
        best, labels = scores_of(reader, clip).argmax(1), labels_of(clip, 0, len(clip.told))
        spoken = (labels != SILENCE) & (labels != IGNORED)
        frames, missed = frames + int(spoken.sum()), missed + int((best != labels)[spoken].sum())
        expected = classes(clip.record.phones)
        phonemes, wrong = phonemes + len(expected), wrong + errors(expected, collapsed(best))
    return missed / max(1, frames), wrong / max(1, phonemes)


def fit_and_align(work: Path, weights: Path, device: str, workers: int) -> None:
    """Fit the reader, align the recordings, and write what was found."""
    speakers, model = held_out().speakers, begun(weights).to(device).eval()
    clear, recorded = list(listened(model, work, CLEAR, EVERY)), list(listened(model, work, RECORDED))
    torch.manual_seed(SEED)
    reader = nn.Linear(flow_config().encoder.output_size, CLASSES)
    fit(reader, clear)
    with ProcessPoolExecutor(workers) as pool:
        for _ in range(ROUNDS):
            found = along(reader, recorded, pool)
            ours = [clip for clip in found if clip.record.speaker not in speakers]
            theirs = [clip for clip in found if clip.record.speaker in speakers]
            fit(reader, [*clear, *ours])
            for name, clips in (("clear", clear), ("voices of the training", ours), ("held-out voices", theirs)):
                log.info("%s: %.3f of the frames, %.3f of the phonemes misread", name, *misread(reader, clips))
    write(work, [clip.record for clip in found])


def main() -> None:
    """Do all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="the weights folder, models/mini")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="processes that align")
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    options = parser.parse_args()
    begin(options.work, "reader", options.threads)
    fit_and_align(options.work, options.weights, options.device, options.workers)


if __name__ == "__main__":
    main()
