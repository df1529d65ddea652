"""One decode step: the newest ids of some sequences go in, the next ones come out, and nothing is allocated.

The step computes what network.Decoder computes for one more position, and then draws. It differs in how: all room is
allocated once in a DecodeState, every operation writes into it, and what depends on how far the sequences have come
lies in tensors, never in Python. So nothing waits for the device, and a CUDA graph can hold the step (graphs.py);
run as it is, on a CPU, it costs little more than its matrix products. (Some libraries take memory of their own for
a product: oneDNN does in bfloat16. So does top_p for its sorting, and so do packed weights, see quantised.py.)

Attention is two batched products around a softmax. Plain Flash Attention 2 cannot serve: its only bias is ALiBi's,
linear in the distance, and this model's grows with the square root. The fused kernels that take any bias
(scaled_dot_product_attention, which reads the prompts) return new tensors; for the single query of a step the two
products, written where they are told to, keep what a graph needs, and take no longer.

Letters as in attention.py, and: D hidden size, I intermediate size, n ids that are legal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio.llm.attention import KeyValueCache, score_bias
from stepaudio.llm.graphs import Capture, Captured, Work
from stepaudio.llm.network import Decoder, DecoderLayer, Dimensions
from stepaudio.llm.quantised import Packed, QuantisedLinear, joined_rows
from stepaudio.llm.sampling import REPETITION_WINDOW, UNKNOWN_ID, Drawer, SpeechHead
from stepaudio.types import SamplingParams


@dataclass(frozen=True, eq=False)
class _LayerWeights:
    """The weights of one layer, each product's ready to be multiplied from the right: (in, out), or packed."""

    attention_norm: Tensor  # (D,)
    joint: Tensor | Packed  # (D, (H + 2 G) d): queries, keys, values
    output: Tensor | Packed  # (D, D)
    mlp_norm: Tensor  # (D,)
    gate_up: Tensor | Packed  # (D, 2 I)
    down: Tensor | Packed  # (I, D)


class StepWeights:
    """A decoder's weights as the step wants them.

    Projections that read the same input are laid one after another, so that one product computes them. The layers of
    ``decoder`` are made views of the joint weights: nothing lies in memory twice.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.size: Dimensions = decoder.size
        self.embedding = decoder.embed_tokens.weight.detach()
        self.slope = decoder.slopes()
        self.norm = decoder.norm.weight.detach()
        self.layers = [self._layer(layer) for layer in decoder.layers if isinstance(layer, DecoderLayer)]

    @staticmethod
    def _layer(layer: DecoderLayer) -> _LayerWeights:
        attention, mlp = layer.self_attn, layer.mlp
        return _LayerWeights(
            attention_norm=layer.input_layernorm.weight.detach(),
            joint=_joined(attention.q_proj, attention.k_proj, attention.v_proj),
            output=_joined(attention.o_proj),
            mlp_norm=layer.post_attention_layernorm.weight.detach(),
            gate_up=_joined(mlp.gate_proj, mlp.up_proj),
            down=_joined(mlp.down_proj),
        )


def _joined(*projections: nn.Module) -> Tensor | Packed:
    """Return the weights side by side, (in, out), or packed; each projection is made a view of its part."""
    quantised = [projection for projection in projections if isinstance(projection, QuantisedLinear)]
    if quantised:
        return joined_rows(quantised)
    linear = [projection for projection in projections if isinstance(projection, nn.Linear)]
    if len(linear) == 1:
        return linear[0].weight.detach().t()
    weight = torch.cat([projection.weight.detach() for projection in linear])
    for projection, part in zip(linear, weight.split([p.out_features for p in linear]), strict=True):
        projection.weight = nn.Parameter(part, requires_grad=False)
    return weight.t()


def _factor(weight: Tensor | Packed) -> Tensor:
    """Return the weight (in, out); one that is packed is unpacked into new memory."""
    return weight if isinstance(weight, Tensor) else weight.dense().t()


class DecodeState:
    """All that changes while up to ``batch`` sequences are decoded side by side: allocated once, used again.

    Row b stands for one sequence. They all began to be continued together but need not be equally long: position and
    offset count for each row, ``drawn`` for all.
    """

    def __init__(self, weights: StepWeights, batch: int, capacity: int) -> None:
        """capacity: the most positions (prompt and new ids) of a row."""
        size, dtype, device = weights.size, weights.embedding.dtype, weights.embedding.device
        head_size = size.hidden // size.heads
        self.cache = KeyValueCache.empty(size.layers, batch, size.groups, head_size, capacity, device)
        self.batch, self.capacity = batch, self.cache.capacity
        width = self.capacity

        def room(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.newest = room(batch, dtype=torch.int64)
        self.history = room(batch, REPETITION_WINDOW + width, dtype=torch.int64)
        """The last ten ids of each prompt, right-aligned, then what has been drawn."""
        self.uniforms = room(batch, width, dtype=torch.float64)
        """The random number in [0, 1) of every draw."""
        self.counters = room(3, batch, dtype=torch.int64)
        """Where the next id will stand; where its row of biases begins in the table; how many ids have been drawn."""
        self.onwards = torch.tensor([[1], [-1], [1]], device=device)
        # Column x of the table is the bias of a key that lies capacity - 1 - x before the query (after it: -inf),
        # so that every row of biases is a stretch of it.
        last = torch.tensor([width - 1], device=device)
        self.bias_table = score_bias(weights.slope, last, 2 * width)[:, 0].contiguous()  # (H, 2 capacity)
        self.eps = torch.tensor(size.norm_eps, device=device)

        self.hidden = room(batch, size.hidden, dtype=dtype)
        self.wide = room(batch, size.hidden)
        self.root = room(batch, 1)
        self.root_cast = room(batch, 1, dtype=dtype)
        self.normed = room(batch, size.hidden, dtype=dtype)
        """The state of the newest position after the final norm: what the head reads."""
        joint = (size.heads + 2 * size.groups) * head_size
        self.joint = room(batch, joint, dtype=dtype)
        self.joint_wide = room(batch, joint)
        self.query = room(batch, size.hidden)
        self.context = room(batch, size.hidden)
        self.context_cast = room(batch, size.hidden, dtype=dtype)
        self.gate_up = room(batch, 2 * size.intermediate, dtype=dtype)
        scores = batch * size.heads * width
        self.bias, self.scores, self.shares = room(scores), room(scores), room(scores)

    def begin(self, row: int, prompt: Sequence[int], hidden: Tensor, uniforms: Tensor) -> None:
        """Make ``row`` a sequence whose prompt is in the cache.

        hidden (D,): the state after the prompt. uniforms float64 (n,): one number in [0, 1) for every id to be drawn.
        """
        length = len(prompt)
        tail = prompt[-REPETITION_WINDOW:]
        device = self.newest.device
        self.history[row, :REPETITION_WINDOW] = UNKNOWN_ID
        self.history[row, REPETITION_WINDOW - len(tail) : REPETITION_WINDOW] = torch.tensor(tail, device=device)
        self.uniforms[row, : len(uniforms)] = uniforms
        self.counters[:, row] = torch.tensor([length, self.capacity - 1 - length, 0], device=device)
        self.normed[row] = hidden

    def move(self, row: int, to: int) -> None:
        """Put the sequence of ``row`` in the place of another, which has ended."""
        self.cache.row(to).begin_with(self.cache.row(row).first(self.capacity))
        self.counters[:, to] = self.counters[:, row]
        for tensor in (self.newest, self.history, self.uniforms):
            tensor[to] = tensor[row]

    def drawn(self, rows: int, start: int, stop: int) -> list[list[int]]:
        """Return the ids number ``start`` .. ``stop`` - 1 of each of the first rows; this waits for the device."""
        result: list[list[int]] = self.history[:rows, REPETITION_WINDOW + start : REPETITION_WINDOW + stop].tolist()
        return result


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer's weights beside the part of the cache that the step reads and writes."""

    weights: _LayerWeights
    cells: Tensor  # (B, 2, G, capacity, d): where new keys and values are written
    keys: Tensor  # (B G, d, L)
    values: Tensor  # (B G, L, d)


@dataclass(frozen=True, eq=False)
class _Reach:
    """What the step needs to look at the first L cached positions. A group's R heads meet its keys in one product."""

    bias_rows: Tensor  # (capacity, H, L): where a row of biases begins in the table -> that row
    bias: Tensor  # (B, H, L)
    folded_bias: Tensor  # the same as (B G, R, L)
    scores: Tensor  # (B G, R, L)
    shares: Tensor  # (B G, R, L)
    layers: list[_Layer]


class Step:
    """The step of the first ``rows`` sequences of a state, drawing as ``params`` say.

    Everything it touches is a view that is made once: the step itself is a flat list of operations.
    ``capture`` makes of a list of operations something faster that does the same (see graphs.py).
    """

    def __init__(
        self,
        weights: StepWeights,
        head: SpeechHead,
        state: DecodeState,
        rows: int,
        params: SamplingParams,
        capture: Capture | None = None,
    ) -> None:
        size, hidden = weights.size, weights.size.hidden
        groups, d = size.groups, hidden // size.heads
        self._weights, self._head, self._state, self._params = weights, head, state, params
        self._rows, self._capture = rows, capture
        self._narrow = state.hidden.dtype != torch.float32
        self._mean, self._scale = 1 / hidden, d**-0.5

        self._newest = state.newest[:rows]
        self._newest_column = self._newest[:, None]
        position, self._offset, self._drawn = state.counters[0, :rows], state.counters[1, :rows], state.counters[2, :1]
        self._where, self._onwards = state.counters[:2, :rows], state.onwards[:2]
        self._count, self._one = state.counters[2, :rows], state.onwards[2]
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

        history = state.history
        # Window i: the ten ids before the one that is drawn as number i.
        self._windows = history.as_strided((state.capacity, rows, REPETITION_WINDOW), (1, history.shape[1], 1))
        self._written = history[:rows, REPETITION_WINDOW:]
        self._uniforms = state.uniforms[:rows]
        self._drawers = [Drawer(choice.ids, rows, params) for choice in head.choices]
        self._recent = [drawer.recent[None] for drawer in self._drawers]  # (1, B, 10)
        self._raw = [drawer.logits.to(state.hidden.dtype) for drawer in self._drawers]  # the same one in float32

        self._reaches: dict[int, _Reach] = {}
        self._works: dict[tuple[int, int], Work] = {}

    def draw(self, choice: int) -> None:
        """Draw the next id of every row from ``head.choices[choice]``; it becomes the newest."""
        drawer, raw = self._drawers[choice], self._raw[choice]
        torch.mm(self._normed, self._head.choices[choice].weight, out=raw)
        if self._narrow:
            drawer.logits.copy_(raw)
        if self._params.repetition_rule:
            torch.index_select(self._windows, 0, self._drawn, out=self._recent[choice])
            drawer.ban_repetition()
        if self._params.temperature > 0:
            torch.index_select(self._uniforms, 1, self._drawn, out=drawer.uniform)
        drawer.draw(self._newest)
        self._written.index_copy_(1, self._drawn, self._newest_column)
        self._count.add_(self._one)

    def run(self, keys: int, choice: int) -> None:
        """Feed the newest ids, look at the first ``keys`` positions (theirs included), and draw the next ones."""
        work = self._works.get((keys, choice))
        if work is None:
            work = self._work(keys, choice)
            self._works[keys, choice] = work if self._capture is None else Captured(work, self._capture)
        self._works[keys, choice]()

    def _work(self, keys: int, choice: int) -> Work:
        if keys not in self._reaches:
            self._reaches[keys] = self._reach(keys)
        reach = self._reaches[keys]

        def work() -> None:
            self._advance(reach)
            self.draw(choice)

        return work

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
        """Compute the states of the newest ids, and count on."""
        weights = self._weights
        torch.index_select(weights.embedding, 0, self._newest, out=self._hidden)
        torch.index_select(reach.bias_rows, 0, self._offset, out=reach.bias)
        for layer in reach.layers:
            self._norm(layer.weights.attention_norm)
            self._attend(layer, reach)
            self._norm(layer.weights.mlp_norm)
            torch.mm(self._normed, _factor(layer.weights.gate_up), out=self._gate_up)
            F.silu(self._gate, inplace=True)
            self._gate.mul_(self._up)
            self._hidden.addmm_(self._gate, _factor(layer.weights.down))
        self._norm(weights.norm)
        self._where.add_(self._onwards)

    def _attend(self, layer: _Layer, reach: _Reach) -> None:
        """Write the new keys and values into the cache, and add the attention of normed to hidden."""
        torch.mm(self._normed, _factor(layer.weights.joint), out=self._joint)
        if self._narrow:
            self._joint_wide.copy_(self._joint)
        if self._query is not self._queries:
            self._query.copy_(self._queries)
        layer.cells.scatter_(3, self._cell, self._fresh)
        torch.baddbmm(reach.folded_bias, self._folded, layer.keys, alpha=self._scale, out=reach.scores)
        torch.softmax(reach.scores, -1, out=reach.shares)
        torch.bmm(reach.shares, layer.values, out=self._contexts)
        context = self._context_cast.copy_(self._context) if self._narrow else self._context
        self._hidden.addmm_(context, _factor(layer.weights.output))

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
