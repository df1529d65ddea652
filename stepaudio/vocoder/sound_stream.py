"""Mel in pieces becomes sound in pieces that join without a seam.

The generator looks some frames to either side. So each piece is computed together with frames before it, whose
sound is thrown away, and the last frames of its own are withheld until those after them are known. The sound is
that of the whole mel at once, but for what the withheld frames do not reach; a short cross-fade hides that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from stepaudio.vocoder.bigvgan import BigVGAN
from stepaudio.vocoder.hift import HiFT, harmonic_turns
from stepaudio.vocoder.noise import SOURCE_NOISE, Noise

BIGVGAN_WITHHELD = 12  # its filters reach further than HiFT's convolutions

DrawNoise = Callable[[int], Tensor]
"""Gives the next so many rows of a noise, (1, length, channels)."""


@dataclass(frozen=True, eq=False)
class Joins:
    """How two pieces of sound meet.

    withheld: frames at the end of a piece that come again, better, at the beginning of the next one.
    context: frames before those that are computed again to be thrown away.
    fade_in, fade_out: (N,), the weights of the new and of the withheld sound in the first N withheld samples.
    """

    withheld: int
    context: int
    fade_in: Tensor
    fade_out: Tensor

    @property
    def kept(self) -> int:
        """Frames of a piece that come again in the next window."""
        return self.context + self.withheld


def seamless(samples: int, *, withheld: int = 8, context: int = 16, fade: int = 2) -> Joins:
    """Return joins whose weights add up to one; ``samples``: of a frame, ``fade``: frames of the cross-fade.

    HiFT sees 14 frames to either side, and f0 settles with 5. Withholding 8 frames delays the sound by 160 ms, as
    the original does. Where the pieces meet, what lies beyond those 8 makes 2 % of the loudest sample with random
    weights, which spread as far as weights can; with 16 frames of context nothing is lost on the other side.
    """
    angle = (torch.arange(fade * samples) + 0.5) * (math.pi / 2 / (fade * samples))
    return Joins(withheld, context, torch.sin(angle) ** 2, torch.cos(angle) ** 2)


class Renderer(Protocol):
    """The generator of one stream, with what it must remember from window to window."""

    def __call__(self, mel: Tensor, keep: int) -> Tensor:
        """Return the samples (1, N) of a window (1, M, T), whose last ``keep`` frames begin the next window."""


class HiftRenderer:
    """HiFT for one stream: pitch, phase and noise go on from window to window as if there were one."""

    def __init__(self, hift: HiFT, noise: DrawNoise, device: torch.device) -> None:
        self._hift = hift
        self._draw = noise
        self._device = device
        self._f0 = torch.zeros(1, 0, device=device)  # of the frames that come again
        self._noise = torch.zeros(1, 0, 1, device=device)  # likewise
        self._before: Tensor | None = None  # where the harmonics are in the frame before those

    def __call__(self, mel: Tensor, keep: int) -> Tensor:
        """Return the samples (1, N) of a window (1, M, T), whose last ``keep`` frames begin the next window."""
        hift, config = self._hift, self._hift.config
        known, frames = self._f0.shape[1], mel.shape[-1]
        # Near the right edge of the window before, f0 was a guess.
        settled = max(known - hift.f0_predictor.reach, 0)
        f0 = torch.cat((self._f0[:, :settled], hift.f0_predictor(mel)[:, settled:]), dim=1)  # (1, T)
        fresh = self._draw((frames - known) * config.frame_samples).to(self._device)
        noise = torch.cat((self._noise, fresh), dim=1)  # (1, T * samples, 1)
        source = hift.m_source(f0, noise, self._before)
        drop = frames - keep
        if drop > 0:
            _, middles = harmonic_turns(
                f0, config.harmonics + 1, config.sample_rate, config.frame_samples, self._before
            )
            self._before = middles[:, drop - 1].clone()
        # Copies, lest the cut keep the memory of all.
        self._f0 = f0[:, drop:].clone()
        self._noise = noise[:, drop * config.frame_samples :].clone()
        return hift.samples(hift.spectrum(mel, hift.source_spectrum(source)))


class PlainRenderer:
    """A generator that needs the mel alone, and so remembers nothing: BigVGAN."""

    def __init__(self, generator: nn.Module) -> None:
        self._generator = generator

    def __call__(self, mel: Tensor, keep: int) -> Tensor:
        """Return the samples (1, N) of a window (1, M, T)."""
        samples: Tensor = self._generator(mel)
        return samples


class SoundStream:
    """The sound of one mel that comes in pieces."""

    def __init__(self, render: Renderer, joins: Joins, *, channels: int, samples: int, device: torch.device) -> None:
        """channels: of the mel. samples: of a frame."""
        self._render = render
        self._joins = joins
        self._samples = samples
        self._fade_in, self._fade_out = joins.fade_in.to(device), joins.fade_out.to(device)
        self._mel = torch.zeros(1, channels, 0, device=device)  # the frames that come again
        self._withheld = torch.zeros(1, 0, device=device)  # as much of the withheld sound as is faded out

    def extend(self, mel: Tensor, *, last: bool) -> Tensor:
        """Return the samples (1, N) that are ready after the next mel (1, M, T), or all that are left.

        T: at least the withheld frames unless these are the ``last``.
        """
        joins = self._joins
        known = self._mel.shape[-1]
        window = torch.cat((self._mel, mel), dim=-1)
        keep = min(joins.kept, window.shape[-1])
        samples = self._render(window, keep)[:, max(known - joins.withheld, 0) * self._samples :]
        faded = self._withheld.shape[-1]
        if faded:
            met = samples[:, :faded] * self._fade_in + self._withheld * self._fade_out
            samples = torch.cat((met, samples[:, faded:]), dim=1)
        if last:
            return samples
        self._mel = window[..., window.shape[-1] - keep :].clone()
        ready = samples.shape[-1] - joins.withheld * self._samples
        self._withheld = samples[:, ready : ready + len(self._fade_out)].clone()
        return samples[:, :ready]


def sound_stream(generator: HiFT | BigVGAN, seed: int, device: torch.device) -> SoundStream:
    """Return the beginning of a stream of a generator's sound; HiFT's source noise is that of the seed."""
    config = generator.config
    render: Renderer
    if isinstance(generator, HiFT):
        noise = Noise(seed, SOURCE_NOISE, 1).take
        render, joins = HiftRenderer(generator, noise, device), seamless(config.frame_samples)
    else:
        render, joins = PlainRenderer(generator), seamless(config.frame_samples, withheld=BIGVGAN_WITHHELD)
    return SoundStream(render, joins, channels=config.mel_channels, samples=config.frame_samples, device=device)
