"""One decode step: the newest ids of some sequences go in, the next ones come out, and nothing is allocated.

The step computes what network.Decoder computes for one more position, and then draws. It differs in how: all room is
allocated once in a DecodeState, every operation writes into it, and what depends on how far the sequences have come
lies in tensors, never in Python. So nothing waits for the device, and a CUDA graph can hold the step (graphs.py);
run as it is, on a CPU, it costs little more than its matrix products. (Some libraries take memory of their own for
a product: oneDNN does in bfloat16. So does top_p for its sorting, and so do packed weights, see quantised.py.)

What lies between the embedding and the draw is computed by layers.py, on a GPU with Triton by fused.py, and for a small
network on a CPU by compiled.py, which also draws.

Letters as in attention.py, and: D hidden size, I intermediate size, n ids that are legal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stepaudio.llm.attention import KeyValueCache, score_bias
from stepaudio.llm.graphs import Capture, Captured, Work
from stepaudio.llm.layers import LayersMaker, PlainLayers
from stepaudio.llm.network import Decoder, DecoderLayer, Dimensions
from stepaudio.llm.quantised import Packed, QuantisedLinear, joined_rows
from stepaudio.llm.sampling import REPETITION_WINDOW, UNKNOWN_ID, Choice, Drawer, SpeechHead
from stepaudio.types import SamplingParams


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The weights of one layer, each product's ready to be multiplied from the right: (in, out), or packed."""

    attention_norm: Tensor  # (D,)
    joint: Tensor | Packed  # (D, (H + 2 G) d): queries, keys, values
    output: Tensor | Packed  # (D, D)
    mlp_norm: Tensor  # (D,)
    gate_up: Tensor | Packed  # (D, 2 I)
    down: Tensor | Packed  # (I, D)

    @property
    def products(self) -> tuple[Tensor | Packed, ...]:
        """The weights that states are multiplied by, in the order in which they are."""
        return self.joint, self.output, self.gate_up, self.down


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
    def _layer(layer: DecoderLayer) -> LayerWeights:
        attention, mlp = layer.self_attn, layer.mlp
        return LayerWeights(
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
        self.common = room(1, dtype=torch.int64)
        """How many positions all sequences begin with: the same keys and values in every row."""
        self.known = room(batch, dtype=torch.int64)
        """How many positions of a row the layers have taken over into a form of their own; none once it is another."""
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
        self.known[row] = 0

    def rest(self, row: int) -> None:
        """Make ``row`` one that is computed for nothing: it begins anew at position 0, lest it run out of room."""
        self.counters[:, row] = torch.tensor([0, self.capacity - 1, 0], device=self.counters.device)

    def move(self, row: int, to: int) -> None:
        """Put the sequence of ``row`` in the place of another, which has ended."""
        self.cache.row(to).begin_with(self.cache.row(row).first(self.capacity))
        self.counters[:, to] = self.counters[:, row]
        self.known[to] = 0
        for tensor in (self.newest, self.history, self.uniforms):
            tensor[to] = tensor[row]

    def drawn(self, rows: int, start: int, stop: int) -> list[list[int]]:
        """Return the ids number ``start`` .. ``stop`` - 1 of each of the first rows; this waits for the device."""
        result: list[list[int]] = self.history[:rows, REPETITION_WINDOW + start : REPETITION_WINDOW + stop].tolist()
        return result


class Step:
    """The step of the first ``rows`` sequences of a state, drawing as ``params`` say.

    Everything it touches is a view that is made once: the step itself is a flat list of operations.
    ``capture`` makes of a list of operations something faster that does the same (see graphs.py); ``layers`` computes
    what lies between the embedding and the draw.
    """

    def __init__(
        self,
        weights: StepWeights,
        head: SpeechHead,
        state: DecodeState,
        rows: int,
        params: SamplingParams,
        capture: Capture | None = None,
        layers: LayersMaker = PlainLayers,
    ) -> None:
        self._weights, self._params = weights, params
        self._capture = capture
        self._layers = layers(weights, state, rows)
        self._narrow = state.hidden.dtype != torch.float32

        self._newest = state.newest[:rows]
        self._newest_column = self._newest[:, None]
        self._drawn = state.counters[2, :1]
        self._where, self._onwards = state.counters[:2, :rows], state.onwards[:2]
        self._count, self._one = state.counters[2, :rows], state.onwards[2]
        self._hidden, self._normed = state.hidden[:rows], state.normed[:rows]

        history = state.history
        # Window i: the ten ids before the one that is drawn as number i.
        self._windows = history.as_strided((state.capacity, rows, REPETITION_WINDOW), (1, history.shape[1], 1))
        self._written = history[:rows, REPETITION_WINDOW:]
        self._uniforms = state.uniforms[:rows]
        self._draws = self._layers.draws(head.choices, params) or [
            self._draw_from(choice, Drawer(choice.ids, rows, params)) for choice in head.choices
        ]
        self._steps = self._layers.steps(head.choices, params)

        self._passes: dict[int, Work] = {}
        self._works: dict[tuple[int, int], Work] = {}

    def draw(self, choice: int) -> None:
        """Draw the next id of every row from ``head.choices[choice]``; it becomes the newest."""
        self._draws[choice]()
        self._written.index_copy_(1, self._drawn, self._newest_column)
        self._count.add_(self._one)

    def _draw_from(self, choice: Choice, drawer: Drawer) -> Work:
        """Return the work that draws from a choice with torch's operations."""
        raw = drawer.logits.to(self._hidden.dtype)  # the same one in float32
        recent = drawer.recent[None]  # (1, B, 10)

        def work() -> None:
            torch.mm(self._normed, choice.weight, out=raw)
            if self._narrow:
                drawer.logits.copy_(raw)
            if self._params.repetition_rule:
                torch.index_select(self._windows, 0, self._drawn, out=recent)
                drawer.ban_repetition()
            if self._params.temperature > 0:
                torch.index_select(self._uniforms, 1, self._drawn, out=drawer.uniform)
            drawer.draw(self._newest)

        return work

    def run(self, keys: int, choice: int) -> None:
        """Feed the newest ids, look at the first ``keys`` positions (theirs included), and draw the next ones."""
        self.run_on([keys], [choice])

    def run_on(self, keys: Sequence[int], choices: Sequence[int]) -> None:
        """Take several steps as run() does, for each of which the two lists have a number."""
        if self._steps is not None:
            self._steps(choices)
            return
        for one in zip(keys, choices, strict=True):
            if one not in self._works:
                work = self._work(*one)
                self._works[one] = work if self._capture is None else Captured(work, self._capture)
            self._works[one]()

    def _work(self, keys: int, choice: int) -> Work:
        if keys not in self._passes:
            self._passes[keys] = self._layers.through(keys)
        through = self._passes[keys]

        def work() -> None:
            torch.index_select(self._weights.embedding, 0, self._newest, out=self._hidden)
            through()
            self._where.add_(self._onwards)
            self.draw(choice)

        return work
