"""Sound of a long mel, window by window, so that the memory it takes does not grow with it.

What has state, the pitch and the source that follows it, is computed along the whole mel: that is little. The
generator, which takes the memory, sees one window at a time with enough frames on either side that its result is
that of the whole mel at once, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stepaudio.errors import Cancelled
from stepaudio.vocoder.bigvgan import BigVGAN
from stepaudio.vocoder.hift import HiFT, harmonic_turns

WINDOW_FRAMES = 500
"""Frames that a window keeps, 10 s; a mel of so many or fewer is computed at once."""

CONTEXT_FRAMES = 32
"""Frames on either side whose sound is thrown away; HiFT sees 14, BigVGAN's filters fade out with 20."""

DrawNoise = Callable[[int], Tensor]
"""Gives the next so many rows of a noise, (1, length, channels)."""
Progress = Callable[[float], None]
ShouldStop = Callable[[], bool]


@dataclass(frozen=True)
class _Window:
    """Frames first..last are kept of begin..end, which are computed."""

    begin: int
    first: int
    last: int
    end: int


def windows(frames: int, size: int, context: int) -> Iterator[_Window]:
    """Yield the windows of so many frames."""
    for first in range(0, frames, size):
        last = min(first + size, frames)
        yield _Window(max(first - context, 0), first, last, min(last + context, frames))


def hift_sound(
    hift: HiFT,
    mel: Tensor,
    draw: DrawNoise,
    *,
    size: int = WINDOW_FRAMES,
    context: int = CONTEXT_FRAMES,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Tensor:
    """Return what ``hift`` makes of mel (1, M, T) and of T frames of ``draw``'s noise: samples (1, N).

    ``progress`` hears the fraction done after each window. Raises Cancelled when ``should_stop`` says so before one.
    """
    samples = hift.config.frame_samples
    source = _source(hift, mel, draw, size)

    def render(window: _Window) -> Tensor:
        heard = source[..., window.begin * samples : window.end * samples]
        return hift.samples(hift.spectrum(mel[..., window.begin : window.end], hift.source_spectrum(heard)))

    return _joined(render, mel.shape[-1], samples, size, context, progress, should_stop)


def bigvgan_sound(
    generator: BigVGAN,
    mel: Tensor,
    *,
    size: int = WINDOW_FRAMES,
    context: int = CONTEXT_FRAMES,
    progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> Tensor:
    """Return what ``generator`` makes of mel (1, M, T): samples (1, N); see hift_sound()."""
    return _joined(
        lambda window: generator(mel[..., window.begin : window.end]),
        mel.shape[-1],
        generator.config.frame_samples,
        size,
        context,
        progress,
        should_stop,
    )


def _joined(
    render: Callable[[_Window], Tensor],
    frames: int,
    samples: int,
    size: int,
    context: int,
    progress: Progress | None,
    should_stop: ShouldStop | None,
) -> Tensor:
    parts = []
    for window in windows(frames, size, context):
        if should_stop is not None and should_stop():
            raise Cancelled("The synthesis was stopped.")
        kept = slice((window.first - window.begin) * samples, (window.last - window.begin) * samples)
        parts.append(render(window)[:, kept])
        if progress is not None:
            progress(window.last / frames)
    return torch.cat(parts, dim=1)


def _source(hift: HiFT, mel: Tensor, draw: DrawNoise, size: int) -> Tensor:
    """Return the source (1, 1, N) of the whole mel; its harmonics are held for one window only."""
    config, frames = hift.config, mel.shape[-1]
    samples, harmonics = config.frame_samples, config.harmonics + 1
    f0 = hift.f0_predictor(mel)
    before: Tensor | None = None  # where the harmonics are in the frame before the window
    noise = torch.zeros(1, 0, 1, device=mel.device)
    parts = []
    for window in windows(frames, size, 0):
        # One frame more: the phase runs on to the middle of the next one.
        end = min(window.last + 1, frames)
        fresh = draw((end - window.first) * samples - noise.shape[1]).to(mel.device)
        noise = torch.cat((noise, fresh), dim=1)
        count = (window.last - window.first) * samples
        part = hift.m_source(f0[:, window.first : end], noise, before)
        parts.append(part[..., :count])
        noise = noise[:, count:]
        _, middles = harmonic_turns(f0[:, window.first : window.last], harmonics, config.sample_rate, samples, before)
        before = middles[:, -1]
    return torch.cat(parts, dim=-1)
