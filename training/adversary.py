"""What tells made things from real ones: generators learn to be taken for real; and the judges of HiFT's sound.

Networks look at spectra of several resolutions (UnivNet's, Jang et al., arXiv 2106.07889) and at every second, third,
fifth ... sample (HiFi-GAN's, Kong et al., arXiv 2010.05646), and mark every stretch; least squares (Mao et al., arXiv
1611.04076), and the distances of what the networks see on their way (Kumar et al., MelGAN, arXiv 1910.06711).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from training.trainer import home, share_gradients

RESOLUTIONS = ((1024, 256), (512, 128), (256, 64))
PERIODS = (2, 3, 5, 7, 11)
CHANNELS = 24
SLOPE = 0.1
LOW_SHARE = 2 / 3
"""Of the rate of the samples: at which those are judged of which every so manieth is looked at. Two thirds of 24 kHz
hold all that a recording of 16 kHz can say."""

QUIETEST = 1e-3
"""Magnitude below which all is silence."""


class Judge(nn.Module):
    """Convolutions that mark what they are given."""

    def __init__(self, layers: list[nn.Conv2d], last: nn.Conv2d) -> None:
        super().__init__()
        normalise = nn.utils.parametrizations.weight_norm
        self.layers, self.last = nn.ModuleList(map(normalise, layers)), normalise(last)

    def marked(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return marks and what every layer saw of x (B, 1, H, W)."""
        seen = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), SLOPE)
            seen.append(x)
        return self.last(x), seen


class SpectrumJudge(Judge):
    """Marks for the spectrum of one resolution."""

    def __init__(self, size: int, hop: int) -> None:
        layers = [
            nn.Conv2d(CHANNELS if number else 1, CHANNELS, (7, 3), stride=(stride, 1), padding=(3, 1))
            for number, stride in enumerate((2, 2, 2, 1))
        ]
        super().__init__(layers, nn.Conv2d(CHANNELS, 1, 3, padding=1))
        self.size, self.hop = size, hop
        self.register_buffer("window", torch.hann_window(size), persistent=False)

    def forward(self, samples: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return marks and what every layer saw of samples (B, N), of the spectrum's lowest share ``known`` (B,)."""
        complex_ = torch.stft(samples, self.size, self.hop, window=self.window, return_complex=True)
        parts = torch.view_as_real(complex_[:, : self.size // 2])
        place = torch.arange(self.size // 2, device=samples.device) / (self.size // 2)
        x = (parts.square().sum(-1) + QUIETEST**2).log()[:, None] / 8 + 0.5  # about -1 .. 1
        return self.marked(x * (place < known[:, None])[:, None, :, None])


class PeriodJudge(Judge):
    """Marks for samples that stand in columns: a row of them is one period long."""

    def __init__(self, period: int) -> None:
        widths = (1, CHANNELS, 2 * CHANNELS, 4 * CHANNELS, 4 * CHANNELS)
        layers = [
            nn.Conv2d(inputs, outputs, (5, 1), stride=(3, 1), padding=(2, 0))
            for inputs, outputs in itertools.pairwise(widths)
        ]
        super().__init__(layers, nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))
        self.period = period

    def forward(self, samples: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return marks and what every layer saw of samples (B, N)."""
        rows = samples.shape[1] // self.period
        return self.marked(samples[:, : rows * self.period].unflatten(1, (rows, self.period))[:, None])


class Adversary(nn.Module):
    """The judges of all resolutions and periods."""

    def __init__(self) -> None:
        super().__init__()
        self.judges = nn.ModuleList(SpectrumJudge(size, hop) for size, hop in RESOLUTIONS)
        self.periods = nn.ModuleList(PeriodJudge(period) for period in PERIODS)

    def forward(self, samples: torch.Tensor, known: torch.Tensor) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
        """Return what every judge says of samples (B, N); ``known`` (B,) as SpectrumJudge has it."""
        low = lowered(samples)
        with torch.autocast(samples.device.type, torch.bfloat16):
            return [judge(samples, known) for judge in self.judges] + [judge(low) for judge in self.periods]


def lowered(samples: torch.Tensor) -> torch.Tensor:
    """Return samples (B, N) at LOW_SHARE of their rate, by their Fourier transform without what lies above."""
    count = round(samples.shape[1] * LOW_SHARE)
    return torch.fft.irfft(torch.fft.rfft(samples)[:, : int(0.95 * count) // 2], n=count) * LOW_SHARE


class Refined(nn.Module):
    """A generator with its adversary, which has an optimizer of its own. They stay where the generator is.

    ``adversary``: a module that returns marks, and what its layers saw, of what it is given, for each of its judges.
    """

    def __init__(self, generator: nn.Module, adversary: nn.Module, rate: float) -> None:
        super().__init__()
        place = home(generator)
        self.generator, self.adversary = generator, adversary.to(place)
        self.adversary.requires_grad_(False)
        self._own = torch.optim.AdamW(
            self.adversary.parameters(), rate, betas=(0.8, 0.99), capturable=place.type == "cuda"
        )

    def against(self, made: torch.Tensor, true: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        """Let the adversary learn what tells ``made`` from ``true``, then return what the generator is to learn.

        beside: what the adversary is given besides.
        """
        self.adversary.requires_grad_(True)
        self._own.zero_grad(set_to_none=True)
        own_loss(self.adversary, made, true, beside).backward()
        share_gradients(self.adversary)
        self._own.step()
        self.adversary.requires_grad_(False)
        return loss_of_made(self.adversary, made, true, beside)


def own_loss(adversary: nn.Module, made: torch.Tensor, true: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
    """Return the adversary's loss: real sound shall get 1, made sound 0."""
    total, pairs = made.new_zeros(()), list(zip(adversary(true, beside), adversary(made.detach(), beside), strict=True))
    for (theirs, _), (ours, _) in pairs:
        total = total + (theirs.float() - 1).square().mean() + ours.float().square().mean()
    return total / len(pairs)


def apart(ours: Iterable[torch.Tensor], theirs: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return how far what the layers saw of one thing is from what they saw of another, over its size."""
    pairs = ((one.float(), other.float()) for one, other in zip(ours, theirs, strict=True))
    return torch.stack([F.l1_loss(one, other) / other.abs().mean() for one, other in pairs]).mean()


def loss_of_made(adversary: nn.Module, made: torch.Tensor, true: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
    """Return the generator's loss: its marks shall be 1, and be given for the same reasons as those of real sound."""
    with torch.no_grad():
        real = adversary(true, beside)
    total = made.new_zeros(())
    for (marks, ours), (_, theirs) in zip(adversary(made, beside), real, strict=True):
        total = total + (marks.float() - 1).square().mean() + 2 * apart(ours, theirs)
    return total / len(real)
