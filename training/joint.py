"""Train the semantic tokenizer and the flow together: ``python -m training.joint {train,export} --work W``.

Apart, the tokenizer learned to tell phonemes through its bottleneck, and what it got wrong nobody hears: recordings of
unknown voices came back with the wrong words, however long the flow was trained. Here it learns through its bottleneck
what the flow needs to give the mel back, besides the phonemes. What is begun with are the exported weights: no
checkpoint is needed. Linguistic codes have no part in it (see training.flow).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stepaudio.tokens import (
    GROUP_SECONDS,
    LINGUISTIC_CODES,
    PAD_LINGUISTIC,
    ROWS_PER_GROUP,
    SEMANTIC_ROW_OFFSET,
)
from stepaudio.vocoder.weights import FLOW_NAME, read_state
from stepaudio.weights import COSYVOICE, EDITX, TOKENIZER
from training import semantic
from training.acoustic import MELS
from training.align import Alignments
from training.captured import Batch
from training.codes import Spoken, read_spoken
from training.command import begin, learner, planned
from training.data import read_examples
from training.ear import EAR_SHARE, Ear
from training.ear import load as load_ear
from training.exported import exported_tokenizer
from training.flow import Trainee, prompt_of
from training.hearing import Changes, Heard, changed, cuts_of
from training.phones import CLASSES, misread
from training.semantic import LEVELS, Tokenizer
from training.shards import ClipRecord
from training.sizes import flow_config
from training.stored import compact, flow_file
from training.texts import held_out
from training.trainer import Plan, best_weights, home, run

log = logging.getLogger(__name__)

SETS = ("recordings", "kokoro", "presets", "hibari")
TOKENIZER_FILE, CHECKPOINT = "speech_tokenizer_v1.onnx", "checkpoint.pt"
SHORTEST, LONGEST = 36, 425
"""Rows of the clips that are trained on (1.4 to 17 s)."""

EVERY = 4
"""Of hibari's clips only every so manieth is trained on: one voice is learned soon."""

BATCH_ROWS, STEPS, LEARNING_RATE, TURNED = 6000, 8000, 8e-4, 2e-3
PHONE_SHARE = 1.0
CHANGES = Changes()
SEED = 9
PLAN = Plan(
    steps=STEPS, batch=BATCH_ROWS, rate=LEARNING_RATE, turned=TURNED, weight_decay=0.01, average=0.999, seed=SEED
)


@dataclass(frozen=True, eq=False)
class Whole:
    """A clip with all that is heard of it: Whisper's log-mel (T, 128), mel and voice (Spoken)."""

    spoken: Spoken
    whisper: np.ndarray
    record: ClipRecord

    @property
    def told(self) -> np.ndarray:
        """The mel to be given back, (2 L, 80)."""
        return self.spoken.mel[:, :MELS]

    @property
    def offset(self) -> int:
        """Where the codes begin, in samples at 16 kHz of the clip."""
        return self.spoken.offset

    @property
    def groups(self) -> int:
        """How many whole groups of codes there are."""
        return len(self.spoken.rows) // ROWS_PER_GROUP


def read_wholes(work: Path, name: str) -> Iterator[Whole]:
    """Yield the clips of a set of which everything was made and which may be trained on."""
    mels = {one.record.name: one.bank for one in read_examples(work / name, work / "mels" / name)}
    known = Alignments(work, name)
    for spoken in read_spoken(work, name):
        record = spoken.record
        fits = SHORTEST <= len(spoken.rows) <= LONGEST and record.speaker not in held_out().speakers
        if fits and record.name in mels:
            yield Whole(spoken, mels[record.name], known.of(record))


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
    """The tokenizer with its bottleneck, and the flow behind it.

    What the flow's table says of a code is the sum of a linear function of what the bottleneck let through, by which
    gradients reach the tokenizer, and a table of its own. Both begin so that the sum is the table that was exported.
    """

    def __init__(self, tokenizer: Tokenizer, trainee: Trainee) -> None:
        super().__init__()
        self.tokenizer, self.trainee = tokenizer, trainee
        table = trainee.flow.input_embedding.embedding.weight.detach()
        self.of_steps = nn.Linear(len(LEVELS), table.shape[1])
        self.of_steps_table = nn.Parameter(
            _fit(self.of_steps, all_steps(), table[LINGUISTIC_CODES:][SEMANTIC_ROW_OFFSET:])
        )
        self.unsaid = nn.Parameter(table[PAD_LINGUISTIC].clone())
        self.reader = nn.Linear(flow_config().encoder.output_size, CLASSES)

    def embedded(self, heard: Heard) -> torch.Tensor:
        """Return what the flow's encoder reads of a batch, (B, L, width)."""
        with torch.autocast(heard.mels.device.type, torch.bfloat16):
            states, _ = self.tokenizer.encode(heard.mels, heard.lengths)
        neck = self.tokenizer.bottleneck
        steps = neck.steps(states.float())
        codes = ((steps.detach().round() + neck.middle) * neck.places).sum(-1).round().long()
        semantic_ = self.of_steps((steps + (steps.round() - steps).detach()) / neck.middle) + self.of_steps_table[codes]
        return torch.cat((self.unsaid.expand_as(semantic_), semantic_), -1)

    def table(self) -> torch.Tensor:
        """Return the flow's table of codes as it has become."""
        semantic_ = self.of_steps(all_steps().to(self.unsaid.device)) + self.of_steps_table
        return torch.cat((self.unsaid.expand(LINGUISTIC_CODES + SEMANTIC_ROW_OFFSET, -1), semantic_))


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


def prepared(batch: list[Whole], generator: torch.Generator, rows: int = BATCH_ROWS) -> Lesson:
    """Return what the loss of a batch needs."""
    pairs = cuts_of(batch, rows, CHANGES, generator)
    cuts = [one for _, one in pairs]
    mel = torch.stack([one.told for one in cuts])
    share, prompted = torch.rand((2, len(cuts)), generator=generator)
    lengths = (share * 0.5 * mel.shape[1] * (prompted > 0.1)).long()
    return Lesson(
        heard=changed(cuts, CHANGES, generator),
        mel=mel,
        prompt=torch.stack([prompt_of(one, int(n), generator) for one, n in zip(mel, lengths, strict=True)]),
        noise=torch.randn(mel.shape, generator=generator),
        voices=torch.from_numpy(np.stack([clip.spoken.voice for clip, _ in pairs])),
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


def loss_of(model: Joint, lesson: Lesson, ear: Ear) -> torch.Tensor:
    """Return how far the expected mel is off, how otherwise it is heard, and how badly its features tell phonemes."""
    place = home(model)
    lesson = lesson.to(place)
    made, features, _ = given_back(model, lesson)
    with torch.autocast(place.type, torch.bfloat16):
        phones = model.reader(features)
    loss = F.l1_loss(made, lesson.mel) + EAR_SHARE * ear.unlike(made, lesson.mel)
    return loss + PHONE_SHARE * misread(phones, lesson.labels)


def begun(weights: Path) -> Joint:
    """Return the model as the weights folder has it."""
    trainee = Trainee(flow_config())
    trainee.flow.load_state_dict(read_state(weights / EDITX / COSYVOICE / FLOW_NAME))
    return Joint(exported_tokenizer(weights / TOKENIZER / TOKENIZER_FILE), trainee)


def training_clips(work: Path, every: int = EVERY) -> list[Whole]:
    """Return the clips of all sets that may be trained on; of hibari's every ``every``-th."""
    of = {"hibari": every}
    clips = [clip for name in SETS for clip in itertools.islice(read_wholes(work, name), 0, None, of.get(name, 1))]
    log.info("%d clips, %.1f h", len(clips), sum(clip.groups for clip in clips) * GROUP_SECONDS / 3600)
    log.info("%d clips with labels", sum(1 for clip in clips if clip.record.bounds))
    return clips


def train(work: Path, weights: Path, every: int, device: str, plan: Plan) -> None:
    """Train by a plan, from the last checkpoint if there is one, else from the weights folder.

    every: of hibari's clips so manieth.
    """
    clips, ear = training_clips(work, every), load_ear(work).to(device)
    out = work / "joint"
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    # It plans anew for every length, which takes longer than a step; a recorded step was planned once.
    torch.backends.cudnn.enabled = plan.captured
    model = begun(weights).to(device)
    sizes = [len(clip.spoken.rows) for clip in clips]
    run(model, clips, sizes, lambda lesson, _: loss_of(model, lesson, ear), out / CHECKPOINT, plan, prepared)


def write(model: Joint, weights: Path) -> None:
    """Write tokenizer and flow into a weights folder."""
    teacher = semantic.Teacher()
    teacher.tokenizer.load_state_dict(model.tokenizer.state_dict())
    semantic.export(teacher, weights / TOKENIZER / TOKENIZER_FILE)
    compact(weights / TOKENIZER / TOKENIZER_FILE)
    torch.save(flow_of(model), weights / EDITX / COSYVOICE / FLOW_NAME)


def flow_of(model: Joint) -> dict[str, torch.Tensor]:
    """Return the flow's weights as they are exported, with the table of codes as it has become."""
    flow = model.trainee.flow
    with torch.no_grad():
        flow.input_embedding.embedding.weight.copy_(model.table())
    return flow_file(flow.state_dict())


def main() -> None:
    """Run one part."""
    parser = learner(__doc__, STEPS)
    parser.add_argument("--every", type=int, default=EVERY, help="of hibari's clips so manieth")
    options = parser.parse_args()
    begin(options.work, f"joint-{options.part}", options.threads)
    if options.part == "train":
        train(options.work, options.weights, options.every, options.device, planned(options, PLAN))
    else:
        model = begun(options.weights)
        model.load_state_dict(best_weights(options.work / "joint" / CHECKPOINT))
        write(model, options.weights)


if __name__ == "__main__":
    main()
