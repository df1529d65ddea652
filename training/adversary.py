"""What tells made sound from real sound, so that HiFT learns to be taken for it.

A network looks at spectra of several resolutions (UnivNet's, Jang et al., arXiv 2106.07889) and marks every stretch;
least squares (Mao et al., arXiv 1611.04076), and the distances of what the network sees on its way (Kumar et al.,
MelGAN, arXiv 1910.06711). Small, because it is trained on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

RESOLUTIONS = ((1024, 256), (512, 128), (256, 64))
CHANNELS = 12
SLOPE = 0.1
QUIETEST = 1e-3
"""Magnitude below which all is silence."""


class SpectrumJudge(nn.Module):
    """Marks for the spectrum of one resolution."""

    def __init__(self, size: int, hop: int) -> None:
        super().__init__()
        self.size, self.hop = size, hop
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        strides = (2, 2, 2, 1)
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(
                nn.Conv2d(CHANNELS if number else 1, CHANNELS, (7, 3), stride=(stride, 1), padding=(3, 1))
            )
            for number, stride in enumerate(strides)
        )
        self.last = nn.utils.parametrizations.weight_norm(nn.Conv2d(CHANNELS, 1, 3, padding=1))

    def forward(self, samples: torch.Tensor, bins: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return marks and what every layer saw of samples (B, N), in the lowest ``bins`` of 1000 of the spectrum."""
        complex_ = torch.stft(samples, self.size, self.hop, window=self.window, return_complex=True)
        parts = torch.view_as_real(complex_[:, : self.size // 2 * bins // 1000])
        x = (parts.square().sum(-1) + QUIETEST**2).log()[:, None] / 8 + 0.5  # about -1 .. 1
        seen = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            seen.append(x)
        return self.last(x), seen


class Adversary(nn.Module):
    """The judges of all resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.judges = nn.ModuleList(SpectrumJudge(size, hop) for size, hop in RESOLUTIONS)

    def forward(self, samples: torch.Tensor, bins: int) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Return what every judge says of samples (B, N); see SpectrumJudge."""
        with torch.autocast(samples.device.type, torch.bfloat16):
            return [judge(samples, bins) for judge in self.judges]


def own_loss(adversary: Adversary, made: torch.Tensor, true: torch.Tensor, bins: int) -> torch.Tensor:
    """Return the adversary's loss: real sound shall get 1, made sound 0."""
    total = made.new_zeros(())
    for (theirs, _), (ours, _) in zip(adversary(true, bins), adversary(made.detach(), bins), strict=True):
        total = total + (theirs.float() - 1).square().mean() + ours.float().square().mean()
    return total / len(RESOLUTIONS)


def loss_of_made(adversary: Adversary, made: torch.Tensor, true: torch.Tensor, bins: int) -> torch.Tensor:
    """Return the generator's loss: its marks shall be 1, and be given for the same reasons as those of real sound."""
    with torch.no_grad():
        real = adversary(true, bins)
    total = made.new_zeros(())
    for (marks, ours), (_, theirs) in zip(adversary(made, bins), real, strict=True):
        pairs = ((one.float(), other.float()) for one, other in zip(ours, theirs, strict=True))
        apart = [F.l1_loss(one, other) / other.abs().mean() for one, other in pairs]
        total = total + (marks.float() - 1).square().mean() + torch.stack(apart).mean() * 2
    return total / len(RESOLUTIONS)
