"""The flow: rows of audio tokens and a voice become mel.

Conditional flow matching (Lipman et al. 2022, https://arxiv.org/abs/2210.02747): Gaussian noise is carried to
mel along the velocities that the diffusion transformer estimates, by Euler steps. The prompt's own mel stands
as a condition in the frames of the prompt; only the frames after it are kept.

Several sounds are computed side by side (see conformer.py for what fills up the shorter ones): on a GPU a step of
one sound is hundreds of small kernels, which take longer to launch than to run.

In a stream the prompt goes first (``begin``), then the rows in pieces (``extend``), each of which sees what came
before it. So the mel is not that of the whole at once, where every frame sees all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.errors import Cancelled
from stepaudio.vocoder.config import FlowConfig
from stepaudio.vocoder.conformer import EncoderPast, UpsampleConformerEncoder
from stepaudio.vocoder.dit import BlockPast, DiT

Progress = Callable[[float], None]
ShouldStop = Callable[[], bool]
SolverPast = tuple[tuple[BlockPast, ...], ...]
"""What a stream's earlier pieces leave in every block at every step."""


@dataclass(frozen=True, eq=False)
class FlowPast:
    """What a stream's earlier pieces leave to the next one."""

    encoder: EncoderPast
    solver: SolverPast


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
        present: Tensor | None = None,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Tensor:
        """Return mel (B, T, M) from noise (B, T, M) and conditions (B, T, 3M), by ``steps`` Euler steps.

        present: bool (B, T), where there are frames of shorter sounds (None: everywhere).
        ``progress`` hears the fraction done after each step. Raises Cancelled when ``should_stop`` says so before
        a step.
        """
        times, sizes = schedule(steps)
        modulation = self.estimator.modulation(times.to(noise.device))
        projected = self._project(conditions)
        if present is not None:
            present = present.repeat(len(projected) // len(present), 1)

        def velocities(x: Tensor, step: int) -> Tensor:
            result: Tensor = self.estimator(x, projected, modulation, step, present)
            return result

        return self._solve(noise, sizes, velocities, progress, should_stop)

    def extend(
        self,
        noise: Tensor,
        conditions: Tensor,
        past: SolverPast | None,
        *,
        steps: int,
        window: int,
        should_stop: ShouldStop | None = None,
    ) -> tuple[Tensor, SolverPast]:
        """Return the mel (1, T, M) of a stream's next frames and the past for those after them.

        As forward(); past: None for the prompt's frames, else what this returned for the frames before.
        ``window``: how many frames after the prompt later pieces attend to.
        """
        times, sizes = schedule(steps)
        modulation = self.estimator.modulation(times.to(noise.device))
        projected = self._project(conditions)
        pasts: list[tuple[BlockPast, ...]] = []

        def velocities(x: Tensor, step: int) -> Tensor:
            before = None if past is None else past[step]
            result, left = self.estimator.extend(x, projected, modulation, step, before, window)
            pasts.append(left)
            return result

        mel = self._solve(noise, sizes, velocities, None, should_stop)
        return mel, tuple(pasts)

    def _project(self, conditions: Tensor) -> Tensor:
        """Return the projected conditions (2B, T, D): the first B rows are guided by them, the others by none.

        Where the weights ask for no guidance nobody needs the others, and there are none: half the work.
        """
        if self.guidance == 0:
            return self.estimator.project(conditions)
        return self.estimator.project(torch.cat((conditions, torch.zeros_like(conditions))))

    def _solve(
        self,
        x: Tensor,
        sizes: tuple[float, ...],
        velocities: Callable[[Tensor, int], Tensor],
        progress: Progress | None,
        should_stop: ShouldStop | None,
    ) -> Tensor:
        """Return x carried along the velocities: the guided ones, or what they and the free ones beside them give."""
        for step, size in enumerate(sizes):
            if should_stop is not None and should_stop():
                raise Cancelled("The synthesis was stopped.")
            guided, *free = velocities(x, step).split(len(x))  # (B, T, M) each
            if free:
                guided = (1 + self.guidance) * guided - self.guidance * free[0]
            x = x + size * guided
            if progress is not None:
                progress((step + 1) / len(sizes))
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

    def conditions(self, rows: Tensor, prompt: Tensor, speaker: Tensor, present: Tensor | None = None) -> Tensor:
        """Return what guides the solver, (B, T, 3M): mu, speaker and prompt mel beside each other.

        rows: int64 (B, L, 2), those of the prompt and those to be spoken; T = frames_per_row * L.
        prompt: (B, T, M), as prompt() returns it. speaker: (B, S). present: bool (B, L), where there are rows of
        shorter sounds (None: everywhere).
        """
        return self.beside(self.encoder(self.input_embedding(rows), present), speaker, prompt)

    def prompt(self, mel: Tensor, prompt_rows: int, rows: int) -> Tensor:
        """Return the mel (1, F, M) of a prompt, stretched or shrunk to its rows, then zeros: (1, T, M) for all rows."""
        prompt = self._stretched(mel, prompt_rows)
        return F.pad(prompt, (0, 0, 0, self.frames_per_row * rows - prompt.shape[1]))

    def begin(
        self,
        rows: Tensor,
        prompt_mel: Tensor,
        speaker: Tensor,
        noise: Tensor,
        *,
        steps: int,
        window: int,
        should_stop: ShouldStop | None = None,
    ) -> FlowPast:
        """Return the past of a stream that has heard its prompt.

        rows: int64 (1, P + lookahead, 2), the prompt's and the first ones to be spoken, which come again in the
        first extend(). noise: (1, frames_per_row * P, M). prompt_mel and speaker as in conditions(); ``window``
        as in FlowMatching.extend. Raises Cancelled when ``should_stop`` says so before a step.
        """
        embedded = self.input_embedding(rows)
        h, encoder = self.encoder.extend(embedded, self.encoder.beginning(embedded), last=False, window=None)
        prompt = self._stretched(prompt_mel, h.shape[1] // self.frames_per_row)
        conditions = self.beside(h, speaker, prompt)
        _, solver = self.decoder.extend(noise, conditions, None, steps=steps, window=window, should_stop=should_stop)
        return FlowPast(encoder, solver)

    def extend(
        self,
        rows: Tensor,
        speaker: Tensor,
        noise: Tensor,
        past: FlowPast,
        *,
        last: bool,
        steps: int,
        window: int,
        encoder_window: int | None,
        should_stop: ShouldStop | None = None,
    ) -> tuple[Tensor, FlowPast]:
        """Return the mel (1, frames_per_row * T, M) of a stream's next T rows and the past for those after them.

        rows: int64 (1, T + lookahead, 2), or (1, T, 2) where they are the ``last``. noise: as long as the mel.
        ``window`` bounds what the estimator attends to, in frames; ``encoder_window`` the encoder, in rows (see
        UpsampleConformerEncoder.extend). Raises Cancelled when ``should_stop`` says so before a step.
        """
        h, encoder = self.encoder.extend(self.input_embedding(rows), past.encoder, last=last, window=encoder_window)
        conditions = self.beside(h, speaker, torch.zeros_like(noise))
        mel, solver = self.decoder.extend(
            noise, conditions, past.solver, steps=steps, window=window, should_stop=should_stop
        )
        return mel, FlowPast(encoder, solver)

    def _stretched(self, mel: Tensor, prompt_rows: int) -> Tensor:
        # Stretched, not cut: the tokens come from the trimmed recording, the mel from the whole one.
        frames = self.frames_per_row * prompt_rows
        return F.interpolate(mel.transpose(1, 2), size=frames).transpose(1, 2)  # (1, frames, M)

    def beside(self, features: Tensor, speaker: Tensor, prompt: Tensor) -> Tensor:
        """Return the conditions (B, T, 3M) that follow from the encoder's features (B, T, D)."""
        mu = self.encoder_proj(features)  # (B, T, M)
        voice = self.spk_embed_affine_layer(F.normalize(speaker, dim=1))  # (B, M)
        return torch.cat((mu, voice[:, None].expand_as(mu), prompt), dim=-1)
