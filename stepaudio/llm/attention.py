"""The attention of Step1: square-root ALiBi scores, grouped key/value heads, a static cache.

Letters in the shapes: B batch, T new positions, L key positions, H query heads, G key/value groups, R = H / G
query heads that share a group, d size of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CAPACITY_STEP = 128


def slopes(heads: int) -> tuple[float, ...]:
    """Return one positive slope per head (ALiBi, Press et al. 2022, its rule for any number of heads).

    With n the largest power of two <= heads: 2^(-8k/n) for k = 1..n, then, between them, 2^(-4(2j-1)/n), j = 1...
    """
    n = 1 << (heads.bit_length() - 1)
    regular = [2.0 ** (-8 * k / n) for k in range(1, n + 1)]
    between = [2.0 ** (-4 * (2 * j - 1) / n) for j in range(1, heads - n + 1)]
    return tuple(regular + between)


def score_bias(slope: Tensor, queries: Tensor, keys: int) -> Tensor:
    """Return what is added to the scores: -slope * sqrt(i - j) for j <= i, else -inf; float32 (H, T, keys).

    slope float32 (H,); queries int64 (T,): the absolute positions i. Keys stand at 0 .. keys - 1. Float32 because
    bfloat16 would be off by 0.2 at a distance of 8000.
    """
    distance = queries[:, None] - torch.arange(keys, device=queries.device)  # (T, keys)
    root = distance.clamp(min=0).to(torch.float32).sqrt()
    bias = -slope[:, None, None] * root  # (H, T, keys)
    return bias.masked_fill(distance < 0, float("-inf"))


class KeyValueCache:
    """Keys and values of every layer: ``cells`` float32 (layers, 2, B, G, capacity, d), keys before values.

    Float32 whatever the network's precision: the scores and their bias are computed in float32, and converting once,
    when a position is written, is cheaper than at every step.
    """

    def __init__(self, cells: Tensor) -> None:
        self.cells = cells

    @classmethod
    def empty(
        cls, layers: int, batch: int, groups: int, head_size: int, capacity: int, device: torch.device
    ) -> KeyValueCache:
        """Return a cache for ``batch`` sequences of ``capacity`` positions, or a few more."""
        shape = (layers, 2, batch, groups, cls.rounded(capacity), head_size)
        # Zeros, not empty: masked positions are multiplied by 0, and 0 * NaN would be NaN.
        return cls(torch.zeros(shape, dtype=torch.float32, device=device))

    @property
    def capacity(self) -> int:
        """Return how many positions there is room for."""
        return self.cells.shape[-2]

    @staticmethod
    def rounded(length: int) -> int:
        """Return ``length`` rounded up to a step, so that shapes (and with them kernels) repeat."""
        return -(-length // _CAPACITY_STEP) * _CAPACITY_STEP

    def row(self, number: int) -> KeyValueCache:
        """Return the cache of one sequence: a view, so what is written there stands here."""
        return self.rows(number, 1)

    def rows(self, first: int, count: int) -> KeyValueCache:
        """Return the cache of neighbouring sequences: a view, as row() does."""
        return KeyValueCache(self.cells[:, :, first : first + count])

    def first(self, length: int) -> Tensor:
        """Return the first ``length`` positions, a view float32 (layers, 2, B, G, length, d)."""
        return self.cells[..., :length, :]

    def begin_with(self, cells: Tensor) -> None:
        """Write what another cache, of as many sequences or of one for all, has as its first()."""
        self.cells[..., : cells.shape[-2], :] = cells

    def write(self, layer: int, positions: Tensor, key: Tensor, value: Tensor, keys: int) -> tuple[Tensor, Tensor]:
        """Store key and value (B, G, T, d) at ``positions`` (T,); return the first ``keys`` (B, G, keys, d) of each."""
        layer_keys, layer_values = self.cells[layer]
        layer_keys.index_copy_(2, positions, key.to(torch.float32))
        layer_values.index_copy_(2, positions, value.to(torch.float32))
        return layer_keys[:, :, :keys], layer_values[:, :, :keys]


class Attention(nn.Module):
    """Grouped-query attention without rotary or learnt positions: only the score bias knows the distance."""

    def __init__(self, hidden_size: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.head_size = heads, groups, hidden_size // heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.k_proj = nn.Linear(hidden_size, groups * self.head_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, groups * self.head_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(
        self, x: Tensor, bias: Tensor, cache: KeyValueCache | None, layer: int, positions: Tensor | None
    ) -> Tensor:
        """Return (B, T, hidden) for x (B, T, hidden) and bias float32 (H, T, L).

        With a cache the new keys are written at ``positions`` (T,) and the first L of it are attended to; without
        one L is T.
        """
        batch, length, _ = x.shape
        query = self._split(self.q_proj(x), self.heads)  # (B, H, T, d)
        key = self._split(self.k_proj(x), self.groups)  # (B, G, T, d)
        value = self._split(self.v_proj(x), self.groups)
        if cache is not None and positions is not None:
            key, value = cache.write(layer, positions, key, value, bias.shape[-1])
        # Query head h reads group h // R. Laying a group's R heads one after another along the query axis lets
        # all of them meet its keys in one product, without repeating the keys R times.
        folded = query.reshape(batch, self.groups, -1, self.head_size)  # (B, G, R * T, d)
        context = self.attend(folded, key, value, bias)
        context = context.reshape(batch, self.heads, length, self.head_size).transpose(1, 2)
        joined: Tensor = self.o_proj(context.reshape(batch, length, -1).to(x.dtype))
        return joined

    @staticmethod
    def attend(folded: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Return the context float32 (B, G, R * T, d) of queries of that shape, keys and values (B, G, L, d)."""
        return F.scaled_dot_product_attention(
            folded.to(torch.float32),
            key.to(torch.float32),
            value.to(torch.float32),
            attn_mask=bias.reshape(1, key.shape[1], -1, bias.shape[-1]),  # (1, G, R * T, L)
        )

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, self.head_size).transpose(1, 2)  # (B, heads, T, d)
