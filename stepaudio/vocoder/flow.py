"""The flow: rows of audio tokens and a voice become mel.

Conditional flow matching (Lipman et al. 2022, https://arxiv.org/abs/2210.02747): Gaussian noise is carried to
mel along the velocities that the diffusion transformer estimates, by Euler steps. The prompt's own mel stands
as a condition in the frames of the prompt; only the frames after it are kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.errors import Cancelled
from stepaudio.vocoder.config import FlowConfig
from stepaudio.vocoder.conformer import UpsampleConformerEncoder
from stepaudio.vocoder.dit import DiT

Progress = Callable[[float], None]
ShouldStop = Callable[[], bool]


def schedule(steps: int) -> tuple[Tensor, tuple[float, ...]]:
    """Return the times (steps,) float32 and the step sizes of the Euler solver.

    The grid is 1 - cos(pi / 2 * s) for s evenly in 0..1: short steps first, where the mel takes shape.
    """
    grid = 1 - torch.cos(torch.linspace(0, 1, steps + 1) * 0.5 * torch.pi)
    return grid[:-1], tuple((grid[1:] - grid[:-1]).tolist())


class DualCodebookEmbedding(nn.Module):
    """One table for both codebooks; the two columns of a row lie beside each other."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width // 2)

    def forward(self, rows: Tensor) -> Tensor:
        """Return (B, L, width) from int64 rows (B, L, 2)."""
        return self.embedding(rows).flatten(2)


class FlowMatching(nn.Module):
    """The Euler solver with classifier-free guidance around the estimator."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.guidance = config.guidance
        self.estimator = DiT(config.dit)

    def forward(
        self,
        noise: Tensor,
        conditions: Tensor,
        *,
        steps: int,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Tensor:
        """Return mel (1, T, M) from noise (1, T, M) and conditions (1, T, 3M), by ``steps`` Euler steps.

        ``progress`` hears the fraction done after each step. Raises Cancelled when ``should_stop`` says so
        before a step.
        """
        times, sizes = schedule(steps)
        modulation = self.estimator.modulation(times.to(noise.device))
        # Row 0 is guided by the conditions, row 1 by none; both see the same x at the same time.
        projected = self.estimator.project(torch.cat((conditions, torch.zeros_like(conditions))))  # (2, T, D)
        x = noise
        for step, size in enumerate(sizes):
            if should_stop is not None and should_stop():
                raise Cancelled("The synthesis was stopped.")
            guided, free = self.estimator(x, projected, modulation, step).split(1)  # (1, T, M) each
            x = x + size * ((1 + self.guidance) * guided - self.guidance * free)
            if progress is not None:
                progress((step + 1) / steps)
        return x


class Flow(nn.Module):
    """Embedding, encoder and solver; attribute names are those of flow.pt."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.frames_per_row = config.encoder.up_factor
        self.input_embedding = DualCodebookEmbedding(config.vocabulary, config.input_size)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_size, config.mel_channels)
        self.encoder = UpsampleConformerEncoder(config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.output_size, config.mel_channels)
        self.decoder = FlowMatching(config)

    def conditions(self, rows: Tensor, prompt_rows: int, prompt_mel: Tensor, speaker: Tensor) -> Tensor:
        """Return what guides the solver, (1, T, 3M): mu, speaker and prompt mel beside each other.

        rows: int64 (1, L, 2), the first ``prompt_rows`` of them the prompt's; T = frames_per_row * L.
        prompt_mel: (1, F, M), stretched or shrunk to the prompt's frames. speaker: (1, S).
        """
        mu = self.encoder_proj(self.encoder(self.input_embedding(rows)))  # (1, T, M)
        voice = self.spk_embed_affine_layer(F.normalize(speaker, dim=1))  # (1, M)
        frames = self.frames_per_row * prompt_rows
        # Stretched, not cut: the tokens come from the trimmed recording, the mel from the whole one.
        prompt = F.interpolate(prompt_mel.transpose(1, 2), size=frames).transpose(1, 2)  # (1, frames, M)
        prompt = F.pad(prompt, (0, 0, 0, mu.shape[1] - frames))  # (1, T, M)
        return torch.cat((mu, voice[:, None].expand_as(mu), prompt), dim=-1)
