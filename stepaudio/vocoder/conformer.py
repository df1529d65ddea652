"""The flow's encoder: rows at 25 a second become features at 50 a second.

A conformer without convolution modules: pre-norm attention with relative positions (Transformer-XL, Dai et
al. 2019, https://arxiv.org/abs/1901.02860) and a feed-forward part, six layers before and four after a
doubling of the rate. Attention is full. Attribute names are those of the weights file.

Sounds of several lengths lie side by side as rows of one table, the shorter ones filled up at their ends. ``present``
tells what is no filling, bool (B, L); None: all. What is computed for the filling means nothing and changes nothing.

In a stream the rows come in pieces: ``extend`` takes the next piece and what the pieces before it left, and
attends to them and to itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.vocoder.config import EncoderConfig

# The layers' own norms; those of the embeddings and the last one have torch's default of 1e-5.
LAYER_EPS = 1e-12
# Queries that attend at a time. The scores over distances need 4 * heads * block * (T + block) bytes; for all
# of 90 seconds at once that were 1.3 GB, half of it for distances that no pair has.
QUERY_BLOCK = 512
# The scores over keys begin at a multiple of so many numbers in memory: CUDA's fused attention reads them 16 bytes at a
# time, and torch looks at their strides, not at their beginning, before it takes that kernel.
ALIGNED = 8


@dataclass(frozen=True, eq=False)
class EncoderPast:
    """What a stream's earlier pieces leave to the next one.

    attention: keys above values of every layer, (2, B, H, P, d); P rows before the doubling, factor * P after it.
    lookahead: (B, D, 2) and upsample: (B, D, 2 * stride), the last inputs of the two causal convolutions.
    """

    attention: tuple[Tensor, ...]
    lookahead: Tensor
    upsample: Tensor


def relative_positions(length: int, width: int, device: torch.device, queries: int | None = None) -> Tensor:
    """Return the sinusoids of the distances that the last ``queries`` of ``length`` frames have to any of them.

    These are length-1 .. -(queries-1): float32 (length + queries - 1, width). By default all are queries.
    """
    queries = length if queries is None else queries
    distance = torch.arange(length - 1, -queries, -1, device=device, dtype=torch.float32)
    rate = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * -(math.log(10000.0) / width))
    angle = distance[:, None] * rate
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)  # even dimensions sine, odd cosine


def by_distance(scores: Tensor, keys: int) -> Tensor:
    """Return ``scores`` (B, H, N, S + K + N - 1) over distances as a view (B, H, N, K) over ``keys`` = K.

    The N queries stand one after the other, and for key j of query r the distance's score is in column
    S+N-1-r+j; the first S columns are spare. So each row begins one column before the row above: the same memory,
    read with a row stride that is one shorter.
    """
    batch, heads, queries, columns = scores.shape
    scores = scores.contiguous()
    size = (batch, heads, queries, keys)
    stride = (heads * queries * columns, queries * columns, columns - 1, 1)
    return scores.as_strided(size, stride, scores.storage_offset() + columns - keys)


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

    def forward(self, x: Tensor, positions: Tensor, present: Tensor | None = None) -> Tensor:
        """Return (B, T, D) from x (B, T, D) and positions (2T-1, D)."""
        return self._attend(x, positions, *self._keys(x), present)

    def extend(self, x: Tensor, positions: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, T, D) and all keys above values, (2, B, H, K, d).

        x (B, T, D) follows on what ``past`` (2, B, H, K-T, d) holds; positions (K + T - 1, D).
        """
        both = torch.cat((past, torch.stack(self._keys(x))), dim=3)
        return self._attend(x, positions, both[0], both[1]), both

    def _keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._split(self.linear_k(x)), self._split(self.linear_v(x))  # (B, H, T, d) each

    def _attend(
        self, x: Tensor, positions: Tensor, key: Tensor, value: Tensor, present: Tensor | None = None
    ) -> Tensor:
        """Return (B, T, D), where x (B, T, D) are the last T of the K frames of key and value (B, H, K, d)."""
        length, keys = x.shape[1], key.shape[2]
        query = self.linear_q(x).unflatten(-1, (self.heads, -1))  # (B, T, H, d)
        place = self._split(self.linear_pos(positions)[None]).transpose(-2, -1)  # (1, H, d, K+T-1)
        scale = query.shape[-1] ** -0.5
        content = (query + self.pos_bias_u).transpose(1, 2)  # (B, H, T, d)
        # Scaled before the product: the query is far smaller than the table of scores.
        placed = ((query + self.pos_bias_v) * scale).transpose(1, 2)  # (B, H, T, d)
        mixed = []
        for begin in range(0, length, QUERY_BLOCK):
            end = min(begin + QUERY_BLOCK, length)
            # The distances that these queries have to any key; K - 1 down to 1 - T stand in the table.
            reach = place[..., length - end : keys + length - 1 - begin]  # (1, H, d, K + N - 1)
            reach = F.pad(reach, (-(end - begin - 1) % ALIGNED, 0))  # so many columns to spare before the first score
            bias = by_distance(placed[:, :, begin:end] @ reach, keys)  # (B, H, N, K)
            if present is not None:
                bias = bias.masked_fill(~present[:, None, None], -math.inf)
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

    def forward(self, x: Tensor, positions: Tensor, present: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, present)
        return x + self.feed_forward(self.norm_ff(x))

    def extend(self, x: Tensor, positions: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, T, D) and the attention's keys above values, the past ones first (see RelativeAttention)."""
        mixed, past = self.self_attn.extend(self.norm_mha(x), positions, past)
        x = x + mixed
        return x + self.feed_forward(self.norm_ff(x)), past


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
        x = F.pad(x, (0, 0, 0, self.lookahead))  # (B, T + lookahead, D)
        return self.extend(x, x.new_zeros(x.shape[0], x.shape[2], 2))[0]

    def extend(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, T, D) and the next ``past`` from x (B, T + lookahead, D) and past (B, D, 2)."""
        y = F.leaky_relu(self.conv1(x.transpose(1, 2)))  # (B, D, T); torch's default slope of 0.01
        y = torch.cat((past, y), dim=-1)  # (B, D, 2 + T)
        return x[:, : x.shape[1] - self.lookahead] + self.conv2(y).transpose(1, 2), y[..., -2:].clone()


class Upsample(nn.Module):
    """Repeats every frame, then smooths with a causal convolution."""

    def __init__(self, width: int, factor: int, stride: int) -> None:
        super().__init__()
        self.factor, self.past = factor, 2 * stride
        self.conv = nn.Conv1d(width, width, 2 * stride + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, D, factor * T) from (B, D, T)."""
        return self.extend(x, x.new_zeros(x.shape[0], x.shape[1], self.past))[0]

    def extend(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, D, factor * T) and the next ``past`` from x (B, D, T) and past (B, D, 2 * stride)."""
        x = torch.cat((past, x.repeat_interleave(self.factor, dim=-1)), dim=-1)
        return self.conv(x), x[..., -self.past :].clone()


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

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """Return (B, factor * L, D) from embedded rows x (B, L, input size)."""
        x = self.embed(x)
        if present is not None:
            # Behind a sound's end the look-ahead finds zeros, as it does when the sound is alone.
            x = x.masked_fill(~present[:, :, None], 0.0)
        x = self.pre_lookahead_layer(x)  # (B, L, D)
        positions = relative_positions(x.shape[1], x.shape[2], x.device)
        for layer in self.encoders:
            x = layer(x, positions, present)  # (B, L, D)
        x = self.up_layer(x.transpose(1, 2)).transpose(1, 2)  # (B, 2L, D)
        x = self.up_embed(x)
        positions = relative_positions(x.shape[1], x.shape[2], x.device)
        if present is not None:
            present = present.repeat_interleave(self.up_layer.factor, dim=1)  # (B, 2L)
        for layer in self.up_encoders:
            x = layer(x, positions, present)  # (B, 2L, D)
        return self.after_norm(x)

    def beginning(self, like: Tensor) -> EncoderPast:
        """Return the past of a stream that has none, on the device of ``like`` and for its batch."""
        batch, width = like.shape[0], self.after_norm.normalized_shape[0]
        layers = [*self.encoders, *self.up_encoders]
        none = [
            like.new_zeros(2, batch, heads, 0, width // heads)
            for heads in (cast(EncoderLayer, layer).self_attn.heads for layer in layers)
        ]
        return EncoderPast(
            tuple(none), like.new_zeros(batch, width, 2), like.new_zeros(batch, width, self.up_layer.past)
        )

    def extend(self, x: Tensor, past: EncoderPast, *, last: bool, window: int | None) -> tuple[Tensor, EncoderPast]:
        """Return the next frames (B, factor * T, D) of a stream and the past that the piece after it needs.

        x: embedded rows (B, T + lookahead, input size), of which the ``lookahead`` last ones come again at the
        beginning of the next piece; the ``last`` piece has none, and all its rows become frames. Later pieces
        attend to the ``window`` newest rows (None: to all). Distances are those between the rows themselves, so
        they never exceed the window and a piece, however long the stream.
        """
        x = self.embed(x)
        if last:
            x = F.pad(x, (0, 0, 0, self.pre_lookahead_layer.lookahead))
        x, lookahead = self.pre_lookahead_layer.extend(x, past.lookahead)  # (B, T, D)
        before = len(self.encoders)
        x, first = _extend(self.encoders, x, past.attention[:before], window)
        x, upsample = self.up_layer.extend(x.transpose(1, 2), past.upsample)
        x = self.up_embed(x.transpose(1, 2))  # (B, factor * T, D)
        x, second = _extend(self.up_encoders, x, past.attention[before:], window and window * self.up_layer.factor)
        return self.after_norm(x), EncoderPast((*first, *second), lookahead, upsample)


def _extend(
    layers: nn.ModuleList, x: Tensor, pasts: tuple[Tensor, ...], window: int | None
) -> tuple[Tensor, list[Tensor]]:
    """Return (B, T, D) after all layers, and per layer the keys and values that remain."""
    positions = relative_positions(pasts[0].shape[3] + x.shape[1], x.shape[2], x.device, x.shape[1])
    kept = []
    for layer, past in zip(layers, pasts, strict=True):
        x, both = cast(EncoderLayer, layer).extend(x, positions, past)
        # A copy, lest the cut keep the memory of all.
        kept.append(both if window is None or both.shape[3] <= window else both[:, :, :, -window:].clone())
    return x, kept
