"""What carries the newest ids' embeddings through all layers, in a step: for up to B sequences one position each.

Attention is two batched products around a softmax. Plain Flash Attention 2 cannot serve: its only bias is ALiBi's,
linear in the distance, and this model's grows with the square root. The fused kernels that take any bias
(scaled_dot_product_attention, which reads the prompts) return new tensors; for the single query of a step the two
products, written where they are told to, keep what a graph needs, and take no longer.

Letters as in step.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from stepaudio.llm.graphs import Work
from stepaudio.llm.quantised import Packed

if TYPE_CHECKING:
    from stepaudio.llm.sampling import Choice
    from stepaudio.llm.step import DecodeState, LayerWeights, StepWeights
    from stepaudio.types import SamplingParams


Steps = Callable[[Sequence[int]], None]
"""Takes a step for each number of a choice, one after the other."""


class Layers(Protocol):
    """The layers of the first rows of a state."""

    def through(self, keys: int) -> Work:
        """Return the work that carries ``hidden`` of the state through all layers and the final norm to ``normed``.

        It looks at the first ``keys`` cached positions, and writes the new keys and values to where the counters say.
        """

    def draws(self, choices: Sequence[Choice], params: SamplingParams) -> list[Work] | None:
        """Return for each choice the work that draws from ``normed`` of the state to ``newest``; None: Step does it."""
        del choices, params
        return None

    def steps(self, choices: Sequence[Choice], params: SamplingParams) -> Steps | None:
        """Return what takes whole steps that end in drawing from one of the choices; None: Step puts them together."""
        del choices, params
        return None


LayersMaker = Callable[["StepWeights", "DecodeState", int], Layers]
"""Makes the layers of the first so many rows of a state."""


def _multiply(x: Tensor, weight: Tensor | Packed, out: Tensor) -> None:
    """Write x (B, in) times the weight into ``out`` (B, out); a packed one takes memory of its own for that."""
    if isinstance(weight, Tensor):
        torch.mm(x, weight, out=out)
    else:
        out.copy_(weight.product(x))


def _add_product(x: Tensor, weight: Tensor | Packed, to: Tensor) -> None:
    """Add x (B, in) times the weight to ``to`` (B, out)."""
    if isinstance(weight, Tensor):
        to.addmm_(x, weight)
    else:
        to.add_(weight.product(x))


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer's weights beside the part of the cache that the step reads and writes."""

    weights: LayerWeights
    cells: Tensor  # (B, 2, G, capacity, d): where new keys and values are written
    keys: Tensor  # (B G, d, L)
    values: Tensor  # (B G, L, d)


@dataclass(frozen=True, eq=False)
class _Reach:
    """What is needed to look at the first L cached positions. A group's R heads meet its keys in one product."""

    bias_rows: Tensor  # (capacity, H, L): where a row of biases begins in the table -> that row
    bias: Tensor  # (B, H, L)
    folded_bias: Tensor  # the same as (B G, R, L)
    scores: Tensor  # (B G, R, L)
    shares: Tensor  # (B G, R, L)
    layers: list[_Layer]


class PlainLayers(Layers):
    """The layers in torch's own operations, each of which writes into room of the state."""

    def __init__(self, weights: StepWeights, state: DecodeState, rows: int) -> None:
        size, hidden = weights.size, weights.size.hidden
        groups, d = size.groups, hidden // size.heads
        self._weights, self._state, self._rows = weights, state, rows
        self._narrow = state.hidden.dtype != torch.float32
        self._mean, self._scale = 1 / hidden, d**-0.5

        position, self._offset = state.counters[0, :rows], state.counters[1, :rows]
        self._hidden, self._wide, self._normed = state.hidden[:rows], state.wide[:rows], state.normed[:rows]
        self._root, self._root_cast = state.root[:rows], state.root_cast[:rows]
        self._gate_up = state.gate_up[:rows]
        self._gate, self._up = self._gate_up.split(size.intermediate, dim=1)

        self._joint, self._joint_wide = state.joint[:rows], state.joint_wide[:rows]
        joint = self._joint_wide if self._narrow else self._joint
        self._fresh = joint[:, hidden:].view(rows, 2, groups, 1, d)
        self._cell = position.view(rows, 1, 1, 1, 1).expand(rows, 2, groups, 1, d)
        # The queries of one row lie as its attention needs them; those of several are copied together.
        self._queries = joint[:, :hidden]
        self._query = self._queries if rows == 1 else state.query[:rows]
        self._folded = self._query.view(rows * groups, -1, d)  # (B G, R, d)
        self._context, self._context_cast = state.context[:rows], state.context_cast[:rows]
        self._contexts = self._context.view(rows * groups, -1, d)  # (B G, R, d)

    def through(self, keys: int) -> Work:
        """Return the work for the first ``keys`` positions; see Layers."""
        reach = self._reach(keys)
        return lambda: self._advance(reach)

    def _reach(self, keys: int) -> _Reach:
        """Return the views for the first ``keys`` positions."""
        size, state, rows = self._weights.size, self._state, self._rows
        heads, groups, d = size.heads, size.groups, size.hidden // size.heads
        folded = (rows * groups, heads // groups, keys)
        bias, scores, shares = (flat[: rows * heads * keys] for flat in (state.bias, state.scores, state.shares))
        layers = []
        for weights, cells in zip(self._weights.layers, state.cache.cells, strict=True):
            keyed, valued = (part[:rows].view(rows * groups, -1, d)[:, :keys] for part in cells)
            layers.append(_Layer(weights, cells[:, :rows].transpose(0, 1), keyed.transpose(1, 2), valued))
        return _Reach(
            bias_rows=state.bias_table.as_strided((state.capacity, heads, keys), (1, 2 * state.capacity, 1)),
            bias=bias.view(rows, heads, keys),
            folded_bias=bias.view(folded),
            scores=scores.view(folded),
            shares=shares.view(folded),
            layers=layers,
        )

    def _advance(self, reach: _Reach) -> None:
        weights = self._weights
        torch.index_select(reach.bias_rows, 0, self._offset, out=reach.bias)
        for layer in reach.layers:
            self._norm(layer.weights.attention_norm)
            self._attend(layer, reach)
            self._norm(layer.weights.mlp_norm)
            _multiply(self._normed, layer.weights.gate_up, self._gate_up)
            F.silu(self._gate, inplace=True)
            self._gate.mul_(self._up)
            _add_product(self._gate, layer.weights.down, self._hidden)
        self._norm(weights.norm)

    def _attend(self, layer: _Layer, reach: _Reach) -> None:
        """Write the new keys and values into the cache, and add the attention of normed to hidden."""
        _multiply(self._normed, layer.weights.joint, self._joint)
        if self._narrow:
            self._joint_wide.copy_(self._joint)
        if self._query is not self._queries:
            self._query.copy_(self._queries)
        layer.cells.scatter_(3, self._cell, self._fresh)
        torch.baddbmm(reach.folded_bias, self._folded, layer.keys, alpha=self._scale, out=reach.scores)
        torch.softmax(reach.scores, -1, out=reach.shares)
        torch.bmm(reach.shares, layer.values, out=self._contexts)
        context = self._context_cast.copy_(self._context) if self._narrow else self._context
        _add_product(context, layer.weights.output, self._hidden)

    def _norm(self, weight: Tensor) -> None:
        """Write the RMSNorm of hidden into normed, as network.RMSNorm has it."""
        wide = self._wide.copy_(self._hidden) if self._narrow else self._hidden
        torch.linalg.vector_norm(wide, 2, -1, True, out=self._root)
        torch.addcmul(self._state.eps, self._root, self._root, value=self._mean, out=self._root)
        root = self._root.rsqrt_()
        if self._narrow:
            root = self._root_cast.copy_(root)
        torch.mul(self._hidden, root, out=self._normed)
        self._normed.mul_(weight)
