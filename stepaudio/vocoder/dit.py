"""The flow's velocity estimator: a diffusion transformer with causal convolutions (DiT, Peebles and Xie 2022,
https://arxiv.org/abs/2212.09748). There is no positional encoding; the convolutions tell the order.

What does not change from step to step is computed once: the projections of the conditions, and for all
times together what the time adds to every block. Attribute names are those of the weights file.

In a stream the frames come in pieces: ``extend`` takes the next piece and what the pieces before it left at
the same step, and attends to them and to itself.

Sounds of several lengths lie side by side as rows of one table, the shorter ones filled up at their ends. ``present``
tells what is no filling, bool (B, T); None: all. What is computed for the filling means nothing and changes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.vocoder.config import DitConfig

NORM_EPS = 1e-6
TIME_FEATURES = 256
# A block's nine rows: shift, scale, gate of the attention, of the MLP and of the convolution.
BLOCK_ROWS = 9
FINAL_ROWS = 2  # shift, scale


@dataclass(frozen=True, eq=False)
class Modulation:
    """What the times contribute: per block (S, 9, D) and for the last layer (S, 2, D), for S times.

    The scales are stored as 1 + scale. A norm without weights of its own, then scaled and shifted by
    rows that all frames share, is a norm with these rows as weight and bias: one kernel instead of three.
    """

    blocks: tuple[Tensor, ...]
    final: Tensor


@dataclass(frozen=True, eq=False)
class BlockPast:
    """What a stream's earlier pieces leave to the next one, in one block at one step.

    prompt: keys above values of the prompt's frames, (2, B, H, P, d), kept as long as the stream lasts.
    recent: those of the newest frames after the prompt, (2, B, H, R, d).
    convs: (B, 2, D) each, the last inputs of the two causal convolutions.
    """

    prompt: Tensor
    recent: Tensor
    convs: tuple[Tensor, Tensor]


class TimestepEmbedder(nn.Module):
    """Sinusoids of the time, then two linear layers."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, times: Tensor) -> Tensor:
        """Return (S, D) from times (S,) in 0..1."""
        half = TIME_FEATURES // 2
        rate = torch.exp(torch.arange(half, device=times.device, dtype=torch.float32) * -(math.log(10000.0) / half))
        angle = times[:, None] * 1000.0 * rate
        return self.mlp(torch.cat((angle.cos(), angle.sin()), dim=-1))


class Attention(nn.Module):
    """Full self-attention with normalised queries and keys."""

    def __init__(self, hidden: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(hidden, heads * head_dim)
        self.to_k = nn.Linear(hidden, heads * head_dim)
        self.to_v = nn.Linear(hidden, heads * head_dim)
        self.q_norm = nn.LayerNorm(head_dim)
        self.k_norm = nn.LayerNorm(head_dim)
        self.proj = nn.Linear(heads * head_dim, hidden)

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """Return (B, T, D) from (B, T, D)."""
        return self.attend(x, *self.keys(x), present)

    def keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and the values of x (B, T, D): (B, H, T, d) each."""
        key = self.k_norm(self._heads(self.to_k(x))).transpose(1, 2)
        value = self._heads(self.to_v(x)).transpose(1, 2)
        return key, value

    def attend(self, x: Tensor, key: Tensor, value: Tensor, present: Tensor | None = None) -> Tensor:
        """Return (B, T, D): x (B, T, D) attends to all of key and value (B, H, K, d) that is ``present`` (B, K)."""
        query = self.q_norm(self._heads(self.to_q(x))).transpose(1, 2)  # (B, H, T, d)
        mask = None if present is None else present[:, None, None]  # (B, 1, 1, K)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))  # (B, T, H, d)


class CausalConv(nn.Conv1d):
    """Convolution over time that sees the present and two past frames, (B, T, D) to (B, T, D)."""

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden, hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)

    def extend(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, T, D) and the next ``past`` from x (B, T, D) and past (B, 2, D)."""
        x = torch.cat((past, x), dim=1)
        return super().forward(x.transpose(1, 2)).transpose(1, 2), x[:, -2:].clone()


class ConvBlock(nn.Module):
    """Causal convolution, LayerNorm, Mish, causal convolution."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        # The numbers are those of the weights file, where parameterless layers stand between.
        self.block = nn.ModuleDict({"1": CausalConv(hidden), "3": nn.LayerNorm(hidden), "6": CausalConv(hidden)})

    def forward(self, x: Tensor) -> Tensor:
        return self.block["6"](F.mish(self.block["3"](self.block["1"](x))))

    def extend(self, x: Tensor, past: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return (B, T, D) and the next ``past`` from x (B, T, D) and both convolutions' past (B, 2, D)."""
        first, second = cast(CausalConv, self.block["1"]), cast(CausalConv, self.block["6"])
        x, past_first = first.extend(x, past[0])
        x, past_second = second.extend(F.mish(self.block["3"](x)), past[1])
        return x, (past_first, past_second)


class Mlp(nn.Module):
    """Two linear layers with GELU (tanh approximation, as trained) between."""

    def __init__(self, hidden: int, units: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, units)
        self.fc2 = nn.Linear(units, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def _norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight=scale, bias=shift, eps=NORM_EPS)


def _rows(modulation: nn.Module, embedded: Tensor, count: int, scales: list[int]) -> Tensor:
    """Return (S, count, D) with one added to the rows that are scales."""
    rows: Tensor = modulation(embedded).unflatten(-1, (count, -1)).clone()
    rows[:, scales] += 1.0
    return rows


class Block(nn.Module):
    """Attention, convolution, MLP, each normed and gated by the time."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.attn = Attention(config.hidden, config.heads, config.head_dim)
        self.mlp = Mlp(config.hidden, int(config.hidden * config.mlp_ratio))
        self.conv = ConvBlock(config.hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.hidden, BLOCK_ROWS * config.hidden))

    def modulation(self, embedded: Tensor) -> Tensor:
        """Return (S, 9, D) from embedded times (S, D)."""
        return _rows(self.adaLN_modulation, embedded, BLOCK_ROWS, [1, 4, 7])

    def forward(self, x: Tensor, rows: Tensor, present: Tensor | None = None) -> Tensor:
        """Return (B, T, D) from x (B, T, D) and this step's rows (9, D)."""
        attn_shift, attn_scale, attn_gate, mlp_shift, mlp_scale, mlp_gate, conv_shift, conv_scale, conv_gate = rows
        x = torch.addcmul(x, attn_gate, self.attn(_norm(x, attn_shift, attn_scale), present))
        x = torch.addcmul(x, conv_gate, self.conv(_norm(x, conv_shift, conv_scale)))
        return torch.addcmul(x, mlp_gate, self.mlp(_norm(x, mlp_shift, mlp_scale)))

    def extend(self, x: Tensor, rows: Tensor, past: BlockPast | None, window: int) -> tuple[Tensor, BlockPast]:
        """Return (B, T, D) and the next past from x (B, T, D), this step's rows (9, D) and this block's past.

        Without a past, x is the prompt. ``window``: how many frames after the prompt later pieces attend to.
        """
        attn_shift, attn_scale, attn_gate, mlp_shift, mlp_scale, mlp_gate, conv_shift, conv_scale, conv_gate = rows
        normed = _norm(x, attn_shift, attn_scale)
        new = torch.stack(self.attn.keys(normed))  # (2, B, H, T, d)
        if past is None:
            nothing = x.new_zeros(x.shape[0], 2, x.shape[2])
            prompt, recent, convs, seen = new, new[:, :, :, :0].clone(), (nothing, nothing), new
        else:
            prompt, convs = past.prompt, past.convs
            # There are no positions, so the order of the keys is free.
            seen = torch.cat((past.prompt, past.recent, new), dim=3)
            # A copy, lest the cut keep the memory of all.
            recent = torch.cat((past.recent, new), dim=3)[:, :, :, -window:].clone()
        x = torch.addcmul(x, attn_gate, self.attn.attend(normed, seen[0], seen[1]))
        mixed, convs = self.conv.extend(_norm(x, conv_shift, conv_scale), convs)
        x = torch.addcmul(x, conv_gate, mixed)
        x = torch.addcmul(x, mlp_gate, self.mlp(_norm(x, mlp_shift, mlp_scale)))
        return x, BlockPast(prompt, recent, convs)


class FinalLayer(nn.Module):
    """Norm scaled and shifted by the time, then a linear layer to the mel channels."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.hidden, FINAL_ROWS * config.hidden))
        self.linear = nn.Linear(config.hidden, config.out_channels)

    def modulation(self, embedded: Tensor) -> Tensor:
        """Return (S, 2, D) from embedded times (S, D)."""
        return _rows(self.adaLN_modulation, embedded, FINAL_ROWS, [1])

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        shift, scale = rows
        return self.linear(_norm(x, shift, scale))


class DiT(nn.Module):
    """Velocity of the mel, from the noisy mel, the time and the conditions."""

    def __init__(self, config: DitConfig) -> None:
        super().__init__()
        self.mel_channels = config.out_channels
        self.t_embedder = TimestepEmbedder(config.hidden)
        self.in_proj = nn.Linear(config.in_channels, config.hidden)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    def modulation(self, times: Tensor) -> Modulation:
        """Return what the times (S,) in 0..1 contribute to every block."""
        embedded = self.t_embedder(times)
        return Modulation(
            blocks=tuple(cast(Block, block).modulation(embedded) for block in self.blocks),
            final=self.final_layer.modulation(embedded),
        )

    def project(self, conditions: Tensor) -> Tensor:
        """Return the conditions' share of the input projection, its bias included: (B, T, D).

        conditions: (B, T, 3 * mel channels), namely mu, speaker and prompt mel beside each other.
        """
        return F.linear(conditions, self.in_proj.weight[:, self.mel_channels :], self.in_proj.bias)

    def forward(
        self, x: Tensor, projected: Tensor, modulation: Modulation, step: int, present: Tensor | None = None
    ) -> Tensor:
        """Return velocities (B, T, mel) from x (N, T, mel) and the projected conditions (B, T, D).

        B is a multiple of N: all x with their conditions, then all of them again with the next ones.
        """
        h = F.linear(x, self.in_proj.weight[:, : self.mel_channels])  # (N, T, D)
        h = (h + projected.unflatten(0, (-1, len(h)))).flatten(0, 1)  # (B, T, D)
        for block, rows in zip(self.blocks, modulation.blocks, strict=True):
            h = block(h, rows[step], present)
        return self.final_layer(h, modulation.final[step])

    def extend(
        self,
        x: Tensor,
        projected: Tensor,
        modulation: Modulation,
        step: int,
        past: tuple[BlockPast, ...] | None,
        window: int,
    ) -> tuple[Tensor, tuple[BlockPast, ...]]:
        """Return the velocities of a stream's next frames, as forward() does, and the past for those after them.

        ``past``: what this returned for the frames before at the same step; None for the prompt's frames.
        """
        h = F.linear(x, self.in_proj.weight[:, : self.mel_channels]) + projected  # (B, T, D)
        pasts: list[BlockPast] = []
        for number, (block, rows) in enumerate(zip(self.blocks, modulation.blocks, strict=True)):
            h, left = cast(Block, block).extend(h, rows[step], None if past is None else past[number], window)
            pasts.append(left)
        return self.final_layer(h, modulation.final[step]), tuple(pasts)
