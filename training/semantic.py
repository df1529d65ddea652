"""Train mini's semantic tokenizer: ``python -m training.semantic {mels,train,evaluate,export} --work W``.

The recipe of S3 (Du et al., CosyVoice, arXiv 2407.05407): an encoder that knows speech by recognising it, and must tell
phonemes through a bottleneck of discrete codes, 25 a second. What knows speech are the first two layers of Whisper
tiny.en, which stay as they are: trained on, they knew our voices better and words of others worse. The bottleneck is
finite scalar quantisation (Mentzer et al., arXiv 2309.15505): no codebook, no dead codes. Exported with the signature
of speech_tokenizer_v1.onnx; only what stands before the bottleneck is exported.

Besides phonemes the codes must tell the spectral envelope and the course of the pitch, both less the clip's mean: an
encoder as small as this confuses phonemes, and what it took for the wrong one can still be said as it sounded.
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
from scipy.optimize import nnls
from torch import nn

from stepaudio.features import WHISPER_FFT, WHISPER_MELS, mel_filters
from training.align import read_aligned
from training.command import begin
from training.data import RATE, Example, cache_features, mel_of, read_examples, times_shown
from training.judges import errors
from training.phones import CLASSES, classes, collapsed, frame_labels
from training.stored import to_bytes
from training.texts import held_out
from training.trainer import Plan, run
from training.whisper import Encoder, Layer, tiny_en

log = logging.getLogger(__name__)

LAYERS, BANDS, HEARING, HEARING_HEADS = 2, 80, 384, 6
"""Of Whisper tiny.en: its first layers, the bands of its log-mel, the layers' width and heads."""

LONGEST_WAVE = 10_000
"""Over 2 pi: frames in the longest wave of Whisper's positions."""

POWER_FLOOR = 1e-10

WIDTH, HIDDEN, KERNEL = 192, 576, 5
BEFORE, AFTER = 2, 2
"""Blocks of our own before the bottleneck, which are exported, and after it."""

GAIN = 0.3

LEVELS = (5, 5, 5, 4, 4)
"""Steps of each number of the bottleneck: 2000 codes, which fit into the 4096 that the language model knows."""

SHRINK = 4
"""Mel frames of 10 ms in one code."""

ANSWERS = 2
SETS = ("hibari", "disguised", "kokoro", "recordings")
LONGEST = 2400
"""Mel frames of the longest clip that is trained on (24 s)."""

BATCH_FRAMES, STEPS, LEARNING_RATE = 12_000, 6000, 1.2e-3
CEPSTRA = 24
"""Numbers that tell the envelope of a frame: its cosine transform's first, loudness among them."""

ENVELOPE_SCALES = 0.6 * (1 + torch.arange(CEPSTRA)) ** 0.4
"""The first numbers vary by 2.9, the last by 0.2: this brings them nearer to each other, but not quite."""

ENVELOPE_SHARE, PITCH_SHARE = 1.0, 0.3
PITCH_SCALE = 4.0
"""Of log2 of the pitch over the clip's median: a fourth of an octave is 1."""

CTC_SHARE = 1.0
SEED = 2


class Block(nn.Module):
    """A depthwise convolution and a feed-forward part (Liu et al., ConvNeXt, arXiv 2201.03545)."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Conv1d(WIDTH, WIDTH, KERNEL, padding=KERNEL // 2, groups=WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.gain = nn.Parameter(torch.full((WIDTH,), GAIN))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return (B, L, WIDTH) for (B, L, WIDTH); mask: (B, L, 1), 1 where there is sound and 0 beyond its end."""
        near = self.near((x * mask).transpose(1, 2)).transpose(1, 2)
        out: torch.Tensor = x + self.gain * self.down(F.relu(self.up(self.norm(near))))
        return out


class Bottleneck(nn.Module):
    """Finite scalar quantisation: a few numbers, each rounded to one of a few steps."""

    def __init__(self) -> None:
        super().__init__()
        levels = torch.tensor(LEVELS)
        self.inside, self.outside = nn.Linear(WIDTH, len(LEVELS)), nn.Linear(len(LEVELS), WIDTH)
        reach = (levels - 1) * 1.001 / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        self.register_buffer("reach", reach, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("shift", torch.atanh(offset / reach), persistent=False)
        self.register_buffer("middle", (levels // 2).float(), persistent=False)
        places = torch.cat((torch.ones(1), levels.float().cumprod(0)[:-1]))
        self.register_buffer("places", places, persistent=False)

    def steps(self, x: torch.Tensor) -> torch.Tensor:
        """Return the bounded numbers, (..., 4), before rounding."""
        return torch.tanh(self.inside(x) + self.shift) * self.reach - self.offset

    def codes(self, x: torch.Tensor) -> torch.Tensor:
        """Return the codes, int64 (...)."""
        return ((self.steps(x).round() + self.middle) * self.places).sum(-1).round().long()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what comes out on the other side, (..., WIDTH); gradients pass the rounding unchanged."""
        steps = self.steps(x.float())
        return self.outside((steps + (steps.round() - steps).detach()) / self.middle)


class Tokenizer(nn.Module):
    """What is exported: log-mel (B, 128, T) and lengths int32 (B,) to codes int64 (B, ceil(T / 4))."""

    def __init__(self) -> None:
        super().__init__()
        self.bands = nn.Conv1d(WHISPER_MELS, BANDS, 1, bias=False)
        self.conv1 = nn.Conv1d(BANDS, HEARING, 3, padding=1)
        self.conv2 = nn.Conv1d(HEARING, HEARING, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(Layer(HEARING, HEARING_HEADS) for _ in range(LAYERS))
        self.heard = nn.LayerNorm(HEARING)
        self.pair = nn.Linear(2 * HEARING, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BEFORE))
        self.norm = nn.LayerNorm(WIDTH)
        self.bottleneck = Bottleneck()
        for part in self.frozen():
            part.requires_grad_(False)

    def frozen(self) -> tuple[nn.Module, ...]:
        """Return what is Whisper's and never trained."""
        return self.bands, self.conv1, self.conv2, self.layers

    def encode(self, mel: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (B, L, WIDTH) before the bottleneck, and its mask (B, L, 1)."""
        x, mask = self.hear(mel, lengths)
        x = self.heard(x) * mask
        x = F.pad(x, (0, 0, 0, 1))[:, : (x.shape[1] + 1) // 2 * 2]
        x = self.pair(x.reshape(x.shape[0], -1, 2 * HEARING))
        mask = F.pad(mask, (0, 0, 0, 1))[:, ::2][:, : x.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x), mask

    def hear(self, mel: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what Whisper's layers make of a log-mel, (B, ceil(T / 2), HEARING), and its mask (B, ..., 1)."""
        mask = self._mask(mel.shape[2], lengths)
        x = F.gelu(self.conv1(self.narrow(mel) * mask))
        x = F.gelu(self.conv2(x * mask)).transpose(1, 2)
        mask = self._mask(x.shape[1], (lengths + 1) // 2).transpose(1, 2)
        x = x + positions(x)
        for layer in self.layers:
            x = layer(x, mask)
        return x, mask

    def narrow(self, mel: torch.Tensor) -> torch.Tensor:
        """Return Whisper tiny.en's log-mel, (B, BANDS, T), of that of Whisper large (B, 128, T).

        Both are log10 of a power, plus 4, over 4.
        """
        with torch.autocast(mel.device.type, enabled=False):
            power = self.bands(torch.exp((4 * mel.float() - 4) * math.log(10)))
            return power.clamp(min=POWER_FLOOR).log() / (4 * math.log(10)) + 1

    def forward(self, feats: torch.Tensor, feats_length: torch.Tensor) -> torch.Tensor:
        """Return the codes."""
        return self.bottleneck.codes(self.encode(feats, feats_length)[0])

    def _mask(self, count: int, lengths: torch.Tensor) -> torch.Tensor:
        return (torch.arange(count, device=lengths.device)[None, None] < lengths[:, None, None]).float()


def positions(x: torch.Tensor) -> torch.Tensor:
    """Return Whisper's positions, (T, width), of (B, T, width): sines and cosines of waves from 2 pi frames up.

    Computed and not stored, or they would be a fifth of the file.
    """
    half = x.shape[2] // 2
    pace = torch.exp(-math.log(LONGEST_WAVE) / (half - 1) * torch.arange(half, device=x.device))
    angles = torch.arange(x.shape[1], device=x.device)[:, None] * pace
    return torch.cat((angles.sin(), angles.cos()), 1).to(x.dtype)


@torch.no_grad()
def begin_with(tokenizer: Tokenizer, whisper: Encoder) -> None:
    """Give a tokenizer Whisper's first layers, with the weights that will be stored (training.stored)."""
    tokenizer.bands.weight.copy_(band_shares()[:, :, None])
    tokenizer.conv1.load_state_dict(whisper.conv1.state_dict())
    tokenizer.conv2.load_state_dict(whisper.conv2.state_dict())
    for ours, theirs in zip(tokenizer.layers, whisper.layers, strict=False):
        ours.load_state_dict(theirs.state_dict())
    for part in tokenizer.frozen():
        to_bytes(part)


def band_shares() -> torch.Tensor:
    """Return how many times each of 128 bands best goes into each of 80 filters, none less than never; (80, 128)."""
    wide, narrow = (
        mel_filters(RATE, WHISPER_FFT, bands, 0.0, RATE / 2).double().numpy() for bands in (WHISPER_MELS, BANDS)
    )
    return torch.from_numpy(np.stack([nnls(wide.T, one)[0] for one in narrow])).float()


class Teacher(nn.Module):
    """The tokenizer and what learns to read phonemes, envelope and pitch off its codes; the latter is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = Tokenizer()
        self.blocks = nn.ModuleList(Block() for _ in range(AFTER))
        self.norm = nn.LayerNorm(WIDTH)
        self.reader = nn.Linear(WIDTH, ANSWERS * (CLASSES + CEPSTRA + 1))

    def forward(self, mel: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (B, 2 L, CLASSES) and envelope and pitch (B, 2 L, CEPSTRA + 1)."""
        x, mask = self.tokenizer.encode(mel, lengths)
        x = self.tokenizer.bottleneck(x)
        for block in self.blocks:
            x = block(x, mask)
        out = self.reader(self.norm(x)).float().unflatten(-1, (ANSWERS, -1)).flatten(1, 2)
        return out[..., :CLASSES], out[..., CLASSES:]


def code_count(frames: int) -> int:
    """Return how many codes ``frames`` mel frames give."""
    return -(-frames // SHRINK)


def gathered(mels: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-mels (T, 128) as one (B, 128, longest T) with zeros, and their lengths int32 (B,)."""
    lengths = torch.tensor([len(mel) for mel in mels], dtype=torch.int32)
    return nn.utils.rnn.pad_sequence(mels, batch_first=True).transpose(1, 2), lengths


def augmented(mel: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a log-mel (T, 128) as another microphone and room might give it."""

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    bins = torch.linspace(-1, 1, WHISPER_MELS)
    mel = mel + draw(-0.2, 0.1) + draw(-0.12, 0.12) * bins + draw(-0.06, 0.06) * torch.cos(math.pi * draw(1, 4) * bins)
    if draw(0, 1) < 0.5:  # (log10 + 4) / 4: noise adds before the logarithm
        noise = draw(-0.5, 0.45) + draw(-0.15, 0.15) * bins + 0.05 * torch.randn(mel.shape, generator=generator)
        scale = 4 * math.log(10)
        mel = torch.logaddexp(mel * scale, noise * scale) / scale
    mel = mel.clone()
    level = float(mel.mean())
    for _ in range(2):
        width, start = int(draw(0, 18)), int(draw(0, WHISPER_MELS - 18))
        mel[:, start : start + width] = level
    for _ in range(len(mel) // 200):
        width, start = int(draw(0, 12)), int(draw(0, len(mel) - 12))
        mel[start : start + width] = level
    return mel


def cosines() -> torch.Tensor:
    """Return the cosine transform, (WHISPER_MELS, CEPSTRA), orthonormal."""
    place = torch.arange(WHISPER_MELS)[:, None] + 0.5
    table = torch.cos(place * torch.arange(CEPSTRA) * math.pi / WHISPER_MELS) * math.sqrt(2 / WHISPER_MELS)
    table[:, 0] /= math.sqrt(2)
    return table


def envelope(mel: torch.Tensor) -> torch.Tensor:
    """Return the envelope at every answer, (2 L, CEPSTRA), of a log-mel (T, 128), less the clip's mean."""
    padded = F.pad(mel.T, (0, code_count(len(mel)) * SHRINK - len(mel)), mode="replicate").T
    rows = padded.unflatten(0, (-1, SHRINK // ANSWERS)).mean(1)
    return (rows - rows.mean(0)) @ cosines() * ENVELOPE_SCALES


def pitch_course(pitch: np.ndarray, count: int) -> torch.Tensor:
    """Return the course of the pitch at ``count`` answers, (count,), from Hz at every 20 ms; NaN where unvoiced."""
    out = np.full(count, np.nan, np.float32)
    voiced = pitch > 0
    if voiced.any():
        course = np.log2(np.maximum(pitch, 1.0) / np.median(pitch[voiced])) * PITCH_SCALE
        course = np.where(voiced, course.clip(-3, 3), np.nan)
        out[: len(course)] = course[:count]
    return torch.from_numpy(out)


def labels_of(example: Example) -> np.ndarray:
    """Return the label of every answer, int64 (2 L,); code j lies about mel frame 4 j, its answers beside that."""
    record = example.record
    hop = RATE / 100
    answers = np.arange(code_count(len(example.bank)) * ANSWERS)
    centres = ((answers - (ANSWERS - 1) / 2) * SHRINK / ANSWERS) * hop + example.offset
    bounds = np.asarray(record.bounds) * (RATE / record.rate)
    return frame_labels(record.phones if record.bounds else "", bounds, centres)


def loss_of(
    logits: torch.Tensor,
    sound: torch.Tensor,
    examples: list[Example],
    clean: list[torch.Tensor],
    pitches: list[np.ndarray | None],
) -> torch.Tensor:
    """Return the mean loss of an answer: cross-entropy where aligned, CTC for a text alone, envelope and pitch.

    pitches: Hz at every 20 ms of a clip, None where it is not known.
    """
    scores = logits.log_softmax(-1)
    total = logits.new_zeros(())
    for row, (example, mel, pitch) in enumerate(zip(examples, clean, pitches, strict=True)):
        count = code_count(len(mel)) * ANSWERS
        own = scores[row, :count]
        if example.record.bounds:
            total = total + F.nll_loss(own, torch.from_numpy(labels_of(example)), reduction="sum")
        else:
            target = torch.tensor(classes(example.record.phones))
            length, size = torch.tensor([len(own)]), torch.tensor([len(target)])
            total = total + CTC_SHARE * F.ctc_loss(
                own[:, None], target, length, size, reduction="sum", zero_infinity=True
            )
        wrong = (sound[row, :count, :CEPSTRA] - envelope(mel)).square().mean(1)
        total = total + ENVELOPE_SHARE * wrong.sum()
        if pitch is not None:
            course = pitch_course(pitch, count)
            wrong = (sound[row, :count, CEPSTRA] - course.nan_to_num()).square() * course.isfinite()
            total = total + PITCH_SHARE * wrong.sum()
    return total / sum(code_count(len(mel)) * ANSWERS for mel in clean)


def usable(example: Example, speakers: frozenset[str]) -> bool:
    """Return whether a clip may be trained on: English with phonemes that fit, of no held-out speaker, not too long."""
    count, frames = len(classes(example.record.phones)), len(example.bank)
    fits = 0 < count <= 0.8 * ANSWERS * code_count(frames) and 40 <= frames <= LONGEST
    return fits and example.record.speaker not in speakers


def read_sets(work: Path, names: tuple[str, ...]) -> list[Example]:
    """Return the examples of some sets, as far as their log-mels were made."""
    return [one for name in names for one in read_aligned(work, name, work / "mels" / name)]


def read_pitches(work: Path) -> dict[str, np.ndarray]:
    """Return the pitch of every clip whose acoustic rows were made, by name."""
    return {
        one.record.name: np.asarray(one.bank[:, -1], np.float32)
        for name in SETS
        for one in read_examples(work / name, work / "acoustic" / name)
    }


def train(work: Path, out: Path, steps: int) -> None:
    """Train until ``steps`` steps are done, from the last checkpoint if there is one."""
    speakers = held_out().speakers
    found = [one for one in read_sets(work, SETS) if usable(one, speakers)]
    examples = [one for number, one in enumerate(found) for _ in range(times_shown(one, number))]
    pitches = read_pitches(work)
    log.info("%d clips, %.1f h", len(examples), sum(len(one.bank) for one in examples) / 360_000)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model = Teacher()
    begin_with(model.tokenizer, tiny_en())
    log.info("%.2f M parameters in the tokenizer", sum(one.numel() for one in model.tokenizer.parameters()) / 1e6)

    def loss(batch: list[Example], generator: torch.Generator) -> torch.Tensor:
        clean = [torch.from_numpy(np.asarray(one.bank, np.float32)) for one in batch]
        mels, lengths = gathered([augmented(mel, generator) for mel in clean])
        with torch.autocast("cpu", torch.bfloat16):
            logits, sound = model(mels, lengths)
        return loss_of(logits, sound, batch, clean, [pitches.get(one.record.name) for one in batch])

    plan = Plan(steps=steps, batch=BATCH_FRAMES, rate=LEARNING_RATE, seed=SEED)
    run(model, examples, [len(one.bank) for one in examples], loss, out / "checkpoint.pt", plan)


def load(out: Path) -> Teacher:
    """Return the model of the last checkpoint, to be used and not trained."""
    model = Teacher()
    model.load_state_dict(torch.load(out / "checkpoint.pt", weights_only=True)["model"])
    return model.eval()


def evaluate(model: Teacher, work: Path, most: int = 200) -> dict[str, float]:
    """Return phone error rates, read off the codes, of held-out speakers and texts; and how many codes are used."""
    speakers = held_out().speakers
    recorded = [one for one in read_sets(work, ("recordings",)) if one.record.speaker in speakers]
    recorded = [one for one in recorded if one.record.phones and len(one.bank) <= LONGEST]
    groups = {"held-out speakers": recorded[:: max(1, len(recorded) // most)]}
    for example in read_sets(work, ("heldout",)):
        groups.setdefault(f"held-out texts, {example.record.name.split('-')[1]}", []).append(example)
    figures: dict[str, float] = {}
    used: list[torch.Tensor] = []
    for name, examples in groups.items():
        wrong = total = 0
        for example in examples:
            mels, lengths = gathered([torch.from_numpy(np.asarray(example.bank, np.float32))])
            with torch.inference_mode():
                best = model(mels, lengths)[0][0].argmax(-1).tolist()
                used.append(model.tokenizer(mels, lengths)[0])
            spoken = classes(example.record.phones)
            wrong += errors([str(one) for one in spoken], [str(one) for one in collapsed(best)])
            total += len(spoken)
        figures[name] = round(wrong / max(1, total), 4)
    share = torch.bincount(torch.cat(used), minlength=math.prod(LEVELS)).float()
    share = share / share.sum()
    figures["codes used"] = float((share > 0).sum())
    figures["bits of a code"] = round(float(-(share * share.clamp(min=1e-12).log2()).sum()), 2)
    return figures


def export(model: Teacher, path: Path) -> None:
    """Write the tokenizer with the signature of speech_tokenizer_v1.onnx."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        model.tokenizer.eval(),
        (torch.randn(1, WHISPER_MELS, 101), torch.tensor([101], dtype=torch.int32)),
        str(path),
        input_names=["feats", "feats_length"],
        output_names=["codes"],
        dynamic_axes={"feats": {2: "T"}, "codes": {1: "L"}},
        opset_version=17,
        dynamo=False,
    )


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("mels", "train", "evaluate", "export"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, help="the folder Step-Audio-Tokenizer to write (export)")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    out = options.work / "semantic"
    begin(options.work, f"semantic-{options.part}", 1 if options.part == "mels" else options.threads)
    if options.part == "mels":
        for name in (*SETS, "heldout"):
            log.info("%s: %d", name, cache_features(options.work / name, options.work / "mels" / name, mel_of))
    elif options.part == "train":
        train(options.work, out, options.steps)
    elif options.part == "evaluate":
        log.info("%s", json.dumps(evaluate(load(out), options.work)))
    else:
        export(load(out), options.to / "speech_tokenizer_v1.onnx")


if __name__ == "__main__":
    main()
