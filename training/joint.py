"""Train both code encoders and the flow together: ``python -m training.joint {align,train,export} --work W``.

Apart, each encoder learned to tell phonemes through its own bottleneck, so the two streams of codes say much the same
twice, and what both get wrong nobody hears: recordings of unknown voices came back with the wrong words, however long
the flow was trained. Here both learn through their bottlenecks what the flow needs to give the mel back, besides the
phonemes that the two must tell together. What is begun with are the exported weights: no checkpoint is needed.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from stepaudio.tokens import (
    GROUP_SECONDS,
    LINGUISTIC_CODES,
    LINGUISTIC_PER_GROUP,
    PAD_LINGUISTIC,
    ROWS_PER_GROUP,
    SEMANTIC_ROW_OFFSET,
)
from stepaudio.vocoder.weights import FLOW_NAME, read_state
from stepaudio.weights import COSYVOICE, EDITX, TOKENIZER
from training import export, linguistic_export, semantic
from training.acoustic import MELS
from training.align import WORST, Alignments, aligned
from training.align import write as write_alignments
from training.captured import Batch
from training.codes import ROW_FRAMES, Spoken, read_spoken
from training.command import DEVICES, begin
from training.data import RATE, frame_count, kaldi_centres, read_examples, stretched, whisper_centres
from training.exported import exported_frames, exported_tokenizer
from training.flow import Trainee, prompt_of
from training.linguistic import CONFIG, Quantised, Recogniser, assign
from training.linguistic import augmented as other_bank
from training.phones import CLASSES, IGNORED, frame_labels, misread
from training.semantic import LEVELS, Tokenizer, code_count, gathered
from training.semantic import augmented as other_mel
from training.shards import ClipRecord
from training.sizes import flow_config
from training.texts import held_out
from training.trainer import Plan, best_weights, home, run
from training.windows import Layout, layout

log = logging.getLogger(__name__)

SETS = ("recordings", "kokoro", "presets", "hibari")
TOKENIZER_FILE, CHECKPOINT = "speech_tokenizer_v1.onnx", "checkpoint.pt"
SHORTEST, LONGEST = 36, 425
"""Rows of the clips that are trained on (1.4 to 17 s)."""

STEP_GROUPS = 12
"""Lengths are multiples of this, and so of the encoder's windows and of the flow's blocks."""

GROUP_FRAMES, GROUP_MELS = 12, ROW_FRAMES * ROWS_PER_GROUP
"""Frames of the filterbank, and of the log-mel, in one group of codes; those of the mel."""

EVERY = 4
"""Of hibari's clips only every so manieth is trained on: one voice is learned soon."""

BATCH_ROWS, STEPS, LEARNING_RATE, TURNED = 6000, 8000, 8e-4, 2e-3
PHONE_SHARE, COMMITMENT_SHARE = 1.0, 0.01
DISTURBED, STRETCHED = 0.5, 0.6
"""How often the encoders hear a clip as through another microphone, and as from another throat, while the mel to be
given back stays as it was."""

STRETCH = 0.16
"""Logarithm of the largest factor on the formants, up and down."""

HURRIED, HURRY = 0.5, 0.16
"""How often a clip is said at another speed, and the logarithm of the largest factor on that, up and down."""

FRAME_SECONDS, PAUSE_FRAMES = 0.02, 5
SEED = 9
PLAN = Plan(
    steps=STEPS, batch=BATCH_ROWS, rate=LEARNING_RATE, turned=TURNED, weight_decay=0.01, average=0.999, seed=SEED
)


@dataclass(frozen=True, eq=False)
class Whole:
    """A clip with all that is heard of it: filterbank (F, 80), Whisper's log-mel (T, 128), mel and voice (Spoken)."""

    spoken: Spoken
    bank: np.ndarray
    whisper: np.ndarray
    record: ClipRecord

    @property
    def groups(self) -> int:
        """How many whole groups of codes there are."""
        return len(self.spoken.rows) // ROWS_PER_GROUP


def read_wholes(work: Path, name: str) -> Iterator[Whole]:
    """Yield the clips of a set of which everything was made and which may be trained on."""
    banks, mels = (
        {one.record.name: one.bank for one in read_examples(work / name, work / folder / name)}
        for folder in ("banks", "mels")
    )
    known = Alignments(work, name)
    for spoken in read_spoken(work, name):
        record = spoken.record
        fits = SHORTEST <= len(spoken.rows) <= LONGEST and record.speaker not in held_out().speakers
        if fits and record.name in banks and record.name in mels:
            yield Whole(spoken, banks[record.name], mels[record.name], known.of(record))


@dataclass(frozen=True, eq=False)
class Heard(Batch):
    """What the encoders hear of a batch, and which rows of it are looked at.

    banks: filterbanks one after the other (N, 80), laid out as ``where`` tells.   mels: log-mels (B, 128, T) with zeros
    after them, and their lengths int32 (B,).   frame, state: int64 (B, L), where linguistic and semantic part of
    each row is found; the linguistic one past the last frame is padding.
    """

    banks: torch.Tensor
    where: Layout
    mels: torch.Tensor
    lengths: torch.Tensor
    frame: torch.Tensor
    state: torch.Tensor


@dataclass(frozen=True, eq=False)
class Lesson(Batch):
    """A batch: what is heard, the mel to be given back (B, T, 80), its prompt and noise, voices, phonemes (B, T)."""

    heard: Heard
    mel: torch.Tensor
    prompt: torch.Tensor
    noise: torch.Tensor
    voices: torch.Tensor
    labels: torch.Tensor


class Joint(nn.Module):
    """Both encoders with their bottlenecks, and the flow behind them.

    What the flow's table says of a code is the sum of a linear function of what the bottleneck let through, by which
    gradients reach the encoders, and a table of its own. Both begin so that the sum is the table that was exported.
    """

    def __init__(self, frames: Quantised, tokenizer: Tokenizer, trainee: Trainee) -> None:
        super().__init__()
        self.frames, self.tokenizer, self.trainee = frames, tokenizer, trainee
        table = trainee.flow.input_embedding.embedding.weight.detach()
        half = table.shape[1]
        self.of_frame, self.of_steps = nn.Linear(CONFIG.size, half), nn.Linear(len(LEVELS), half)
        self.of_frame_table = nn.Parameter(_fit(self.of_frame, frames.centroids, table[:LINGUISTIC_CODES]))
        self.of_steps_table = nn.Parameter(
            _fit(self.of_steps, all_steps(), table[LINGUISTIC_CODES:][SEMANTIC_ROW_OFFSET:])
        )
        self.pad = nn.Parameter(table[PAD_LINGUISTIC].clone())
        self.reader = nn.Linear(flow_config().encoder.output_size, CLASSES)

    def embedded(self, heard: Heard) -> torch.Tensor:
        """Return what the flow's encoder reads of a batch, (B, L, width)."""
        # The fused attention's backward pass is made for long rows: on windows it costs half of a step.
        with torch.autocast(heard.banks.device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            frames = self.frames.frames_of(heard.banks, heard.where).float()
        left = self.of_frame(frames) + self.of_frame_table[assign(frames.detach(), self.frames.centroids)[0]]
        with torch.autocast(heard.mels.device.type, torch.bfloat16):
            states, _ = self.tokenizer.encode(heard.mels, heard.lengths)
        neck = self.tokenizer.bottleneck
        steps = neck.steps(states.float())
        codes = ((steps.detach().round() + neck.middle) * neck.places).sum(-1).round().long()
        right = self.of_steps((steps + (steps.round() - steps).detach()) / neck.middle) + self.of_steps_table[codes]
        left = torch.cat((left, self.pad[None]))[heard.frame]
        right = right.flatten(0, 1)[heard.state]
        return torch.cat((left, right), -1)

    def table(self) -> torch.Tensor:
        """Return the flow's table of codes as it has become."""
        left = self.of_frame(self.frames.centroids) + self.of_frame_table
        right = self.of_steps(all_steps().to(left.device)) + self.of_steps_table
        return torch.cat((left, self.pad[None], right))


def _fit(layer: nn.Linear, inputs: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Set a linear layer to the best guess of ``wanted`` from ``inputs``, and return what is left over."""
    ones = torch.cat((inputs, torch.ones(len(inputs), 1)), 1)
    best = torch.linalg.lstsq(ones, wanted).solution
    with torch.no_grad():
        layer.weight.copy_(best[:-1].T)
        layer.bias.copy_(best[-1])
        return wanted - layer(inputs)


def all_steps() -> torch.Tensor:
    """Return what the semantic bottleneck lets through of every code, (codes, numbers), in -1..1."""
    columns, code = [], torch.arange(int(np.prod(LEVELS)))
    for level in LEVELS:
        columns.append((code % level - level // 2) / (level // 2))
        code = code // level
    return torch.stack(columns, 1).float()


def labels_of(clip: Whole, start: int, frames: int) -> np.ndarray:
    """Return the phoneme of every mel frame from ``start`` on, int64 (frames,); IGNORED where nobody knows."""
    record = clip.record
    if not record.bounds:
        return np.full(frames, IGNORED, np.int64)
    centres = (np.arange(start, start + frames) + 0.5) * FRAME_SECONDS * RATE + clip.spoken.offset
    return frame_labels(record.phones, np.asarray(record.bounds) * (RATE / record.rate), centres)


def heard_of(banks: list[torch.Tensor], mels: list[torch.Tensor], length: int) -> Heard:
    """Return the features of some clips, of which the first ``length`` rows are to be looked at.

    The last row of a group has no linguistic code (stepaudio.tokens.rows).
    """
    counts = [len(bank) for bank in banks]
    first = np.cumsum([0, *map(frame_count, counts)])[:, None]
    padded, lengths = gathered(mels)
    row = np.arange(length)
    group, place = row // ROWS_PER_GROUP, row % ROWS_PER_GROUP
    frame = np.where(place < LINGUISTIC_PER_GROUP, first[:-1] + group * LINGUISTIC_PER_GROUP + place, first[-1])
    state = np.arange(len(mels))[:, None] * code_count(padded.shape[2]) + row
    return Heard(torch.cat(banks), layout(counts), padded, lengths, torch.from_numpy(frame), torch.from_numpy(state))


@dataclass(frozen=True, eq=False)
class Cut:
    """A part of a clip: filterbank (12 G - 2, 80), log-mel (12 G, 128), mel (6 G, 80), phonemes int64 (6 G,)."""

    bank: torch.Tensor
    whisper: torch.Tensor
    mel: torch.Tensor
    labels: torch.Tensor


def cut(clip: Whole, groups: int, generator: torch.Generator) -> Cut:
    """Return ``groups`` groups from a random place of a clip on, as if there were no more of it.

    As often as HURRIED says they are said slower or faster: what lies in more or fewer frames is squeezed into as many.
    """

    def draw() -> float:
        return float(torch.rand((), generator=generator))

    frames = groups * GROUP_MELS
    hurry = math.exp(HURRY * (2 * draw() - 1)) if draw() < HURRIED else 1.0
    taken = min(round(frames * hurry), clip.groups * GROUP_MELS)
    start = int(draw() * (clip.groups - math.ceil(taken / GROUP_MELS) + 1))
    first, begin_ = start * GROUP_FRAMES, start * GROUP_MELS
    count = taken * GROUP_FRAMES // GROUP_MELS
    bank = np.asarray(clip.bank[first : first + count - 2], np.float32)
    whisper = np.asarray(clip.whisper[first : first + count], np.float32)
    mel = np.asarray(clip.spoken.mel[begin_ : begin_ + taken, :MELS], np.float32)
    # Codes may be made of a little more than there is: what the product pads with is as good as silence.
    bank = np.pad(bank, ((0, count - 2 - len(bank)), (0, 0)), "edge")
    whisper = np.pad(whisper, ((0, count - len(whisper)), (0, 0)))
    labels = labels_of(clip, begin_, taken)
    return Cut(
        squeezed(bank, groups * GROUP_FRAMES - 2),
        squeezed(whisper, groups * GROUP_FRAMES),
        squeezed(mel, frames),
        torch.from_numpy(labels[(np.arange(frames) * taken + taken // 2) // frames]),
    )


def squeezed(rows: np.ndarray, count: int) -> torch.Tensor:
    """Return ``count`` rows in place of as many as there are (T, bins)."""
    found = torch.from_numpy(rows)
    return found if len(rows) == count else F.interpolate(found.T[None], size=count, mode="linear")[0].T.contiguous()


def another_throat(
    heard: tuple[torch.Tensor, torch.Tensor], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return filterbank and log-mel of a clip as if its formants lay elsewhere, as often as STRETCHED says.

    What is to be given back stays as it was: so the codes need not tell whose voice it is, which the speaker vector
    and the prompt do (vocal tract length perturbation: Jaitly and Hinton, 2013).
    """
    if float(torch.rand((), generator=generator)) >= STRETCHED:
        return heard
    factor = math.exp(STRETCH * (2 * float(torch.rand((), generator=generator)) - 1))
    return stretched(heard[0], kaldi_centres(), factor), stretched(heard[1], whisper_centres(), factor)


def prepared(batch: list[Whole], generator: torch.Generator, rows: int = BATCH_ROWS) -> Lesson:
    """Return what the loss of a batch needs: as much of every clip as the shortest one has, about.

    Of one length there is always the same count of clips (the first ones once more, or not the last ones), so that few
    shapes come, for which a GPU has its plans ready.
    """

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    groups = min(clip.groups for clip in batch) // STEP_GROUPS * STEP_GROUPS
    batch = list(itertools.islice(itertools.cycle(batch), max(1, rows // (ROWS_PER_GROUP * groups))))
    cuts = [cut(clip, groups, generator) for clip in batch]
    pairs = [another_throat((one.bank, one.whisper), generator) for one in cuts]
    banks = [other_bank(bank, generator) if float(draw()) < DISTURBED else bank for bank, _ in pairs]
    mels = [other_mel(mel, generator) if float(draw()) < DISTURBED else mel for _, mel in pairs]
    mel = torch.stack([one.mel for one in cuts])
    prompted = (draw(len(batch)) * 0.5 * mel.shape[1] * (draw(len(batch)) > 0.1)).long()
    return Lesson(
        heard=heard_of(banks, mels, ROWS_PER_GROUP * groups),
        mel=mel,
        prompt=torch.stack([prompt_of(one, int(n), generator) for one, n in zip(mel, prompted, strict=True)]),
        noise=torch.randn(mel.shape, generator=generator),
        voices=torch.from_numpy(np.stack([clip.spoken.voice for clip in batch])),
        labels=torch.stack([one.labels for one in cuts]),
    )


def given_back(model: Joint, lesson: Lesson) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the mel that is expected (B, T, M), the features (B, T, D) and the conditions that it was made of."""
    place = lesson.mel.device
    embedded = model.embedded(lesson.heard)
    with torch.autocast(place.type, torch.bfloat16):
        features = model.trainee.flow.encoder(embedded)
        conditions = model.trainee.flow.beside(features, lesson.voices, lesson.prompt)
    begin_ = torch.zeros(len(lesson.mel), device=place)
    return lesson.noise + model.trainee(lesson.noise, conditions, begin_), features, conditions


def loss_of(model: Joint, lesson: Lesson) -> torch.Tensor:
    """Return how far the expected mel is off, and how badly the features tell the phonemes."""
    place = home(model)
    lesson = lesson.to(place)
    made, features, _ = given_back(model, lesson)
    with torch.autocast(place.type, torch.bfloat16):
        phones = model.reader(features)
    loss = F.l1_loss(made, lesson.mel) + PHONE_SHARE * misread(phones, lesson.labels)
    return loss + COMMITMENT_SHARE * model.frames.commitment


class _Found(Dataset[tuple[ClipRecord, float] | None]):
    """Where the phonemes of a clip lie, and the mean log-probability of that; None where the text does not fit."""

    def __init__(self, model: Joint, clips: list[Whole]) -> None:
        self._model, self._clips = model, clips

    def __len__(self) -> int:
        return len(self._clips)

    @torch.inference_mode()
    def __getitem__(self, place: int) -> tuple[ClipRecord, float] | None:
        clip = self._clips[place]
        record = clip.spoken.record
        bank, mel = (torch.from_numpy(np.asarray(one, np.float32)) for one in (clip.bank, clip.whisper))
        rows = self._model.embedded(heard_of([bank], [mel], clip.groups * ROWS_PER_GROUP))
        with torch.autocast(rows.device.type, torch.bfloat16):
            phones = self._model.reader(self._model.trainee.flow.encoder(rows))[0]
        scores = phones.float().log_softmax(-1).numpy()
        try:
            spelled, bounds, mean = aligned(scores, record.phones, discount=0.0, pause_answers=PAUSE_FRAMES)
        except ValueError:  # said faster than can be: the text is another one
            return None
        at_16k = (one * FRAME_SECONDS * RATE + clip.spoken.offset for one in bounds)
        # Codes may begin before the clip and end after it.
        samples = tuple(min(max(round(one * record.rate / RATE), 0), record.count) for one in at_16k)
        return replace(record, phones=spelled, bounds=samples), mean


def align(work: Path, weights: Path, workers: int) -> None:
    """Tell where the phonemes of the recordings lie, by what the flow's features tell of them (see training.align).

    Without that the recordings teach their sound alone, and codes that lead to about the right sound still miss words.
    """
    model = begun(weights)
    model.load_state_dict(best_weights(work / "joint" / CHECKPOINT))
    clips = [one for one in read_wholes(work, "recordings") if one.record.lang == "en" and one.record.phones]
    found = [
        one for one in DataLoader(_Found(model.eval(), clips), batch_size=None, num_workers=workers) if one is not None
    ]
    kept = [record for record, mean in found if mean >= WORST]
    write_alignments(work, kept)
    mean = float(np.mean([mean for _, mean in found]))
    log.info("%d of %d clips aligned, mean log-probability %.2f", len(kept), len(found), mean)


def begun(weights: Path) -> Joint:
    """Return the model as the weights folder has it."""
    trainee = Trainee(flow_config())
    trainee.flow.load_state_dict(read_state(weights / EDITX / COSYVOICE / FLOW_NAME))
    folder = weights / TOKENIZER
    return Joint(exported_frames(folder), exported_tokenizer(folder / TOKENIZER_FILE), trainee)


def training_clips(work: Path, every: int = EVERY) -> list[Whole]:
    """Return the clips of all sets that may be trained on; of hibari's every ``every``-th."""
    of = {"hibari": every}
    clips = [clip for name in SETS for clip in itertools.islice(read_wholes(work, name), 0, None, of.get(name, 1))]
    log.info("%d clips, %.1f h", len(clips), sum(clip.groups for clip in clips) * GROUP_SECONDS / 3600)
    log.info("%d clips with labels", sum(1 for clip in clips if clip.record.bounds))
    return clips


def train(work: Path, weights: Path, steps: int, every: int, device: str, workers: int, *, captured: bool) -> None:
    """Train until ``steps`` steps are done, from the last checkpoint if there is one, else from the weights folder.

    every: of hibari's clips so manieth.
    """
    clips = training_clips(work, every)
    out = work / "joint"
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    # It plans anew for every length, which takes longer than a step; a recorded step was planned once.
    torch.backends.cudnn.enabled = captured
    model = begun(weights).to(device)
    plan = replace(PLAN, steps=steps, workers=workers, captured=captured)
    sizes = [len(clip.spoken.rows) for clip in clips]
    run(model, clips, sizes, lambda lesson, _: loss_of(model, lesson), out / CHECKPOINT, plan, prepared)


def write(model: Joint, weights: Path) -> None:
    """Write both encoders and the flow into a weights folder."""
    frames = linguistic_export.rounded(model.frames)
    plain = Recogniser(CONFIG, frames.mean, frames.deviation)
    plain.load_state_dict(frames.state_dict(), strict=False)
    linguistic_export.write_folder(plain, frames.centroids, weights / TOKENIZER)
    teacher = semantic.Teacher()
    teacher.tokenizer.load_state_dict(model.tokenizer.state_dict())
    semantic.export(teacher, weights / TOKENIZER / TOKENIZER_FILE)
    export.halved(weights / TOKENIZER / TOKENIZER_FILE)
    torch.save(flow_of(model), weights / EDITX / COSYVOICE / FLOW_NAME)


def flow_of(model: Joint) -> dict[str, torch.Tensor]:
    """Return the flow's weights as they are exported, with the table of codes as it has become."""
    flow = model.trainee.flow
    with torch.no_grad():
        flow.input_embedding.embedding.weight.copy_(model.table())
    return export.half(flow.state_dict())


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("align", "train", "export"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="the weights folder to begin with, and to write to")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--every", type=int, default=EVERY, help="of hibari's clips so manieth")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches, or align")
    parser.add_argument("--captured", action="store_true", help="record every shape's step as a CUDA graph")
    options = parser.parse_args()
    begin(options.work, f"joint-{options.part}", options.threads)
    if options.part == "train":
        train(
            options.work,
            options.weights,
            options.steps,
            options.every,
            options.device,
            options.workers,
            captured=options.captured,
        )
    elif options.part == "align":
        align(options.work, options.weights, options.workers)
    else:
        model = begun(options.weights)
        model.load_state_dict(best_weights(options.work / "joint" / CHECKPOINT))
        write(model, options.weights)


if __name__ == "__main__":
    main()
