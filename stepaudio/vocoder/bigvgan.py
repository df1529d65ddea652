"""BigVGAN: mel becomes sound by transposed convolutions whose periodic activations do not alias.

Lee et al. 2023, https://arxiv.org/abs/2206.04658. Every activation works at twice the rate between two
low-pass filters (Karras et al. 2021, https://arxiv.org/abs/2106.12423). Neither f0 nor noise takes part.
Attribute names are those of hift.pt with weight normalisation folded in; the filters, which that file repeats
for each activation, are one that is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.errors import WeightsError
from stepaudio.vocoder.config import BigvganConfig
from stepaudio.vocoder.hift import same_conv

LIMIT = 1.0
CONTEXT = 3  # mel frames that the first convolution needs before and after those that are to sound

# The low-pass filter: cutoff and half the width of the transition band in cycles a sample, at twice the rate.
TAPS, CUTOFF, HALF_WIDTH = 12, 0.25, 0.3
FILTERS = (".upsample.filter", ".downsample.lowpass.filter")
FILTER_TOLERANCE = 1e-3  # what half precision leaves of a filter


def lowpass(device: torch.device) -> Tensor:
    """Return the taps, float32 (12,), of the sinc filter under a Kaiser window; they sum to one.

    The window's shape follows from the transition band by Kaiser's formulas (Oppenheim and Schafer,
    Discrete-Time Signal Processing, section 7.5), which are given half the taps, as in training.
    """
    attenuation = 2.285 * (TAPS / 2 - 1) * math.pi * 4 * HALF_WIDTH + 7.95  # 51 dB
    beta = 0.1102 * (attenuation - 8.7)  # the formula for more than 50 dB
    window = torch.kaiser_window(TAPS, periodic=False, beta=beta, device=device)
    time = torch.arange(TAPS, device=device) - (TAPS - 1) / 2
    taps = window * torch.sinc(2 * CUTOFF * time)
    return taps / taps.sum()


class SnakeBeta(nn.Module):
    """x + sin(a x)^2 / b with one a and one b per channel, both stored as logarithms."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        sine = torch.sin(x * self.alpha.exp()[:, None])
        return torch.addcmul(x, sine.square_(), 1 / (self.beta.exp()[:, None] + 1e-9))


class Activation(nn.Module):
    """SnakeBeta at twice the rate: the harmonics it adds beyond half the rate are filtered, not folded back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.act = SnakeBeta(channels)

    def forward(self, x: Tensor, taps: Tensor) -> Tensor:
        """Return a tensor of x's shape (B, C, N); ``taps`` is what lowpass() returns."""
        channels, half = x.shape[1], TAPS // 2
        kernel = taps.expand(channels, 1, TAPS)
        padded = F.pad(x, (half - 1, half - 1), mode="replicate")
        # Zeros lie between the samples, hence twice the gain; what the padding became is cut off.
        up = F.conv_transpose1d(padded, 2 * kernel, stride=2, padding=3 * (half - 1), groups=channels)  # (B, C, 2N)
        bent = F.pad(self.act(up), (half - 1, half), mode="replicate")
        return F.conv1d(bent, kernel, stride=2, groups=channels)


class ResBlock(nn.Module):
    """Residual dilated convolutions, each with a plain one after it and an activation before either."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(same_conv(channels, kernel, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(same_conv(channels, kernel, 1) for _ in dilations)
        # In the order of use: one for convs1, one for convs2, and so on.
        self.activations = nn.ModuleList(Activation(channels) for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor, taps: Tensor) -> Tensor:
        parts = zip(self.activations[::2], self.convs1, self.activations[1::2], self.convs2, strict=True)
        for activation1, conv1, activation2, conv2 in parts:
            x = x + conv2(activation2(conv1(activation1(x, taps)), taps))
        return x


class BigVGAN(nn.Module):
    """The generator."""

    def __init__(self, config: BigvganConfig) -> None:
        super().__init__()
        self.config = config
        base = config.base_channels
        self.conv_pre = nn.Conv1d(config.mel_channels, base, 2 * CONTEXT + 1)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for stage, (rate, kernel) in enumerate(zip(config.upsample_rates, config.upsample_kernels, strict=True)):
            channels = base // 2 ** (stage + 1)
            up = nn.ConvTranspose1d(2 * channels, channels, kernel, rate, padding=(kernel - rate) // 2)
            self.ups.append(nn.Sequential(up))  # a sequence of one, as the weights' names have it
            for size, dilations in zip(config.resblock_kernels, config.resblock_dilations, strict=True):
                self.resblocks.append(ResBlock(channels, size, dilations))
        last = base // 2 ** len(config.upsample_rates)
        self.activation_post = Activation(last)
        self.conv_post = nn.Conv1d(last, 1, 7, padding=3, bias=False)

    def forward(self, mel: Tensor) -> Tensor:
        """Return samples (B, frame_samples * T) from mel (B, M, T), which is mirrored at both ends."""
        # A mirror needs more frames than it adds; less than four of them, which nobody speaks, are held instead.
        mode = "reflect" if mel.shape[-1] > CONTEXT else "replicate"
        return self.samples(F.pad(mel, (CONTEXT, CONTEXT), mode=mode))

    def samples(self, mel: Tensor) -> Tensor:
        """Return samples (B, frame_samples * T) within -1 and 1 from mel (B, M, T + 6).

        Its three first and three last frames are context and do not sound themselves.
        """
        taps = lowpass(mel.device)
        width = len(self.config.resblock_kernels)
        x = self.conv_pre(mel)
        for stage, up in enumerate(self.ups):
            x = up(x)
            blocks = self.resblocks[stage * width : (stage + 1) * width]
            x = sum(block(x, taps) for block in blocks) / width
        sound = self.conv_post(self.activation_post(x, taps)).squeeze(1)
        return sound.clamp(-LIMIT, LIMIT)


def without_filters(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return ``state`` without the low-pass filters in it.

    Raises WeightsError, naming ``path``, for a filter that is another than the one of this module.
    """
    own = lowpass(torch.device("cpu"))
    for key in filter(is_filter, state):
        taps = state[key]
        if taps.shape != (1, 1, TAPS) or not torch.allclose(taps.flatten(), own, rtol=0, atol=FILTER_TOLERANCE):
            raise WeightsError(
                f"{path.name} in {path.parent} cannot be used: {key} is another low-pass filter than the only one "
                f"that is supported, {TAPS} taps under a Kaiser window at a quarter of the rate."
            )
    return {key: value for key, value in state.items() if not is_filter(key)}


def is_filter(key: str) -> bool:
    """Return whether the weight of that name is a low-pass filter, which is given and not learned."""
    return key.endswith(FILTERS)
