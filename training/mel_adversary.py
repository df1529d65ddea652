"""What tells the mel that the flow expects from a true one, and reads its phonemes.

The expected mel is the mean of all that the codes leave open, so its formants are washed out and its sounds are hard
to tell apart. Networks that look at stretches of mel beside what the flow's encoder made of the codes (a conditional
adversary: Mirza and Osindero, arXiv 1411.1784) show where it differs from what is ever said, and a reader of phonemes
whether the right sound is still heard.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from training.acoustic import MEL_MEAN, MEL_SPREAD, MELS
from training.adversary import Judge
from training.phones import CLASSES

CHANNELS = 32
SCALES = (1, 2)
"""Frames that a judge takes together."""

WIDTH, DILATIONS = 160, (1, 2, 4, 1)


class StretchJudge(Judge):
    """Marks for stretches of mel, and of parts of its bands."""

    def __init__(self, scale: int) -> None:
        strides = ((1, 2), (1, 2), (2, 2), (1, 2))
        layers = [
            nn.Conv2d(CHANNELS if number else 2, CHANNELS, 5, stride=stride, padding=2)
            for number, stride in enumerate(strides)
        ]
        super().__init__(layers, nn.Conv2d(CHANNELS, 1, 3, padding=1))
        self.scale = scale

    def forward(self, mel: torch.Tensor, beside: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return marks and what every layer saw of mel (B, T, 80), with what it was made of (B, T, 80)."""
        x = torch.stack(((mel - MEL_MEAN) / MEL_SPREAD, beside), 1)
        return self.marked(F.avg_pool2d(x, (self.scale, 1)) if self.scale > 1 else x)


class MelAdversary(nn.Module):
    """The judges of all scales."""

    def __init__(self) -> None:
        super().__init__()
        self.judges = nn.ModuleList(map(StretchJudge, SCALES))

    def forward(self, mel: torch.Tensor, beside: torch.Tensor) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Return what every judge says of mel (B, T, 80); ``beside`` as StretchJudge has it."""
        with torch.autocast(mel.device.type, torch.bfloat16):
            return [judge(mel, beside) for judge in self.judges]


class Reader(nn.Module):
    """Reads phonemes off a mel, from some 0.4 s around every frame."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(MELS, WIDTH, 5, padding=2)
        self.layers = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 5, padding=2 * one, dilation=one) for one in DILATIONS)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in DILATIONS)
        self.last = nn.Linear(WIDTH, CLASSES)

    def forward(self, mel: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the classes' logits (B, T, CLASSES) of mel (B, T, 80) and what every layer saw."""
        seen = []
        with torch.autocast(mel.device.type, torch.bfloat16):
            x = self.first(((mel - MEL_MEAN) / MEL_SPREAD).transpose(1, 2))
            for layer, norm in zip(self.layers, self.norms, strict=True):
                x = x + F.gelu(norm(layer(x).transpose(1, 2))).transpose(1, 2)
                seen.append(x)
            return self.last(x.transpose(1, 2)), seen
