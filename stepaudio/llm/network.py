"""The Step1 decoder: embedding, pre-norm blocks of attention and SwiGLU, final norm.

Plain torch; llm/model.py wraps it as a transformers model class. No biases, no dropout, no positions except the
score bias of llm/attention.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.llm.attention import Attention, KeyValueCache, score_bias, slopes

BIAS_BYTES = 256 * 2**20
"""The score bias of one block of positions takes at most this much; longer inputs are cut into blocks."""


@dataclass(frozen=True)
class Dimensions:
    """The sizes of a Step1 network."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    groups: int
    norm_eps: float
    max_length: int


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight; the mean in float32, its root cast before the product."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        square = x.to(torch.float32).square().mean(-1, keepdim=True)
        return x * torch.rsqrt(square + self.eps).to(x.dtype) * self.weight


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class DecoderLayer(nn.Module):
    """h += attention(norm(h)), then h += mlp(norm(h))."""

    def __init__(self, size: Dimensions) -> None:
        super().__init__()
        self.self_attn = Attention(size.hidden, size.heads, size.groups)
        self.mlp = MLP(size.hidden, size.intermediate)
        self.input_layernorm = RMSNorm(size.hidden, size.norm_eps)
        self.post_attention_layernorm = RMSNorm(size.hidden, size.norm_eps)

    def forward(
        self, hidden: Tensor, bias: Tensor, cache: KeyValueCache | None, layer: int, positions: Tensor | None
    ) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), bias, cache, layer, positions)
        result: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return result


class Decoder(nn.Module):
    """Ids (B, T) to normalised hidden states (B, T, hidden)."""

    def __init__(self, size: Dimensions) -> None:
        super().__init__()
        self.size = size
        self.embed_tokens = nn.Embedding(size.vocabulary, size.hidden)
        self.layers = nn.ModuleList(DecoderLayer(size) for _ in range(size.layers))
        self.norm = RMSNorm(size.hidden, size.norm_eps)

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    def slopes(self) -> Tensor:
        """Return the slopes of the heads on this network's device, float32 (H,).

        Made when asked for, not kept as a buffer: a network built on the meta device would never get it filled.
        """
        return torch.tensor(slopes(self.size.heads), dtype=torch.float32, device=self.device)

    def new_cache(self, capacity: int, batch: int = 1) -> KeyValueCache:
        """Return an empty cache for ``capacity`` positions."""
        size = self.size
        head_size = size.hidden // size.heads
        return KeyValueCache.empty(size.layers, batch, size.groups, head_size, capacity, self.device)

    def forward(
        self,
        ids: Tensor,
        *,
        cache: KeyValueCache | None = None,
        start: int = 0,
        inputs: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the states (B, T, hidden) after the final norm for ids int64 (B, T).

        cache: where earlier positions lie and these are written, from ``start`` on. Without one the ids are a
        whole sequence; padding on the right needs no mask, since nothing looks ahead. Training wants sequences
        of one block (see BIAS_BYTES): a cache is written in place. ``inputs`` collects the input of every layer
        (B, T, hidden), the embedding first.
        """
        length = ids.shape[1]
        blocks = list(self._blocks(start, start + length))
        if cache is None and len(blocks) > 1:
            cache = self.new_cache(length, ids.shape[0])
        slope = self.slopes()
        collected: list[list[Tensor]] = [[] for _ in self.layers]
        states = []
        for first, last in blocks:
            positions = torch.arange(first, last, device=self.device)
            hidden = self.embed_tokens(ids[:, first - start : last - start])
            bias = score_bias(slope, positions, last)
            for number, layer in enumerate(self.layers):
                if inputs is not None:
                    collected[number].append(hidden)
                hidden = layer(hidden, bias, cache, number, positions)
            states.append(self.norm(hidden))
        if inputs is not None:
            inputs.extend(torch.cat(parts, dim=1) for parts in collected)
        return torch.cat(states, dim=1)

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield (first, last) of the blocks of positions whose bias (H, block, last) stays within BIAS_BYTES."""
        block = max(BIAS_BYTES // (4 * self.size.heads * stop), 1)
        for first in range(start, stop, block):
            yield first, min(first + block, stop)
