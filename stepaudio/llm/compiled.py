"""A step's layers as one compiled loop for a CPU, where layers.py takes some hundred of torch's operations.

A small network's weights lie in the processor's caches. There a product with one row takes a few microseconds, which is
what torch needs to begin an operation, or to wake a second thread for it and wait. So Numba compiles the whole way
from ``hidden`` to ``normed``, and from there to the next id (kernels.py): one call carries a sequence through all
layers, on one core and without Python. Several sequences are parted among as many threads as torch uses, each of which
goes the whole way with its own, a few at a time, so that weights are read once for these. What all sequences begin with
is read once for all: it stays in the caches from one sequence to the next.

Weights that are exact in half precision are kept so once more and widened in the registers: half the bytes, the same
numbers. All sums are float32. They are taken in another order than torch's, and attention looks at no position beyond
the newest one; nothing else differs.

Letters as in step.py, and: K and N the inner and the outer size of a product.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stepaudio.llm.graphs import Work
from stepaudio.llm.layers import Layers, LayersMaker, PlainLayers, Steps
from stepaudio.llm.quantised import plain
from stepaudio.llm.sampling import Choice
from stepaudio.llm.step import DecodeState, StepWeights
from stepaudio.types import SamplingParams

log = logging.getLogger(__name__)

MOST_BYTES = 48 * 2**20
"""What the layers' weights may take in float32. On two cores the loop was the faster way at every size (up to 512 MiB);
where there are more, all of them together read what is beyond the caches faster than one does."""


class Network:
    """A network's weights and the kernels that were compiled for it; what all its CompiledLayers share."""

    def __init__(self, weights: StepWeights) -> None:
        """Raises ImportError without Numba."""
        from stepaudio.llm import kernels

        self.kernels, self.size = kernels, weights.size
        layers = weights.layers
        products = zip(*(layer.products for layer in layers), strict=True)  # each: of all layers
        norms = [norm for layer in layers for norm in (layer.attention_norm, layer.mlp_norm)]
        self.tables = (
            weights.slope.numpy(),
            np.float32(self.size.norm_eps),
            torch.stack([*norms, weights.norm]).numpy(),  # (2 layers + 1, D)
            *(self.stored(torch.stack([plain(one).t() for one in product])) for product in products),
        )
        self.embedding = weights.embedding.numpy()
        self._heads = dict[Choice, NDArray[np.generic]]()
        self._turned = WeakKeyDictionary[DecodeState, NDArray[np.float32]]()
        self.threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")

    @property
    def element_size(self) -> int:
        """Return how many bytes of the layers' matrices are read for a number, at most."""
        return max(table.itemsize for table in self.tables[3:])

    def __call__(self, weights: StepWeights, state: DecodeState, rows: int) -> CompiledLayers:
        """Return the layers of the first rows of a state (a layers.LayersMaker)."""
        del weights
        return CompiledLayers(self, state, rows)

    def try_out(self, weights: StepWeights) -> None:
        """Have the kernels compiled, or read from disk, by a first use. Raises kernels.FAILURES where Numba fails."""
        layers = CompiledLayers(self, DecodeState(weights, 1, 1), 1)
        anything = Choice(weights.embedding[:1].t(), torch.zeros(1, dtype=torch.int64))
        draws, steps = layers.draws([anything], SamplingParams()), layers.steps([anything], SamplingParams())
        start = time.perf_counter()
        layers.through(1)()
        if draws and steps:
            draws[0]()
            steps([0])
        log.info("The decode step was compiled, or read from disk, in %.1f s.", time.perf_counter() - start)

    def stored(self, weight: Tensor) -> NDArray[np.generic]:
        """Return weights float32 (.., N, K) as the kernels read them: the bits of halves if nothing is lost, uint16.

        They are laid out in panels, (.., N / LANES, K, LANES), the last one filled up with zeros: so all that is read
        lies one after the other, and a vector holds terms of different sums, which need not be added up in the end.
        """
        halves = weight.half()
        narrow = self.kernels.widens_halves() and torch.equal(halves.float(), weight)
        outer = weight.shape[-2]
        filled = F.pad(halves if narrow else weight, (0, 0, 0, self.filled(outer) - outer))
        panels = filled.unflatten(-2, (-1, self.kernels.LANES)).transpose(-1, -2).contiguous()
        return (panels.view(torch.uint16) if narrow else panels).numpy()

    def filled(self, width: int) -> int:
        """Return how wide whole panels are for so many numbers."""
        return -(-width // self.kernels.LANES) * self.kernels.LANES

    def head(self, choice: Choice) -> NDArray[np.generic]:
        """Return the rows of the head that are a choice, (n, D), as the kernels read them."""
        if choice not in self._heads:
            self._heads[choice] = self.stored(choice.weight.t())
        return self._heads[choice]

    def turned(self, state: DecodeState) -> NDArray[np.float32]:
        """Return the room for a state's keys in panels, (layers, B, G, capacity / LANES, d, LANES)."""
        if state not in self._turned:
            *many, capacity, head = state.cache.cells[:, 0].shape
            self._turned[state] = torch.zeros(*many, capacity // self.kernels.LANES, head, self.kernels.LANES).numpy()
        return self._turned[state]

    def parts(self, rows: int) -> list[tuple[int, int]]:
        """Return first row and end of what every thread gets of ``rows`` sequences, where there are enough of them."""
        count = max(1, min(self.threads, rows // self.kernels.LEAST_BESIDE))
        return list(itertools.pairwise(round(rows * part / count) for part in range(count + 1)))

    def together(self, kernel: Callable[..., None], parts: list[tuple[int, int]], *arguments: object) -> None:
        """Call a kernel for all parts, each in a thread of its own; the first one in this."""
        elsewhere = [self._pool.submit(kernel, *part, *arguments) for part in parts[1:]]
        kernel(*parts[0], *arguments)
        for one in elsewhere:
            one.result()


class CompiledLayers(Layers):
    """The layers of the first ``rows`` sequences of a state; see layers.Layers."""

    def __init__(self, network: Network, state: DecodeState, rows: int) -> None:
        self._network, self._state, self._rows = network, state, rows
        self._parts = network.parts(rows)
        size = network.size
        wide = (size.heads + 2 * size.groups) * (size.hidden // size.heads)
        self._normed = state.normed.numpy()
        distances = torch.arange(state.capacity - 1, -1, -1, dtype=torch.float32)

        def room(width: int) -> NDArray[np.float32]:  # for what products are written to
            return torch.zeros(rows, network.filled(width)).numpy()

        self._arguments = (
            state.common.numpy(),
            state.counters[0].numpy(),
            state.cache.cells.numpy(),
            network.turned(state),
            state.known.numpy(),
            *network.tables,
            state.hidden.numpy(),
            self._normed,
            room(size.hidden),
            room(wide),
            torch.zeros(rows, size.hidden).numpy(),
            room(2 * size.intermediate),
            torch.zeros(rows, size.intermediate).numpy(),
            torch.zeros(rows, size.heads, state.capacity).numpy(),
            distances.sqrt().numpy(),
        )

    def through(self, keys: int) -> Work:
        """Return the work; it looks at no more positions than there are, whatever ``keys`` says."""
        del keys
        return lambda: self._network.together(self._network.kernels.carry, self._parts, *self._arguments)

    def draws(self, choices: Sequence[Choice], params: SamplingParams) -> list[Work] | None:
        """Return the work that draws from each choice; see Layers. What top_p drops is found by torch's sorting."""
        return None if params.top_p < 1.0 else [self._draw(self._drawing(choice, params)) for choice in choices]

    def steps(self, choices: Sequence[Choice], params: SamplingParams) -> Steps | None:
        """Return what takes steps, where draws() does not leave the drawing to torch.

        Sequences do not depend on each other: no thread waits for another one before all the steps are taken.
        """
        if params.top_p < 1.0:
            return None
        network, state = self._network, self._state
        moving = (tensor.numpy() for tensor in (state.hidden, state.newest, state.counters, state.history))
        shared = (network.embedding, *moving, self._arguments)
        drawings = [self._drawing(choice, params) for choice in choices]

        def take(first: int, last: int, numbers: Sequence[int]) -> None:
            for number in numbers:
                network.kernels.step(first, last, *shared, drawings[number])

        return lambda numbers: network.together(take, self._parts, numbers)

    def _draw(self, drawing: tuple[object, ...]) -> Work:
        network, drawn = self._network, self._state.counters[2].numpy()
        return lambda: network.together(network.kernels.draw, self._parts, int(drawn[0]), *drawing)

    def _drawing(self, choice: Choice, params: SamplingParams) -> tuple[object, ...]:
        """Return what kernels.draw() is called with besides rows and place."""
        state, rows, columns = self._state, self._rows, len(choice.ids)
        return (
            *(self._normed, self._network.head(choice), choice.ids.numpy()),
            *(state.history.numpy(), state.uniforms.numpy()),
            *(np.float32(params.temperature), params.repetition_rule),
            torch.zeros(rows, self._network.filled(columns)).numpy(),
            np.zeros((rows, min(params.top_k, columns)), np.float32),
            state.newest.numpy(),
        )


def layers_for(weights: StepWeights, device: torch.device, *, wanted: bool) -> LayersMaker:
    """Return what computes the layers of a step on a CPU: a compiled loop where it is wanted, can run and pays."""
    products = [one for layer in weights.layers for one in layer.products]
    readable = all(isinstance(one, Tensor) and one.dtype == torch.float32 for one in products)
    small = readable and sum(one.nbytes for one in products) <= MOST_BYTES
    if not (wanted and small and device.type == "cpu"):
        return PlainLayers
    try:
        network = Network(weights)
    except ImportError as error:
        return _without(f"Numba is not installed ({error})")
    try:
        network.try_out(weights)
    except network.kernels.FAILURES as error:
        return _without(f"Numba cannot compile here ({error})")
    return network


def _without(problem: str) -> LayersMaker:
    """Return the plain layers, and say why."""
    log.warning("The language model decodes with torch's operations, and more slowly: %s.", problem)
    return PlainLayers
