"""HiFT: mel becomes sound. A neural source-filter generator that ends in an inverse STFT.

The fundamental frequency is predicted from the mel; its harmonics and a little noise make a source signal
(Wang et al. 2019, https://arxiv.org/abs/1904.12088), which the generator shapes (HiFT-Net, Li et al. 2023,
https://arxiv.org/abs/2309.09493). Attribute names are those of hift.pt with weight normalisation folded in.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.vocoder.config import HiftConfig

MAX_MAGNITUDE = 100.0
UNVOICED_NOISE = 1 / 3  # of the sine level


class Snake(nn.Module):
    """x + sin(a x)^2 / a, with one a per channel (https://arxiv.org/abs/2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = self.alpha[:, None]
        return torch.addcmul(x, torch.sin(x * alpha).square_(), 1 / (alpha + 1e-9))


class ResBlock(nn.Module):
    """Residual dilated convolutions, each with a plain one after it and Snake before either."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(same_conv(channels, kernel, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(same_conv(channels, kernel, 1) for _ in dilations)
        self.activations1 = nn.ModuleList(Snake(channels) for _ in dilations)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.activations1, self.convs1, self.activations2, self.convs2, strict=True)
        for activation1, conv1, activation2, conv2 in parts:
            x = x + conv2(activation2(conv1(activation1(x))))
        return x


def same_conv(channels: int, kernel: int, dilation: int) -> nn.Conv1d:
    """Return a convolution whose output is as long as its input; ``kernel`` is odd."""
    return nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)


class F0Predictor(nn.Module):
    """The fundamental frequency of every mel frame, from that frame and ``reach`` more on either side."""

    reach = 5

    def __init__(self, mel_channels: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (mel_channels, *[channels] * (self.reach - 1)):
            layers += [nn.Conv1d(inputs, channels, 3, padding=1), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        """Return f0 in Hz, (B, T), from mel (B, M, T)."""
        return self.classifier(self.condnet(mel).transpose(1, 2)).squeeze(-1).abs()


class HarmonicSource(nn.Module):
    """The source signal: sines at the multiples of f0, noise, mixed by one linear layer."""

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        self.config = config
        self.l_linear = nn.Linear(config.harmonics + 1, 1)

    def forward(self, f0: Tensor, noise: Tensor, before: Tensor | None = None) -> Tensor:
        """Return the source (B, 1, N) from f0 in Hz (B, T) and Gaussian noise (B, N, 1).

        N = T * samples of a frame. Unvoiced frames hold noise alone. ``before``: where the harmonics are in the
        frame before the first one (see harmonic_turns); None at the beginning of the sound.
        """
        config = self.config
        phase = harmonic_phase(f0, config.harmonics + 1, config.sample_rate, config.frame_samples, before)
        return self.mix(phase, f0, noise)

    def mix(self, phase: Tensor, f0: Tensor, noise: Tensor) -> Tensor:
        """Return the source (B, 1, N) from the harmonics' phases in radians (B, N, harmonics + 1).

        The original adds a noise to every harmonic, all of one level, before the linear layer. What that makes of
        them is one Gaussian noise, as much louder as the vector of its weights is long; so one is drawn.
        """
        config, weight = self.config, self.l_linear.weight
        voiced = (f0 > config.voiced_threshold).to(f0.dtype)[..., None]  # (B, T, 1)
        noise_level = voiced * config.noise_level + (1 - voiced) * config.sine_level * UNVOICED_NOISE
        # Levels are one number a frame: frames get an axis of their own instead of levels for every sample.
        frames = (f0.shape[1], config.frame_samples)
        sines = F.linear(torch.sin(phase), weight).unflatten(1, frames)  # (B, T, S, 1)
        sines = sines * (voiced * config.sine_level)[:, :, None]
        noise_level = (noise_level * weight.norm())[:, :, None]
        source = torch.addcmul(sines, noise.unflatten(1, frames), noise_level).flatten(1, 2)
        return torch.tanh(source + self.l_linear.bias).transpose(1, 2)


def harmonic_turns(
    f0: Tensor, count: int, sample_rate: int, samples: int, before: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the speeds of the multiples 1 .. ``count`` of f0 (B, T), and where they are in the frames' middles.

    Both are float64 (B, T, count): turns a sample, and turns within 0..1. Frame t's phase is the sum of the
    frequencies up to t, reached in the middle of the frame. ``before``: (B, count), where they are in the middle
    of the frame before the first one (None: at 0). The sum is kept in float64 and wrapped to one turn at every
    frame, so the phase is as exact after a minute as at the start (summed in float32 it is off by 0.1 rad by
    then).
    """
    multiples = torch.arange(1, count + 1, device=f0.device, dtype=torch.float64)
    turns = (f0.double()[..., None] * multiples / sample_rate) % 1.0  # (B, T, H), turns a sample
    reached = turns.cumsum(1) * samples
    return turns, (reached if before is None else reached + before[:, None]) % 1.0


def harmonic_phase(f0: Tensor, count: int, sample_rate: int, samples: int, before: Tensor | None = None) -> Tensor:
    """Return the phases in radians of the multiples 1 .. ``count`` of f0: float32 (B, T * samples, count).

    Between the middles of two frames the phase runs linearly (see harmonic_turns); after the last one, and
    before the first one unless there is a frame ``before`` it, the phase stands still.
    """
    turns, middles = harmonic_turns(f0, count, sample_rate, samples, before)
    # T + 1 stretches of one frame between the middles; half of the first and half of the last lie outside.
    still = torch.zeros_like(turns[:, :1])
    first, speed = (middles[:, :1], still) if before is None else (before[:, None], turns[:, :1])
    turn = 2 * math.pi
    begins = (torch.cat((first, middles), dim=1) * turn).float()[:, :, None]  # (B, T + 1, 1, H)
    speeds = (torch.cat((speed, turns[:, 1:], still), dim=1) * turn).float()[:, :, None]  # (B, T + 1, 1, H)
    since = torch.arange(samples, device=f0.device, dtype=torch.float32)[:, None] + 0.5  # samples since the middle
    phase = torch.addcmul(begins, speeds, since).flatten(1, 2)  # (B, (T + 1) * samples, H)
    outside = samples // 2
    return phase[:, outside : phase.shape[1] - (samples - outside)]


class HiFT(nn.Module):
    """F0 predictor, source and generator."""

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        self.config = config
        base, rates = config.base_channels, config.upsample_rates
        self.m_source = HarmonicSource(config)
        self.conv_pre = nn.Conv1d(config.mel_channels, base, 7, padding=3)
        self.ups = nn.ModuleList()
        self.source_downs = nn.ModuleList()
        self.source_resblocks = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for stage, (rate, kernel) in enumerate(zip(rates, config.upsample_kernels, strict=True)):
            channels = base // 2 ** (stage + 1)
            self.ups.append(nn.ConvTranspose1d(2 * channels, channels, kernel, rate, padding=(kernel - rate) // 2))
            # The source's spectrum is at the rate of the last stage; it is brought down to this stage's.
            down = math.prod(rates[stage + 1 :])
            self.source_downs.append(
                nn.Conv1d(config.n_fft + 2, channels, 1)
                if down == 1
                else nn.Conv1d(config.n_fft + 2, channels, 2 * down, down, padding=down // 2)
            )
            self.source_resblocks.append(
                ResBlock(channels, config.source_kernels[stage], config.source_dilations[stage])
            )
            for size, dilations in zip(config.resblock_kernels, config.resblock_dilations, strict=True):
                self.resblocks.append(ResBlock(channels, size, dilations))
        self.conv_post = nn.Conv1d(base // 2 ** len(rates), config.n_fft + 2, 7, padding=3)
        self.f0_predictor = F0Predictor(config.mel_channels, config.f0_channels)

    def forward(self, mel: Tensor, noise: Tensor) -> Tensor:
        """Return samples (B, N) from mel (B, M, T) and Gaussian noise (B, N, 1)."""
        source = self.m_source(self.f0_predictor(mel), noise)
        return self.samples(self.spectrum(mel, self.source_spectrum(source)))

    def source_spectrum(self, source: Tensor) -> Tensor:
        """Return the STFT of the source (B, 1, N), real above imaginary parts: (B, n_fft + 2, N / hop + 1)."""
        config = self.config
        window = torch.hann_window(config.n_fft, device=source.device)
        spectrum = torch.stft(source.squeeze(1), config.n_fft, config.hop, window=window, return_complex=True)
        return torch.cat((spectrum.real, spectrum.imag), dim=1)

    def spectrum(self, mel: Tensor, source: Tensor) -> Tensor:
        """Return the log magnitudes above the phases' arguments, (B, n_fft + 2, N / hop + 1).

        mel (B, M, T); source: its spectrum as source_spectrum returns it.
        """
        x = self.conv_pre(mel)
        last = len(self.ups) - 1
        width = len(self.config.resblock_kernels)
        stages = zip(self.ups, self.source_downs, self.source_resblocks, strict=True)
        for stage, (up, source_down, source_resblock) in enumerate(stages):
            x = up(F.leaky_relu(x, self.config.slope))
            if stage == last:
                # One frame more, as a centred STFT has.
                x = F.pad(x, (1, 0), mode="reflect")
            x = x + source_resblock(source_down(source))
            blocks = self.resblocks[stage * width : (stage + 1) * width]
            x = sum(block(x) for block in blocks) / width
        return self.conv_post(F.leaky_relu(x))  # here the slope is torch's default of 0.01, as trained

    def bins(self, spectrum: Tensor) -> Tensor:
        """Return the complex spectrum (B, n_fft / 2 + 1, N / hop + 1) of what spectrum() returned."""
        log_magnitude, argument = spectrum.chunk(2, dim=1)
        return torch.polar(log_magnitude.exp().clamp(max=MAX_MAGNITUDE), torch.sin(argument))

    def samples(self, spectrum: Tensor) -> Tensor:
        """Return samples (B, N) within the limit from what spectrum() returned."""
        config = self.config
        window = torch.hann_window(config.n_fft, device=spectrum.device)
        sound = torch.istft(self.bins(spectrum), config.n_fft, config.hop, window=window)
        return sound.clamp(-config.limit, config.limit)
