"""The flow's encoder: rows at 25 a second become features at 50 a second.

A conformer without convolution modules: pre-norm attention with relative positions (Transformer-XL, Dai et
al. 2019, https://arxiv.org/abs/1901.02860) and a feed-forward part, six layers before and four after a
doubling of the rate. Attention is full. Attribute names are those of the weights file.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.vocoder.config import EncoderConfig

# The layers' own norms; those of the embeddings and the last one have torch's default of 1e-5.
LAYER_EPS = 1e-12
# Queries that attend at a time. The scores over distances need 4 * heads * block * (T + block) bytes; for all
# of 90 seconds at once that were 1.3 GB, half of it for distances that no pair has.
QUERY_BLOCK = 512


def relative_positions(length: int, width: int, device: torch.device) -> Tensor:
    """Return the sinusoids of the distances length-1 .. -(length-1): float32 (2 * length - 1, width)."""
    distance = torch.arange(length - 1, -length, -1, device=device, dtype=torch.float32)
    rate = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * -(math.log(10000.0) / width))
    angle = distance[:, None] * rate
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)  # even dimensions sine, odd cosine


def by_distance(scores: Tensor) -> Tensor:
    """Return ``scores`` (B, H, N, T + N - 1) over distances as a view (B, H, N, T) over keys.

    The N queries stand one after the other, and for key j of query r the distance's score is in column
    N-1-r+j. So each row begins one column before the row above: the same memory, read with a row stride
    that is one shorter.
    """
    batch, heads, queries, distances = scores.shape
    scores = scores.contiguous()
    size = (batch, heads, queries, distances - queries + 1)
    stride = (heads * queries * distances, queries * distances, distances - 1, 1)
    return scores.as_strided(size, stride, scores.storage_offset() + queries - 1)


class RelativeAttention(nn.Module):
    """Multi-head self-attention whose scores add a term of the distance between query and key."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(width, width)
        self.linear_k = nn.Linear(width, width)
        self.linear_v = nn.Linear(width, width)
        self.linear_out = nn.Linear(width, width)
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return (B, T, D) from x (B, T, D) and positions (2T-1, D)."""
        length = x.shape[1]
        query = self.linear_q(x).unflatten(-1, (self.heads, -1))  # (B, T, H, d)
        key = self._split(self.linear_k(x))  # (B, H, T, d)
        value = self._split(self.linear_v(x))  # (B, H, T, d)
        place = self._split(self.linear_pos(positions)[None]).transpose(-2, -1)  # (1, H, d, 2T-1)
        scale = query.shape[-1] ** -0.5
        content = (query + self.pos_bias_u).transpose(1, 2)  # (B, H, T, d)
        # Scaled before the product: the query is far smaller than the table of scores.
        placed = ((query + self.pos_bias_v) * scale).transpose(1, 2)  # (B, H, T, d)
        mixed = []
        for begin in range(0, length, QUERY_BLOCK):
            end = min(begin + QUERY_BLOCK, length)
            # The distances that these queries have to any key; T - 1 down to 1 - T stand in the table.
            reach = place[..., length - end : 2 * length - 1 - begin]  # (1, H, d, T + N - 1)
            bias = by_distance(placed[:, :, begin:end] @ reach)  # (B, H, N, T)
            mixed.append(
                F.scaled_dot_product_attention(content[:, :, begin:end], key, value, attn_mask=bias, scale=scale)
            )
        return self.linear_out(torch.cat(mixed, dim=2).transpose(1, 2).flatten(2))  # (B, T, D)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, d)


class FeedForward(nn.Module):
    """Two linear layers with SiLU between."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(width, units)
        self.w_2 = nn.Linear(units, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.silu(self.w_1(x)))


class EncoderLayer(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, width: int, heads: int, units: int) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(width, heads)
        self.feed_forward = FeedForward(width, units)
        self.norm_ff = nn.LayerNorm(width, eps=LAYER_EPS)
        self.norm_mha = nn.LayerNorm(width, eps=LAYER_EPS)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions)
        return x + self.feed_forward(self.norm_ff(x))


class Embed(nn.Module):
    """Linear, LayerNorm, times the root of the width."""

    def __init__(self, input_size: int, width: int) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(input_size, width), nn.LayerNorm(width))
        self.scale = math.sqrt(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) * self.scale


class PreLookahead(nn.Module):
    """Mixes a few rows of the future into each row: a convolution ahead, then a causal one, added to x."""

    def __init__(self, width: int, lookahead: int) -> None:
        super().__init__()
        self.lookahead = lookahead
        self.conv1 = nn.Conv1d(width, width, lookahead + 1)
        self.conv2 = nn.Conv1d(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, D) from (B, T, D); zeros stand for what lies outside."""
        y = F.pad(x.transpose(1, 2), (0, self.lookahead))  # (B, D, T + lookahead)
        y = F.leaky_relu(self.conv1(y))  # (B, D, T); torch's default slope of 0.01
        y = self.conv2(F.pad(y, (2, 0)))  # (B, D, T)
        return x + y.transpose(1, 2)


class Upsample(nn.Module):
    """Repeats every frame, then smooths with a causal convolution."""

    def __init__(self, width: int, factor: int, stride: int) -> None:
        super().__init__()
        self.factor, self.past = factor, 2 * stride
        self.conv = nn.Conv1d(width, width, 2 * stride + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D, factor * T) from (B, D, T)."""
        x = x.repeat_interleave(self.factor, dim=-1)
        return self.conv(F.pad(x, (self.past, 0)))


class UpsampleConformerEncoder(nn.Module):
    """Embedding, look-ahead, layers, doubling, layers, norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.output_size
        self.embed = Embed(config.input_size, width)
        self.after_norm = nn.LayerNorm(width)
        self.pre_lookahead_layer = PreLookahead(width, config.lookahead)
        self.encoders = nn.ModuleList(
            EncoderLayer(width, config.heads, config.linear_units) for _ in range(config.blocks)
        )
        self.up_layer = Upsample(width, config.up_factor, config.up_stride)
        self.up_embed = Embed(width, width)
        self.up_encoders = nn.ModuleList(
            EncoderLayer(width, config.heads, config.linear_units) for _ in range(config.up_blocks)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, factor * L, D) from embedded rows x (B, L, input size)."""
        x = self.pre_lookahead_layer(self.embed(x))  # (B, L, D)
        positions = relative_positions(x.shape[1], x.shape[2], x.device)
        for layer in self.encoders:
            x = layer(x, positions)  # (B, L, D)
        x = self.up_layer(x.transpose(1, 2)).transpose(1, 2)  # (B, 2L, D)
        x = self.up_embed(x)
        positions = relative_positions(x.shape[1], x.shape[2], x.device)
        for layer in self.up_encoders:
            x = layer(x, positions)  # (B, 2L, D)
        return self.after_norm(x)
