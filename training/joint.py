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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stepaudio.encoder import funasr_folder
from stepaudio.tokens import LINGUISTIC_CODES, LINGUISTIC_PER_GROUP, PAD_LINGUISTIC, ROWS_PER_GROUP, SEMANTIC_ROW_OFFSET
from stepaudio.vocoder.weights import FLOW_NAME, read_state
from stepaudio.weights import COSYVOICE, EDITX, TOKENIZER
from training import export, linguistic_export, semantic
from training.acoustic import MELS
from training.align import WORST, Alignments, aligned
from training.align import write as write_alignments
from training.codes import ROW_FRAMES, Spoken, read_spoken
from training.command import DEVICES, begin
from training.data import RATE, read_examples
from training.flow import STEP_ROWS, Trainee, prompt_of
from training.linguistic import CONFIG, Quantised, Recogniser, assign
from training.linguistic import augmented as other_bank
from training.phones import CLASSES, IGNORED, frame_labels
from training.semantic import LEVELS, Tokenizer, gathered
from training.semantic import augmented as other_mel
from training.shards import ClipRecord
from training.sizes import flow_config
from training.texts import held_out
from training.trainer import Plan, best_weights, home, run

log = logging.getLogger(__name__)

SETS = ("recordings", "kokoro", "hibari")
TOKENIZER_FILE, CHECKPOINT = "speech_tokenizer_v1.onnx", "checkpoint.pt"
SHORTEST, LONGEST = 36, 425
"""Rows of the clips that are trained on (1.4 to 17 s)."""

EVERY = {"hibari": 4}
"""Of some sets only every so manieth clip is trained on: one voice is learned soon."""

BATCH_ROWS, CROP_ROWS, STEPS, LEARNING_RATE, TURNED = 750, 150, 12_000, 4e-4, 1e-3
PHONE_SHARE, COMMITMENT_SHARE = 0.6, 0.01
DISTURBED = 0.5
"""How often the encoders hear a clip as through another microphone, while the mel to be given back stays as it was."""

FRAME_SECONDS, PAUSE_FRAMES = 0.02, 5
SEED = 9


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

    def embedded(self, banks: list[torch.Tensor], mels: list[torch.Tensor], groups: list[int]) -> list[torch.Tensor]:
        """Return what the flow's encoder reads of every clip, (3 groups, width)."""
        # The fused attention's backward pass is made for long rows: on windows it costs half of a step.
        with torch.autocast(banks[0].device.type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            frames = self.frames.frames(banks).float()
        left = self.of_frame(frames) + self.of_frame_table[assign(frames.detach(), self.frames.centroids)[0]]
        lefts = left.split([(len(bank) + 2) // 6 for bank in banks])
        padded, lengths = gathered(mels)
        with torch.autocast(padded.device.type, torch.bfloat16):
            states, _ = self.tokenizer.encode(padded, lengths.to(padded.device))
        neck = self.tokenizer.bottleneck
        steps = neck.steps(states.float())
        codes = ((steps.detach().round() + neck.middle) * neck.places).sum(-1).round().long()
        right = self.of_steps((steps + (steps.round() - steps).detach()) / neck.middle) + self.of_steps_table[codes]
        return [self._side_by_side(a, b, count) for a, b, count in zip(lefts, right, groups, strict=True)]

    def _side_by_side(self, left: torch.Tensor, right: torch.Tensor, groups: int) -> torch.Tensor:
        first = left[: groups * LINGUISTIC_PER_GROUP].unflatten(0, (groups, LINGUISTIC_PER_GROUP))
        padded = torch.cat((first, self.pad.expand(groups, ROWS_PER_GROUP - LINGUISTIC_PER_GROUP, -1)), 1).flatten(0, 1)
        return torch.cat((padded, right[: groups * ROWS_PER_GROUP]), -1)

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


def loss_of(model: Joint, batch: list[Whole], generator: torch.Generator) -> torch.Tensor:
    """Return how far the expected mel is off, and how badly the features tell the phonemes."""
    place = home(model)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    def heard(rows: np.ndarray, other: object) -> torch.Tensor:
        clean = torch.from_numpy(np.asarray(rows, np.float32))
        return (other(clean, generator) if float(draw()) < DISTURBED else clean).to(place)  # type: ignore[operator]

    banks = [heard(clip.bank, other_bank) for clip in batch]
    mels = [heard(clip.whisper, other_mel) for clip in batch]
    rows = model.embedded(banks, mels, [clip.groups for clip in batch])
    length = min(CROP_ROWS, min(len(one) for one in rows)) // STEP_ROWS * STEP_ROWS
    starts = [ROWS_PER_GROUP * int(draw() * ((len(one) - length) // ROWS_PER_GROUP + 1)) for one in rows]
    embedded = torch.stack([one[start : start + length] for one, start in zip(rows, starts, strict=True)])
    frames = ROW_FRAMES * length
    mel = torch.stack(
        [
            torch.from_numpy(np.asarray(clip.spoken.mel[ROW_FRAMES * start :][:frames, :MELS], np.float32))
            for clip, start in zip(batch, starts, strict=True)
        ]
    )
    prompted = (draw(len(batch)) * 0.5 * frames * (draw(len(batch)) > 0.1)).long()
    prompt = torch.stack([prompt_of(one, int(count), generator) for one, count in zip(mel, prompted, strict=True)])
    noise, speaker = torch.randn(mel.shape, generator=generator), np.stack([clip.spoken.voice for clip in batch])
    labels = np.stack([labels_of(clip, ROW_FRAMES * n, frames) for clip, n in zip(batch, starts, strict=True)])
    mel, prompt, noise, voices, known = (
        one.to(place) for one in (mel, prompt, noise, torch.from_numpy(speaker), torch.from_numpy(labels))
    )
    with torch.autocast(place.type, torch.bfloat16):
        features = model.trainee.flow.encoder(embedded)
        conditions = model.trainee.beside(features, voices, prompt)
        phones = model.reader(features)
    begin_ = torch.zeros(len(batch), device=place)
    loss = F.l1_loss(noise + model.trainee(noise, conditions, begin_), mel)
    if (known != IGNORED).any():
        loss = loss + PHONE_SHARE * F.cross_entropy(phones.float().flatten(0, 1), known.flatten(), ignore_index=IGNORED)
    return loss + COMMITMENT_SHARE * model.frames.commitment


@torch.inference_mode()
def align(work: Path, weights: Path, device: str) -> None:
    """Tell where the phonemes of the recordings lie, by what the flow's features tell of them (see training.align).

    Without that the recordings teach their sound alone, and codes that lead to about the right sound still miss words.
    """
    model = begun(weights)
    model.load_state_dict(best_weights(work / "joint" / CHECKPOINT))
    model.to(device).eval()
    records, means = [], []
    for clip in read_wholes(work, "recordings"):
        record = clip.spoken.record
        if not (record.lang == "en" and record.phones):
            continue
        bank, mel = (torch.from_numpy(np.asarray(one, np.float32)).to(device) for one in (clip.bank, clip.whisper))
        (rows,) = model.embedded([bank], [mel], [clip.groups])
        with torch.autocast(rows.device.type, torch.bfloat16):
            phones = model.reader(model.trainee.flow.encoder(rows[None]))[0]
        scores = phones.float().log_softmax(-1).cpu().numpy()
        try:
            spelled, bounds, mean = aligned(scores, record.phones, discount=0.0, pause_answers=PAUSE_FRAMES)
        except ValueError:  # said faster than can be: the text is another one
            continue
        means.append(mean)
        if mean >= WORST:
            at_16k = (one * FRAME_SECONDS * RATE + clip.spoken.offset for one in bounds)
            # Codes may begin before the clip and end after it.
            samples = tuple(min(max(round(one * record.rate / RATE), 0), record.count) for one in at_16k)
            records.append(replace(record, phones=spelled, bounds=samples))
    write_alignments(work, records)
    log.info("%d of %d clips aligned, mean log-probability %.2f", len(records), len(means), float(np.mean(means)))


def exported_frames(folder: Path) -> Quantised:
    """Return encoder, statistics and centroids of an exported Step-Audio-Tokenizer."""
    inner = folder / linguistic_export.FUNASR_FOLDER
    lines = (inner / funasr_folder.CMVN).read_text(encoding="utf-8").splitlines()
    shift, scale = (
        torch.tensor([float(one) for one in line[line.index("[") + 1 : line.rindex("]")].split()])[
            : CONFIG.input_size // 7
        ]
        for line in lines
        if line.startswith("<LearnRateCoef>")
    )
    centroids = torch.from_numpy(np.load(folder / "linguistic_tokenizer.npy", allow_pickle=False))
    model = Quantised(CONFIG, -shift, 1 / scale, centroids)
    state = torch.load(inner / funasr_folder.WEIGHTS, weights_only=True)
    prefix = "encoder."
    encoder = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    model.encoder.load_state_dict(encoder)
    return model


def exported_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of an exported speech_tokenizer_v1.onnx.

    The exporter keeps the names of all weights but those of matrices, which are turned over and told by the bias that
    is added to their product. What stands behind the bottleneck was not exported; nothing here needs it.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    stored = {one.name: numpy_helper.to_array(one).astype(np.float32) for one in graph.initializer}
    stored |= {
        node.output[0]: stored[node.input[0]]
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in stored
    }
    products = {
        node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in stored
    }
    found = dict(stored)
    for node in graph.node:
        if node.op_type == "Add":
            bias = next((name for name in node.input if name.endswith(".bias")), None)
            product = next((name for name in node.input if name in products), None)
            if bias and product:
                found[bias.removesuffix("bias") + "weight"] = stored[products[product]].T
    model = Tokenizer()
    inside = [name for name in model.state_dict() if not name.startswith("bottleneck.outside.")]
    left = model.load_state_dict({name: torch.from_numpy(found[name].copy()) for name in inside}, strict=False)
    assert all(name.startswith("bottleneck.outside.") for name in left.missing_keys)
    return model


def begun(weights: Path) -> Joint:
    """Return the model as the weights folder has it."""
    trainee = Trainee(flow_config())
    trainee.flow.load_state_dict(read_state(weights / EDITX / COSYVOICE / FLOW_NAME))
    folder = weights / TOKENIZER
    return Joint(exported_frames(folder), exported_tokenizer(folder / TOKENIZER_FILE), trainee)


def train(work: Path, weights: Path, steps: int, device: str) -> None:
    """Train until ``steps`` steps are done, from the last checkpoint if there is one, else from the weights folder."""
    clips = [clip for name in SETS for clip in itertools.islice(read_wholes(work, name), 0, None, EVERY.get(name, 1))]
    log.info("%d clips, %.1f h", len(clips), sum(clip.groups for clip in clips) * 0.12 / 3600)
    out = work / "joint"
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model = begun(weights).to(device)
    plan = Plan(
        steps=steps, batch=BATCH_ROWS, rate=LEARNING_RATE, turned=TURNED, weight_decay=0.01, average=0.999, seed=SEED
    )
    sizes = [len(clip.spoken.rows) for clip in clips]
    run(model, clips, sizes, lambda batch, generator: loss_of(model, batch, generator), out / CHECKPOINT, plan)


def write(model: Joint, weights: Path) -> None:
    """Write both encoders into a weights folder, and the flow's table with the rest of the flow."""
    frames = linguistic_export.rounded(model.frames)
    plain = Recogniser(CONFIG, frames.mean, frames.deviation)
    plain.load_state_dict(frames.state_dict(), strict=False)
    linguistic_export.write_folder(plain, frames.centroids, weights / TOKENIZER)
    teacher = semantic.Teacher()
    teacher.tokenizer.load_state_dict(model.tokenizer.state_dict())
    semantic.export(teacher, weights / TOKENIZER / TOKENIZER_FILE)
    export.halved(weights / TOKENIZER / TOKENIZER_FILE)
    flow = model.trainee.flow
    with torch.no_grad():
        flow.input_embedding.embedding.weight.copy_(model.table())
    torch.save(export.half(flow.state_dict()), weights / EDITX / COSYVOICE / FLOW_NAME)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("align", "train", "export"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="the weights folder to begin with, and to write to")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    options = parser.parse_args()
    begin(options.work, f"joint-{options.part}", options.threads)
    if options.part == "train":
        train(options.work, options.weights, options.steps, options.device)
    elif options.part == "align":
        align(options.work, options.weights, options.device)
    else:
        model = begun(options.weights)
        model.load_state_dict(best_weights(options.work / "joint" / CHECKPOINT))
        write(model, options.weights)


if __name__ == "__main__":
    main()
