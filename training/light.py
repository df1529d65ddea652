"""Train the tokenizer behind a light decoder: ``python -m training.light {train,export} --work W --weights M``.

A step of joint training is mostly the flow's. What the codes must hold can be learned behind any decoder that gives the
mel back, and where there is no GPU a few convolutions do it in less than half of the time. Besides the mel's distance
and the phonemes it is the ear (training.ear) that says what must survive. The flow's table of codes learns with the
tokenizer; then the flow learns to read it: training.joint goes on from the exported weights.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from stepaudio.encoder.speaker import SPEAKER_SIZE
from training.acoustic import MEL_MEAN, MEL_SPREAD, MELS
from training.codes import ROW_FRAMES
from training.command import begin, learner, planned
from training.ear import EAR_SHARE, Ear
from training.ear import load as load_ear
from training.joint import (
    CHECKPOINT,
    EVERY,
    PLAN,
    SEED,
    Joint,
    Lesson,
    begun,
    prepared,
    training_clips,
    write,
)
from training.phones import CLASSES, misread
from training.sizes import flow_config
from training.trainer import Plan, best_weights, home, run

WIDTH, HIDDEN, KERNEL = 224, 672, 5
BEFORE, AFTER = 3, 3
"""Blocks at the codes' pace and at the mel's."""

GAIN = 0.3
STEPS, LEARNING_RATE, TURNED = 4000, 5e-4, 1.5e-3
PHONE_SHARE = 0.3
LISTENED = 0.4
"""Share of a batch's clips that the ear listens to: all of them would take as long as everything else."""


class Near(nn.Module):
    """A depthwise convolution over time as a sum of shifted rows: in half precision CPUs have no fast one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(KERNEL, 1, width) / math.sqrt(KERNEL))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, width) for as much."""
        count, padded = x.shape[1], F.pad(x, (0, 0, KERNEL // 2, KERNEL // 2))
        out = self.bias.to(x.dtype)
        for place, weight in enumerate(self.weight.to(x.dtype)):
            out = out + padded[:, place : place + count] * weight
        return out


class Block(nn.Module):
    """A depthwise convolution and a feed-forward part (Liu et al., ConvNeXt, arXiv 2201.03545)."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.norm = Near(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.gain = nn.Parameter(torch.full((WIDTH,), GAIN))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, WIDTH) for as much."""
        out: torch.Tensor = x + self.gain * self.down(F.relu(self.up(self.norm(self.near(x)))))
        return out


class Decoder(nn.Module):
    """Gives the mel back from what the flow's table tells of the codes, and reads phonemes, as yet of no voice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(flow_config().input_size, WIDTH)
        self.voice = nn.Linear(SPEAKER_SIZE, WIDTH)
        self.before, self.after = (nn.ModuleList(Block() for _ in range(count)) for count in (BEFORE, AFTER))
        self.finer = nn.Linear(WIDTH, ROW_FRAMES * WIDTH)
        self.reader, self.norm, self.last = nn.Linear(WIDTH, CLASSES), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, MELS)

    def forward(self, rows: torch.Tensor, voices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mel (B, 2 L, 80) and logits of phonemes (B, 2 L, CLASSES) of rows (B, L, D) and voices (B, 192)."""
        with torch.autocast(rows.device.type, torch.bfloat16):
            x = self.first(rows)
            for block in self.before:
                x = block(x)
            x = self.finer(x).unflatten(2, (ROW_FRAMES, WIDTH)).flatten(1, 2)
            phones = self.reader(x)
            x = x + self.voice(voices)[:, None]
            for block in self.after:
                x = block(x)
            mel = self.last(self.norm(x))
        return MEL_MEAN + MEL_SPREAD * mel.float(), phones


class Light(nn.Module):
    """The tokenizer as joint training has it, of which the flow waits, and the light decoder."""

    def __init__(self, joint: Joint) -> None:
        super().__init__()
        self.joint, self.decoder = joint, Decoder()
        joint.trainee.requires_grad_(False)
        joint.reader.requires_grad_(False)


def loss_of(model: Light, lesson: Lesson, ear: Ear) -> torch.Tensor:
    """Return how far the mel is off, how otherwise it is heard, and how badly its phonemes are told."""
    lesson = lesson.to(home(model))
    made, phones = model.decoder(model.joint.embedded(lesson.heard), lesson.voices)
    count = max(1, round(LISTENED * len(made)))
    loss = F.l1_loss(made, lesson.mel) + EAR_SHARE * ear.unlike(made[:count], lesson.mel[:count])
    return loss + PHONE_SHARE * misread(phones, lesson.labels)


def train(work: Path, weights: Path, every: int, device: str, plan: Plan) -> None:
    """Train by a plan, from the last checkpoint if there is one, else from the weights folder; see joint.train."""
    clips, ear = training_clips(work, every), load_ear(work).to(device)
    out = work / "light"
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model = Light(begun(weights)).to(device)
    sizes = [len(clip.spoken.rows) for clip in clips]
    run(model, clips, sizes, lambda lesson, _: loss_of(model, lesson, ear), out / CHECKPOINT, plan, prepared)


def main() -> None:
    """Run one part."""
    parser = learner(__doc__, STEPS)
    parser.add_argument("--every", type=int, default=EVERY, help="of hibari's clips so manieth")
    options = parser.parse_args()
    begin(options.work, f"light-{options.part}", options.threads)
    if options.part == "train":
        plan = replace(planned(options, PLAN), rate=LEARNING_RATE, turned=TURNED)
        train(options.work, options.weights, options.every, options.device, plan)
    else:
        model = Light(begun(options.weights))
        model.load_state_dict(best_weights(options.work / "light" / CHECKPOINT))
        write(model.joint, options.weights)


if __name__ == "__main__":
    main()
