"""Train mini's speaker encoder: ``python -m training.speaker {train,evaluate,export} --work W``.

A small TDNN with squeeze-and-excitation and attentive statistics (Desplanques et al., ECAPA-TDNN, arXiv 2005.07143)
that must tell all voices apart: recordings, disguises and mixtures. It is exported with CAM++'s signature, filterbank
frames to 192 numbers. Neither judge of similarity has a part in it.

It reads the filterbanks made for the linguistic encoder (``training.linguistic banks``). Less their mean they differ
from the product's by the window alone (Hamming for Povey).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stepaudio.encoder.speaker import SPEAKER_SIZE, SpeakerEncoder
from stepaudio.features import FBANK_BINS
from training.command import begin
from training.data import Example, read_examples
from training.shards import read_records, read_samples
from training.texts import held_out
from training.trainer import Plan, run

log = logging.getLogger(__name__)

WIDTH, POOLED, SQUEEZED = 144, 384, 48
DILATIONS = (2, 3, 4)
SETS = ("hibari", "disguised", "kokoro", "recordings")
CROP = 250
"""Frames of 10 ms that are looked at in training."""

MOST_CLIPS = 80
"""Clips of one voice that are trained on, so that no voice outweighs the others."""

BATCH, STEPS, LEARNING_RATE = 96, 4000, 2e-3
SCALE, MARGIN = 30.0, 0.2
"""Of the additive angular margin softmax (Deng et al., ArcFace, arXiv 1801.07698)."""

SEED = 3


class Layer(nn.Module):
    """A dilated convolution between two pointwise ones, squeeze-and-excitation, a residual."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv1d(WIDTH, WIDTH, 1), nn.Conv1d(WIDTH, WIDTH, 1)
        self.look = nn.Conv1d(WIDTH, WIDTH, 3, dilation=dilation, padding=dilation, groups=4)
        self.norms = nn.ModuleList(nn.BatchNorm1d(WIDTH) for _ in range(3))
        self.squeeze, self.excite = nn.Linear(WIDTH, SQUEEZED), nn.Linear(SQUEEZED, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, WIDTH, T) for (B, WIDTH, T)."""
        y = self.norms[0](F.relu(self.enter(x)))
        y = self.norms[1](F.relu(self.look(y)))
        y = self.norms[2](F.relu(self.leave(y)))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean(2)))))
        return x + y * gate[:, :, None]


class Voices(nn.Module):
    """Filterbank frames (B, T, 80), less their mean, to voices (B, 192)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(FBANK_BINS, WIDTH, 5, padding=2)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.layers = nn.ModuleList(Layer(dilation) for dilation in DILATIONS)
        self.mix = nn.Conv1d(len(DILATIONS) * WIDTH, POOLED, 1)
        self.attend, self.weigh = nn.Conv1d(POOLED, SQUEEZED, 1), nn.Conv1d(SQUEEZED, POOLED, 1)
        self.pooled = nn.BatchNorm1d(2 * POOLED)
        self.last = nn.Linear(2 * POOLED, SPEAKER_SIZE)
        self.out = nn.BatchNorm1d(SPEAKER_SIZE)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the voices, not normalised."""
        x = self.norm(F.relu(self.first(input.transpose(1, 2) / 4)))
        seen = []
        for layer in self.layers:
            x = layer(x)
            seen.append(x)
        x = F.relu(self.mix(torch.cat(seen, 1)))
        weights = self.weigh(torch.tanh(self.attend(x))).softmax(2)
        mean = (x * weights).sum(2)
        deviation = ((x.square() * weights).sum(2) - mean.square()).clamp(min=1e-5).sqrt()
        return self.out(self.last(self.pooled(torch.cat((mean, deviation), 1))))


class Classifier(nn.Module):
    """The encoder and one direction for each training voice."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.voices = Voices()
        self.directions = nn.Parameter(torch.randn(count, SPEAKER_SIZE))

    def forward(self, banks: torch.Tensor) -> torch.Tensor:
        """Return cosines (B, count)."""
        return F.normalize(self.voices(banks).float()) @ F.normalize(self.directions).T


def margin_loss(cosines: torch.Tensor, voices: torch.Tensor) -> torch.Tensor:
    """Return the softmax loss with every true angle made larger by MARGIN."""
    true = cosines.gather(1, voices[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
    harder = torch.cos(true.acos() + MARGIN)
    harder = torch.where(true > math.cos(math.pi - MARGIN), harder, true - MARGIN * math.sin(MARGIN))
    return F.cross_entropy(cosines.scatter(1, voices[:, None], harder) * SCALE, voices)


def cropped(bank: np.ndarray, generator: torch.Generator) -> torch.Tensor:
    """Return CROP frames of a filterbank from a random place, less their mean, noise added."""

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    start = int(draw(0, max(1, len(bank) - CROP + 1)))
    rows = torch.from_numpy(np.asarray(bank[start : start + CROP], np.float32))
    rows = rows.repeat(-(-CROP // len(rows)), 1)[:CROP]
    if draw(0, 1) < 0.5:
        bins = torch.linspace(-1, 1, FBANK_BINS)
        noise = draw(2.0, 9.0) + draw(-1.5, 1.5) * bins + 0.5 * torch.randn(rows.shape, generator=generator)
        rows = torch.logaddexp(rows, noise)
    rows = rows - rows.mean(0)
    width, place = int(draw(0, 10)), int(draw(0, FBANK_BINS - 10))
    rows[:, place : place + width] = 0
    return rows


def training_clips(examples: list[Example], speakers: frozenset[str]) -> list[Example]:
    """Return at most MOST_CLIPS clips a voice, none of ``speakers``, none shorter than a second."""
    seen: Counter[str] = Counter()
    kept = []
    for example in examples:
        voice = example.record.speaker
        if voice in speakers or len(example.bank) < 100 or seen[voice] >= MOST_CLIPS:
            continue
        seen[voice] += 1
        kept.append(example)
    return kept


def train(work: Path, out: Path, steps: int) -> None:
    """Train until ``steps`` steps are done, from the last checkpoint if there is one."""
    found = [one for name in SETS for one in read_examples(work / name, work / "banks" / name)]
    examples = training_clips(found, held_out().speakers)
    out.mkdir(parents=True, exist_ok=True)
    names = out / "voices.json"
    if not names.is_file():  # a resumed run keeps its voices, though more may have been made since
        names.write_text(json.dumps(sorted({one.record.speaker for one in examples})), encoding="utf-8")
    number = {voice: place for place, voice in enumerate(json.loads(names.read_text(encoding="utf-8")))}
    examples = [one for one in examples if one.record.speaker in number]
    torch.manual_seed(SEED)
    model = Classifier(len(number))
    log.info("%d voices, %.2f M parameters", len(number), sum(one.numel() for one in model.voices.parameters()) / 1e6)

    def loss(batch: list[Example], generator: torch.Generator) -> torch.Tensor:
        banks = torch.stack([cropped(one.bank, generator) for one in batch])
        with torch.autocast("cpu", torch.bfloat16):
            cosines = model(banks)
        return margin_loss(cosines, torch.tensor([number[one.record.speaker] for one in batch]))

    plan = Plan(steps=steps, batch=BATCH, rate=LEARNING_RATE, weight_decay=0.05, seed=SEED)
    run(model, examples, [1] * len(examples), loss, out / "checkpoint.pt", plan)


def load(out: Path) -> Voices:
    """Return the encoder of the last checkpoint, to be used and not trained."""
    state = torch.load(out / "checkpoint.pt", weights_only=True)["model"]
    model = Classifier(len(state["directions"]))
    model.load_state_dict(state)
    return model.voices.eval()


def export(model: Voices, path: Path) -> None:
    """Write the encoder with the signature of campplus.onnx."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model.eval(),
        (torch.randn(1, 200, FBANK_BINS),),
        str(path),
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": {0: "B", 1: "T"}, "output": {0: "B"}},
        opset_version=17,
        dynamo=False,
    )


def nearest_rate(vectors: np.ndarray, voices: list[str]) -> float:
    """Return how often a clip is nearer (by cosine) to the mean of its voice's other clips than to any other voice."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    names = sorted(set(voices))
    own = np.array([names.index(voice) for voice in voices])
    sums = np.stack([unit[own == place].sum(0) for place in range(len(names))])
    hits = 0
    for vector, place in zip(unit, own, strict=True):
        others = sums.copy()
        others[place] -= vector
        others /= np.linalg.norm(others, axis=1, keepdims=True) + 1e-9
        hits += int((others @ vector).argmax() == place)
    return hits / len(unit)


def evaluate(path: Path, work: Path, clips: int = 15) -> dict[str, float]:
    """Return how well an exported encoder, run by the product, knows the held-out speakers by clips of 3 to 12 s."""
    from stepaudio import audio
    from stepaudio.types import Waveform

    encoder = SpeakerEncoder(path, device=torch.device("cpu"), threads=1)
    seen: Counter[str] = Counter()
    vectors, voices = [], []
    for number, record in read_records(work / "recordings"):
        if record.speaker not in held_out().speakers or not 3 <= record.seconds <= 12 or seen[record.speaker] >= clips:
            continue
        seen[record.speaker] += 1
        limited = audio.limit_peak(Waveform(read_samples(work / "recordings", number, record), record.rate))
        vectors.append(encoder.encode(audio.resample(limited, audio.CODE_RATE).samples))
        voices.append(record.speaker)
    return {"clips": float(len(voices)), "nearest of ten": round(nearest_rate(np.stack(vectors), voices), 4)}


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("train", "evaluate", "export"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, help="the folder CosyVoice-300M-25Hz to write to or to judge")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    out = options.work / "speaker"
    begin(options.work, f"speaker-{options.part}", options.threads)
    if options.part == "train":
        train(options.work, out, options.steps)
    elif options.part == "export":
        export(load(out), options.to / "campplus.onnx")
    else:
        log.info("%s", json.dumps(evaluate(options.to / "campplus.onnx", options.work)))


if __name__ == "__main__":
    main()
