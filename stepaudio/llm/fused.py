# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, name-defined"
"""A step's layers in a few Triton kernels, where layers.py takes some thirty of torch's.

One position of a sequence is so little work that on a GPU most of torch's operations take as long as it takes to
begin them; and a product with one row is no more than reading the matrix. So what lies between two matrix products is
one kernel here, and with a single sequence the products are kernels too, each of which reads its matrix once and goes
on with what it has in its registers:

    norm | product (joint) | attention over parts of the positions | parts together | product + hidden
    norm | product (gate, up), SwiGLU | product + hidden

With several sequences the products are torch's. Everything is computed in float32 and rounded where layers.py rounds,
so that both differ in the order of their sums alone. The score bias is not looked up but computed, as attention.py
does. Triton comes with torch's builds for NVIDIA GPUs on Linux, and needs a C compiler at run time.

Letters as in step.py, and: R query heads of a group, S parts of the positions, K and N the inner and the outer size of
a product.
"""

from __future__ import annotations

import logging
import subprocess  # only to be caught: Triton raises its errors where no compiler works

import torch
from torch import Tensor

from stepaudio.llm.graphs import Work
from stepaudio.llm.layers import Layers, LayersMaker, PlainLayers
from stepaudio.llm.network import Dimensions
from stepaudio.llm.quantised import Packed, plain
from stepaudio.llm.step import DecodeState, LayerWeights, StepWeights

try:
    import triton
    import triton.language as tl
except ImportError:  # torch's builds for the CPU come without
    triton = None

log = logging.getLogger(__name__)

LEAST_HEAD, MOST_HEAD, LEAST_QUERIES = 16, 256, 16
"""What tl.dot takes."""
MOST_SPLITS, BLOCK_KEYS = 32, 64
"""Positions are looked at in blocks; up to so many parts of them side by side."""
GEMV_ROWS, GEMV_BLOCK, GEMV_WARPS = 4, 1024, 4
"""Rows of the matrix and columns at a time of one program: 16 bytes of bfloat16 for each thread and row."""
SWIGLU_ROWS = 2
"""The same of gate and of up."""


def _jit(function):
    return function if triton is None else triton.jit(function)


@_jit
def _norm_kernel(x, weight, out, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """RMSNorm of a row x (D,), rounded as network.RMSNorm rounds."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    wide = tl.load(x + row * SIZE + columns, mask=inside, other=0.0).to(tl.float32)
    root = tl.rsqrt(tl.sum(wide * wide, axis=0) / SIZE + eps)
    kind = out.dtype.element_ty
    scaled = (wide * root.to(kind).to(tl.float32)).to(kind).to(tl.float32)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + columns, (scaled * factor).to(kind), mask=inside)


@_jit
def _product_kernel(x, weight, out, N, K: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out (N,) = weight (N, K) @ x (K,), or that added to out."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for start in tl.static_range(0, K, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < K
        vector = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        places = rows[:, None] * K + columns[None, :]
        matrix = tl.load(weight + places, mask=(rows < N)[:, None] & inside[None, :], other=0.0).to(tl.float32)
        total += matrix * vector[None, :]
    result = tl.sum(total, axis=1)
    if ADD:
        result += tl.load(out + rows, mask=rows < N, other=0.0).to(tl.float32)
    tl.store(out + rows, result.to(out.dtype.element_ty), mask=rows < N)


@_jit
def _gated_product_kernel(x, weight, out, N, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out (N,) = silu(gate @ x) * (up @ x) for weight (2 N, K), gate above up."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    gates = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    ups = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for start in tl.static_range(0, K, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < K
        vector = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
        places = rows[:, None] * K + columns[None, :]
        real = (rows < N)[:, None] & inside[None, :]
        gate = tl.load(weight + places, mask=real, other=0.0).to(tl.float32)
        up = tl.load(weight + N * K + places, mask=real, other=0.0).to(tl.float32)
        gates += gate * vector[None, :]
        ups += up * vector[None, :]
    kind = out.dtype.element_ty
    gate = tl.sum(gates, axis=1).to(kind).to(tl.float32)
    up = tl.sum(ups, axis=1).to(kind).to(tl.float32)
    bent = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
    tl.store(out + rows, (bent * up).to(kind), mask=rows < N)


@_jit
def _gate_kernel(gate_up, N, BLOCK: tl.constexpr):
    """The first half of each row of gate_up (B, 2 N) becomes silu(it) * the second half."""
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < N
    kind = gate_up.dtype.element_ty
    base = gate_up + row * 2 * N
    gate = tl.load(base + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(base + N + columns, mask=inside, other=0.0).to(tl.float32)
    bent = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
    tl.store(base + columns, (bent * up).to(kind), mask=inside)


@_jit
def _attention_kernel(
    joint,  # (B, (H + 2 G) d): queries, keys, values of the newest position
    keys,  # (.., G, capacity, d) float32; row_stride apart for each sequence, group_stride for each group
    values,
    positions,  # int64 (B,): where the newest stands
    slopes,  # float32 (H,)
    peaks,  # float32 (B, H, S)
    sums,
    mixed,  # float32 (B, H, S, d)
    row_stride,
    group_stride,
    scale,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    QUERIES: tl.constexpr,
    PADDED: tl.constexpr,
    SIZE: tl.constexpr,
    SPLITS: tl.constexpr,
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Attention of a group's R heads to one part, of PART positions; also writes the newest key and value."""
    row, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    place = tl.load(positions + row).to(tl.int32)
    query, column = tl.arange(0, PADDED), tl.arange(0, SIZE)
    real = query < QUERIES
    head = group * QUERIES + query
    base = joint + row * (HEADS + 2 * GROUPS) * SIZE
    asked = tl.load(base + head[:, None] * SIZE + column[None, :], mask=real[:, None], other=0.0).to(tl.float32)
    new_key = tl.load(base + (HEADS + group) * SIZE + column).to(tl.float32)
    new_value = tl.load(base + (HEADS + GROUPS + group) * SIZE + column).to(tl.float32)
    slope = tl.load(slopes + head, mask=real, other=0.0)
    cell = row.to(tl.int64) * row_stride + group * group_stride

    peak = tl.full((PADDED,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((PADDED,), dtype=tl.float32)
    mix = tl.zeros((PADDED, SIZE), dtype=tl.float32)
    for start in range(0, PART, BLOCK):
        index = split * PART + start + tl.arange(0, BLOCK)
        newest, earlier = index == place, index < place
        places = cell + index[:, None] * SIZE + column[None, :]
        key = tl.load(keys + places, mask=earlier[:, None], other=0.0)
        value = tl.load(values + places, mask=earlier[:, None], other=0.0)
        key = tl.where(newest[:, None], new_key[None, :], key)
        value = tl.where(newest[:, None], new_value[None, :], value)
        tl.store(keys + places, key, mask=newest[:, None])
        tl.store(values + places, value, mask=newest[:, None])
        distance = tl.maximum(place - index, 0).to(tl.float32)
        scores = tl.dot(asked, tl.trans(key), input_precision="ieee") * scale
        scores = scores - slope[:, None] * tl.sqrt(distance)[None, :]
        scores = tl.where((newest | earlier)[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        # A part that begins beyond the newest position has no score at all: -inf less -inf would be no number.
        ground = tl.where(higher == float("-inf"), 0.0, higher)
        shares = tl.exp(scores - ground[:, None])
        fading = tl.exp(peak - ground)
        total = total * fading + tl.sum(shares, axis=1)
        mix = mix * fading[:, None] + tl.dot(shares, value, input_precision="ieee")
        peak = higher
    where = (row * HEADS + head) * SPLITS + split
    tl.store(peaks + where, peak, mask=real)
    tl.store(sums + where, total, mask=real)
    tl.store(mixed + where[:, None] * SIZE + column[None, :], mix, mask=real[:, None])


@_jit
def _join_kernel(peaks, sums, mixed, out, count, SIZE: tl.constexpr, SPLITS: tl.constexpr):
    """The parts' attention of one head together: out (B, H, d)."""
    head = tl.program_id(0)
    split, column = tl.arange(0, SPLITS), tl.arange(0, SIZE)
    real = split < count
    peak = tl.load(peaks + head * SPLITS + split, mask=real, other=float("-inf"))
    weight = tl.exp(peak - tl.max(peak, axis=0))
    total = tl.sum(weight * tl.load(sums + head * SPLITS + split, mask=real, other=0.0), axis=0)
    places = (head * SPLITS + split)[:, None] * SIZE + column[None, :]
    parts = tl.load(mixed + places, mask=real[:, None], other=0.0)
    result = tl.sum(weight[:, None] * parts, axis=0) / total
    tl.store(out + head * SIZE + column, result.to(out.dtype.element_ty))


class FusedLayers(Layers):
    """The layers of the first ``rows`` sequences of a state, in Triton kernels; see layers.Layers."""

    def __init__(self, weights: StepWeights, state: DecodeState, rows: int) -> None:
        size = weights.size
        self._weights, self._state, self._rows = weights, state, rows
        self._hidden, self._normed = state.hidden[:rows], state.normed[:rows]
        self._joint, self._gate_up = state.joint[:rows], state.gate_up[:rows]
        self._gate = self._gate_up[:, : size.intermediate]
        self._context = state.context_cast[:rows]
        self._positions = state.counters[0, :rows]
        head = size.hidden // size.heads
        self._scale = head**-0.5
        device = state.hidden.device
        self._peaks = torch.zeros(rows, size.heads, MOST_SPLITS, device=device)
        self._sums = torch.zeros_like(self._peaks)
        self._mixed = torch.zeros(rows, size.heads, MOST_SPLITS, head, device=device)

    def through(self, keys: int) -> Work:
        """Return the work for the first ``keys`` positions; see Layers."""
        part = -(-keys // (MOST_SPLITS * BLOCK_KEYS)) * BLOCK_KEYS
        splits = -(-keys // part)
        caches = [(cells[0], cells[1]) for cells in self._state.cache.cells]

        def work() -> None:
            for layer, (layer_keys, layer_values) in zip(self._weights.layers, caches, strict=True):
                self._norm(layer.attention_norm)
                self._product(self._normed, layer.joint, self._joint)
                self._attend(layer_keys, layer_values, part, splits)
                self._add_product(self._context, layer.output)
                self._norm(layer.mlp_norm)
                self._gated(layer)
                self._add_product(self._gate, layer.down)
            self._norm(self._weights.norm)

        return work

    def _norm(self, weight: Tensor) -> None:
        size = self._weights.size
        _norm_kernel[(self._rows,)](
            self._hidden,
            weight,
            self._normed,
            size.norm_eps,
            SIZE=size.hidden,
            BLOCK=triton.next_power_of_2(size.hidden),
            num_warps=8,
        )

    def _product(self, x: Tensor, weight: Tensor | Packed, out: Tensor) -> None:
        """Write x (B, K) @ weight (K, N) into out (B, N)."""
        factor = plain(weight)
        if self._rows == 1:
            _multiply(x, factor, out, add=False)
        else:
            torch.mm(x, factor, out=out)

    def _add_product(self, x: Tensor, weight: Tensor | Packed) -> None:
        """Add x (B, K) @ weight (K, D) to hidden."""
        factor = plain(weight)
        if self._rows == 1:
            _multiply(x, factor, self._hidden, add=True)
        else:
            self._hidden.addmm_(x, factor)

    def _gated(self, layer: LayerWeights) -> None:
        """Write silu(gate) * up of normed into the gate's half of the room."""
        factor, units = plain(layer.gate_up), self._weights.size.intermediate
        if self._rows == 1:
            _gated_product_kernel[(triton.cdiv(units, SWIGLU_ROWS),)](
                self._normed,
                factor.t(),
                self._gate,
                units,
                K=factor.shape[0],
                ROWS=SWIGLU_ROWS,
                BLOCK=GEMV_BLOCK,
                num_warps=GEMV_WARPS,
            )
        else:
            torch.mm(self._normed, factor, out=self._gate_up)
            _gate_kernel[(self._rows, triton.cdiv(units, GEMV_BLOCK))](self._gate_up, units, BLOCK=GEMV_BLOCK)

    def _attend(self, keys: Tensor, values: Tensor, part: int, splits: int) -> None:
        """Write the newest keys and values (B, G, capacity, d) into the cache, and the attention into context."""
        size = self._weights.size
        head, queries = size.hidden // size.heads, size.heads // size.groups
        _attention_kernel[(self._rows, size.groups, splits)](
            self._joint,
            keys,
            values,
            self._positions,
            self._weights.slope,
            self._peaks,
            self._sums,
            self._mixed,
            keys.stride(0),
            keys.stride(1),
            self._scale,
            HEADS=size.heads,
            GROUPS=size.groups,
            QUERIES=queries,
            PADDED=max(triton.next_power_of_2(queries), LEAST_QUERIES),
            SIZE=head,
            SPLITS=MOST_SPLITS,
            PART=part,
            BLOCK=BLOCK_KEYS,
            num_warps=8,
            num_stages=1,
        )
        _join_kernel[(self._rows * size.heads,)](
            self._peaks, self._sums, self._mixed, self._context, splits, SIZE=head, SPLITS=MOST_SPLITS, num_warps=1
        )


def _multiply(x: Tensor, factor: Tensor, out: Tensor, *, add: bool) -> None:
    """Write x (1, K) @ factor (K, N) into out (1, N), or add it to what is there."""
    inner, outer = factor.shape
    _product_kernel[(triton.cdiv(outer, GEMV_ROWS),)](
        x, factor.t(), out, outer, K=inner, ADD=add, ROWS=GEMV_ROWS, BLOCK=GEMV_BLOCK, num_warps=GEMV_WARPS
    )


def fits(size: Dimensions) -> bool:
    """Return whether the kernels can compute a network of these sizes."""
    head = size.hidden // size.heads
    return LEAST_HEAD <= head <= MOST_HEAD and head & (head - 1) == 0


def layers_for(weights: StepWeights, device: torch.device, *, wanted: bool) -> LayersMaker:
    """Return what computes the layers of a step on ``device``: the fused ones where they are wanted and can run."""
    packed = any(isinstance(weight, Packed) for layer in weights.layers for weight in layer.products)
    if not wanted or device.type == "cpu" or packed or not fits(weights.size):
        return PlainLayers
    problem = _problem(device)
    if problem is not None:
        log.warning("The language model decodes without fused kernels, and more slowly: %s.", problem)
        return PlainLayers
    return FusedLayers


def _problem(device: torch.device) -> str | None:
    """Return in a few words why no Triton kernel can run on ``device``, None where one just has."""
    if triton is None:
        return "Triton is not installed"
    x = torch.ones(1, LEAST_HEAD, device=device)
    out = torch.zeros_like(x)
    try:
        _norm_kernel[(1,)](x, x, out, 0.0, SIZE=LEAST_HEAD, BLOCK=LEAST_HEAD, num_warps=1)
        right = torch.allclose(out, x)
    except (
        *(triton.TritonError, RuntimeError, AttributeError),
        *(OSError, subprocess.SubprocessError),  # there is no compiler that works, or nowhere to write
        *(ImportError, AssertionError),  # what was built must not be executed where it lies; the driver is not found
    ) as error:
        return f"Triton cannot build kernels here ({error})"
    return None if right else "Triton's kernels compute wrong numbers here"
