"""Train mini's linguistic encoder: ``python -m training.linguistic {banks,train,evaluate,export} --work W``.

A SANMEncoderChunkOpt, as FunASR has it, learns phonemes through the window-parallel pass: where a teacher told the
alignment, every 30 ms is labelled and the loss is cross-entropy; for recordings it is CTC. Each output frame (60 ms)
answers twice. Then k-means gives 1024 centroids (``export``), encoder and centroids are trained on together, phonemes
being read off the centroids (``quantise``; van den Oord et al., VQ-VAE, arXiv 1711.00937), and all is written as the
FunASR folder of the product (``export`` again). Training goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from stepaudio.encoder.sanm import SanmConfig, SanmEncoder
from training.align import read_aligned
from training.command import begin
from training.data import BINS, RATE, STACK, STRIDE, Example, bank_of, cache_features, times_shown
from training.judges import errors
from training.phones import CLASSES, classes, collapsed, frame_labels
from training.texts import held_out
from training.trainer import Plan, run
from training.windows import Layout, encode_together, layout

log = logging.getLogger(__name__)

CONFIG = SanmConfig(
    input_size=BINS * STACK,
    size=192,
    heads=4,
    linear_units=640,
    blocks=5,
    kernel_size=11,
    left_context=5,
    norm_eps=1e-12,
)
ANSWERS = 2
"""Decisions in one output frame of 60 ms."""

SETS = ("hibari", "disguised", "kokoro", "recordings")
LONGEST = 400
"""Output frames of the longest clip that is trained on (24 s)."""

BATCH_FRAMES = 2400
CTC_SHARE = 1.0
"""Weight of CTC beside cross-entropy. With 0.3 the recordings lagged far behind: mostly silence was answered."""

STEPS, LEARNING_RATE = 6500, 1.5e-3
QUANTISED_STEPS, QUANTISED_RATE = 1200, 4e-4
COMMITMENT_SHARE = 0.01
"""Of the mean squared distance of a frame (192 numbers) from its centroid."""

FOLLOW, IDLE = 0.99, 0.02
"""Share of the old centroid at each step; share of the mean use below which a centroid is given up."""

SEED = 1
STATISTICS_CLIPS = 2000


class Recogniser(nn.Module):
    """The encoder and a linear layer that reads phonemes off it; the layer is thrown away afterwards."""

    def __init__(self, config: SanmConfig, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        super().__init__()
        self.encoder = SanmEncoder(config)
        self.reader = nn.Linear(config.size, ANSWERS * CLASSES)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)

    def frames(self, banks: list[torch.Tensor]) -> torch.Tensor:
        """Return the encoder's output frames, (sum of n, size), of filterbanks (F, 80)."""
        together = torch.cat(banks)
        return self.frames_of(together, layout([len(bank) for bank in banks]).to(together.device))

    def frames_of(self, banks: torch.Tensor, where: Layout) -> torch.Tensor:
        """Return the same of filterbanks that lie one after the other as ``where`` tells."""
        stacked = ((banks - self.mean) / self.deviation)[where.stack].flatten(1)
        return encode_together(self.encoder, stacked, where)

    def forward(self, banks: list[torch.Tensor]) -> torch.Tensor:
        """Return logits, (sum of 2 n, CLASSES)."""
        return self.reader(self.dropout(self.frames(banks))).unflatten(-1, (ANSWERS, CLASSES)).flatten(0, 1)


class Quantised(Recogniser):
    """The recogniser with every frame replaced by its nearest centroid; the centroids follow the frames.

    Gradients pass the replacement unchanged. A centroid that is used too little moves to a frame of the batch.
    """

    centroids: torch.Tensor
    sizes: torch.Tensor

    def __init__(
        self, config: SanmConfig, mean: torch.Tensor, deviation: torch.Tensor, centroids: torch.Tensor
    ) -> None:
        super().__init__(config, mean, deviation)
        self.register_buffer("centroids", centroids.clone())
        self.register_buffer("sizes", torch.ones(len(centroids)))
        self.commitment = torch.zeros(())

    def frames_of(self, banks: torch.Tensor, where: Layout) -> torch.Tensor:
        """Return the centroids of the output frames; ``commitment`` is how far these were, on average."""
        found = super().frames_of(banks, where).float()
        with torch.autocast(found.device.type, enabled=False):  # half precision would not tell near centroids apart
            nearest = assign(found.detach(), self.centroids)[0]
        if self.training:
            self._follow(found.detach(), nearest)
        chosen = self.centroids[nearest]
        self.commitment = (found - chosen).square().sum(1).mean()
        return found + (chosen - found).detach()

    def codes(self, banks: list[torch.Tensor]) -> torch.Tensor:
        """Return the codes, int64 (sum of n,)."""
        where = layout([len(bank) for bank in banks])
        return assign(super().frames_of(torch.cat(banks), where).float(), self.centroids)[0]

    def _follow(self, found: torch.Tensor, nearest: torch.Tensor) -> None:
        # In place and without a look at any value, so that a step may be recorded (training.captured).
        counts = torch.zeros_like(self.sizes).index_add_(0, nearest, torch.ones_like(found[:, 0]))
        sums = torch.zeros_like(self.centroids).index_add_(0, nearest, found)
        before = self.sizes * FOLLOW
        sizes = before + (1 - FOLLOW) * counts
        moved = (before[:, None] * self.centroids + (1 - FOLLOW) * sums) / sizes[:, None].clamp(min=1e-6)
        idle = sizes < IDLE * sizes.mean()
        drawn = found[torch.randint(len(found), sizes.shape, device=found.device)]
        self.centroids.copy_(torch.where(idle[:, None], drawn, moved))
        self.sizes.copy_(torch.where(idle, sizes.mean(), sizes))


def assign(points: torch.Tensor, centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest centroid of each point and its squared distance."""
    nearest, distance = [], []
    norms = centroids.square().sum(1)
    for block in points.split(16384):
        best = (norms - 2 * block @ centroids.T).min(1)
        nearest.append(best.indices)
        distance.append(best.values + block.square().sum(1))
    return torch.cat(nearest), torch.cat(distance).clamp(min=0)


def augmented(bank: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a filterbank as another microphone and room might give it: tilt, noise, holes in time and frequency."""

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    bins = torch.linspace(-1, 1, BINS)
    bank = bank + draw(-1.5, 1.0) + draw(-1.2, 1.2) * bins + draw(-0.6, 0.6) * torch.cos(math.pi * draw(1, 4) * bins)
    if draw(0, 1) < 0.25:
        noise = draw(3.0, 11.0) + draw(-1.5, 1.5) * bins + 0.5 * torch.randn(bank.shape, generator=generator)
        bank = torch.logaddexp(bank, noise)
    bank = bank.clone()
    level = float(bank.mean())
    for _ in range(2):
        width, start = int(draw(0, 12)), int(draw(0, BINS - 12))
        bank[:, start : start + width] = level
    for _ in range(len(bank) // 200):
        width, start = int(draw(0, 12)), int(draw(0, len(bank) - 12))
        bank[start : start + width] = level
    return bank


def labels_of(example: Example) -> np.ndarray:
    """Return the label of every answer, int64 (2 * frames,); all IGNORED where there is no alignment."""
    record = example.record
    step = STRIDE * RATE / 100 / ANSWERS  # samples at 16 kHz of one answer
    centres = (np.arange(example.frames * ANSWERS) + 0.5) * step + example.offset
    bounds = np.asarray(record.bounds) * (RATE / record.rate)
    return frame_labels(record.phones if record.bounds else "", bounds, centres)


def loss_of(logits: torch.Tensor, examples: list[Example]) -> torch.Tensor:
    """Return the mean loss of an answer: cross-entropy where aligned, CTC where there is a text alone."""
    places = np.cumsum([0, *(example.frames * ANSWERS for example in examples)])
    aligned = [i for i, example in enumerate(examples) if example.record.bounds]
    spoken = [i for i, example in enumerate(examples) if not example.record.bounds]
    total = logits.new_zeros(())
    scores = logits.float().log_softmax(-1)
    if aligned:
        labels = torch.from_numpy(np.concatenate([labels_of(examples[i]) for i in aligned]))
        chosen = torch.cat([scores[places[i] : places[i + 1]] for i in aligned])
        total = total + F.nll_loss(chosen, labels, reduction="sum")
    if spoken:
        lengths = [int(places[i + 1] - places[i]) for i in spoken]
        rows = nn.utils.rnn.pad_sequence([scores[places[i] : places[i + 1]] for i in spoken])
        targets = [classes(examples[i].record.phones) for i in spoken]
        total = total + CTC_SHARE * F.ctc_loss(
            rows,
            torch.tensor([one for target in targets for one in target]),
            torch.tensor(lengths),
            torch.tensor([len(target) for target in targets]),
            reduction="sum",
            zero_infinity=True,
        )
    return total / len(logits)


def usable(example: Example, speakers: frozenset[str]) -> bool:
    """Return whether a clip may be trained on: English with phonemes that fit, of no held-out speaker, not too long."""
    count = len(classes(example.record.phones))
    fits = 0 < count <= 0.8 * ANSWERS * example.frames and example.frames <= LONGEST
    return fits and example.record.speaker not in speakers


def read_sets(work: Path, names: tuple[str, ...]) -> list[Example]:
    """Return the examples of some sets, as far as their filterbanks were made."""
    return [one for name in names for one in read_aligned(work, name, work / "banks" / name)]


def statistics(examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation, float32 (80,), of the filterbanks."""
    chosen = examples[:: max(1, len(examples) // STATISTICS_CLIPS)]
    rows = np.concatenate([np.asarray(one.bank[::7], np.float32) for one in chosen])
    return torch.from_numpy(rows.mean(0)), torch.from_numpy(rows.std(0))


def training_clips(work: Path) -> list[Example]:
    """Return the clips of a pass."""
    speakers = held_out().speakers
    found = [one for one in read_sets(work, SETS) if usable(one, speakers)]
    examples = [one for number, one in enumerate(found) for _ in range(times_shown(one, number))]
    log.info("%d clips, %.1f h", len(examples), sum(one.frames for one in examples) * 0.06 / 3600)
    return examples


def logits_of(model: Recogniser, batch: list[Example], generator: torch.Generator) -> torch.Tensor:
    """Return the logits of a batch, heard as through other microphones."""
    banks = [augmented(torch.from_numpy(np.asarray(one.bank, np.float32)), generator) for one in batch]
    # The fused attention's backward pass is made for long rows: on windows of 25 it costs half of a step.
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        logits: torch.Tensor = model(banks)
    return logits


def train(work: Path, out: Path, steps: int) -> None:
    """Train until ``steps`` steps are done, from the last checkpoint if there is one."""
    examples = training_clips(work)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model = Recogniser(CONFIG, *statistics(examples))
    log.info("%.2f M parameters in the encoder", sum(one.numel() for one in model.encoder.parameters()) / 1e6)

    def loss(batch: list[Example], generator: torch.Generator) -> torch.Tensor:
        return loss_of(logits_of(model, batch, generator), batch)

    plan = Plan(steps=steps, batch=BATCH_FRAMES, rate=LEARNING_RATE)
    run(model, examples, [one.frames for one in examples], loss, out / "checkpoint.pt", plan)


def quantise(work: Path, out: Path, steps: int, centroids: Path) -> None:
    """Train the encoder of the last checkpoint on, with phonemes read off the centroids, which begin as given."""
    examples = training_clips(work)
    torch.manual_seed(SEED)
    plain = load(out)
    model = Quantised(CONFIG, plain.mean, plain.deviation, torch.from_numpy(np.load(centroids, allow_pickle=False)))
    model.load_state_dict(plain.state_dict(), strict=False)

    def loss(batch: list[Example], generator: torch.Generator) -> torch.Tensor:
        logits = logits_of(model, batch, generator)
        return loss_of(logits, batch) + COMMITMENT_SHARE * model.commitment

    plan = Plan(steps=steps, batch=BATCH_FRAMES, rate=QUANTISED_RATE)
    run(model, examples, [one.frames for one in examples], loss, out / "quantised.pt", plan)


def load_quantised(out: Path) -> Quantised:
    """Return encoder and centroids as quantise() left them, to be used and not trained."""
    state = torch.load(out / "quantised.pt", weights_only=True)["model"]
    model = Quantised(CONFIG, torch.zeros(BINS), torch.ones(BINS), torch.zeros_like(state["centroids"]))
    model.load_state_dict(state)
    return model.eval()


def load(out: Path) -> Recogniser:
    """Return the model of the last checkpoint, to be used and not trained."""
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    model = Recogniser(CONFIG, torch.zeros(BINS), torch.ones(BINS))
    model.load_state_dict(state["model"])
    return model.eval()


def phone_errors(model: Recogniser, examples: list[Example]) -> float:
    """Return the phone error rate of the best answers, merged, against the phonemes of the texts."""
    wrong = total = 0
    with torch.inference_mode():
        for example in examples:
            best = model([torch.from_numpy(np.asarray(example.bank, np.float32))]).argmax(-1).tolist()
            spoken = classes(example.record.phones)
            wrong += errors([str(one) for one in spoken], [str(one) for one in collapsed(best)])
            total += len(spoken)
    return wrong / max(1, total)


def evaluate_model(model: Recogniser, work: Path, most: int = 200) -> dict[str, float]:
    """Return the phone error rate of held-out speakers' recordings and of held-out texts spoken by the teachers."""
    speakers = held_out().speakers
    recorded = [one for one in read_sets(work, ("recordings",)) if one.record.speaker in speakers]
    recorded = [one for one in recorded if one.record.phones and one.frames <= LONGEST]
    groups = {"held-out speakers": recorded[:: max(1, len(recorded) // most)]}
    for example in read_sets(work, ("heldout",)):
        groups.setdefault(f"held-out texts, {example.record.name.split('-')[1]}", []).append(example)
    return {name: round(phone_errors(model, examples), 4) for name, examples in groups.items()}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("banks", "train", "quantise", "evaluate", "export"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, help="the folder Step-Audio-Tokenizer (export writes it)")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    out = options.work / "linguistic"
    begin(options.work, f"linguistic-{options.part}", options.threads)
    if options.part == "banks":
        for name in (*SETS, "heldout"):
            log.info("%s: %d shards", name, cache_features(options.work / name, options.work / "banks" / name, bank_of))
    elif options.part == "train":
        train(options.work, out, options.steps or STEPS)
    elif options.part == "quantise":
        quantise(options.work, out, options.steps or QUANTISED_STEPS, options.to / "linguistic_tokenizer.npy")
    elif options.part == "evaluate":
        log.info("%s", json.dumps(evaluate_model(load(out), options.work)))
    else:
        from training.linguistic_export import export

        export(options.work, out, options.to)


if __name__ == "__main__":
    main()
