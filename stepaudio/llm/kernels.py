# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, call-overload, call-arg, import-untyped"
# mypy: disable-error-code="unreachable"
"""The loops of compiled.py, for Numba: a step's layers and its draw, for the rows first .. last - 1 of a state.

Importing this module imports Numba. Nothing is compiled before it is called with arrays; what was compiled is kept on
disk, where there is a place for it (beside the source, or NUMBA_CACHE_DIR), and used again by the next process.

Letters as in compiled.py.
"""

from __future__ import annotations

import itertools
import math

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from stepaudio.llm.sampling import REPETITION_WINDOW, UNKNOWN_ID

WIDE = binding.get_host_cpu_features().get("avx512f", False)
LANES, SIDE_BY_SIDE, DEEP = (16, 8, 2) if WIDE else (8, 4, 1)
"""Numbers in a vector, sequences that share a reading of the weights, and in how many sums the products of fewer are
added up: what the processor's registers hold."""

LEAST_BESIDE, AT_ONCE = 4, 8
"""As many sequences are a thread's at least, if there are several; the products of one are added up in so many sums."""

ORDER_OF_SUMS = ("reassoc", "contract", "nsz")
"""What of float arithmetic the compiler may change; what is no number must stay so, for the check after a decode."""

FAILURES = (numba.core.errors.NumbaError, RuntimeError, OSError)
"""What calling a kernel may raise where it cannot be compiled: by Numba, by LLVM, by the disk that keeps it."""

BEGINNING, FRESH, MORE = np.intp(0), np.bool_(False), np.bool_(True)
"""Where to begin; whether to add. A function is compiled once more for each literal that it is called with."""

zero, half, one = np.float32(0), np.float32(0.5), np.float32(1)
lowest = np.float32(-np.inf)
log_2, log2_e = np.float32(math.log(2)), np.float32(math.log2(math.e))
reach = np.float32(87)
"""Beyond it, e^x or its inverse is no normal float32."""


def compiled(function):
    """Return a function that Numba compiles when it is called, and keeps on disk if it can.

    Without Numba's own memory (_nrt): nothing is allocated, and who holds an array need not be counted at every call.
    """
    options = {"fastmath": set(ORDER_OF_SUMS), "nogil": True, "error_model": "numpy", "_nrt": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder that may be written to
        return numba.njit(**options)(function)


def widens_halves() -> bool:
    """Return whether this processor widens half precision by itself."""
    arm = binding.get_default_triple().startswith(("aarch64", "arm64"))
    return arm or binding.get_host_cpu_features().get("f16c", False)


@intrinsic
def as_float(_context, bits):
    def emit(_, builder, __, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), emit


@intrinsic
def higher(_context, a, b):
    """The higher of two numbers; what is none, if one of them is none."""

    def emit(_, builder, __, arguments):
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 2)
        return builder.call(builder.module.declare_intrinsic("llvm.maximum", [ir.FloatType()], kind), arguments)

    return types.float32(types.float32, types.float32), emit


VECTOR = ir.VectorType(ir.FloatType(), LANES)


def _place(context, builder, kind, array, indices):
    """Where an element of an array lies."""
    whole = context.make_array(kind)(context, builder, array)
    return cgutils.get_item_pointer(context, builder, kind, whole, indices, wraparound=False)


def _read(builder, place):
    """The vector that begins there: of float32, or of halves' bits."""
    if place.type.pointee == ir.FloatType():
        return builder.load(builder.bitcast(place, VECTOR.as_pointer()), align=4)
    halves = ir.VectorType(ir.HalfType(), LANES)
    return builder.fpext(builder.load(builder.bitcast(place, halves.as_pointer()), align=2), VECTOR)


def _spread(builder, number):
    """A vector of one number."""
    first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), number, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _sum(builder, first, *others):
    for other in others:
        first = builder.fadd(first, other, flags=ORDER_OF_SUMS)
    return first


@intrinsic(prefer_literal=True)
def tile(_context, weight, panel, panels, x, row, rows, deep, start, stop, out, add):
    """out[row + i, n] = the sum of weight[k, n] * x[row + i, k], or that added to it.

    For all i < rows, all n in ``panels`` panels of LANES from ``panel`` on, and k from start to stop - 1.
    weight: (K, N), or in panels, (.., K, LANES), as Network.stored() makes it.   out: has room for whole panels.
    panels, rows, deep: constants; each number is the sum of ``deep`` ones, which the processor adds to side by side.
    """
    wide, high, parts = panels.literal_value, rows.literal_value, deep.literal_value

    def emit(context, builder, signature, arguments):
        builder.function.attributes.add("noinline")  # else every function that calls this one would get its copy
        kinds, (factors, panel, _, inputs, row, _, _, start, stop, results, adding) = signature.args, arguments
        nought = panel.type(0)

        def after(number, more):
            return builder.add(number, number.type(more))

        def begin(j):
            one = after(panel, j)
            in_panels = kinds[0].ndim == 3
            where = [one, nought, nought] if in_panels else [nought, builder.mul(one, one.type(LANES))]
            return _place(context, builder, kinds[0], factors, where)

        left = [begin(j) for j in range(wide)]
        right = [_place(context, builder, kinds[3], inputs, [after(row, i), nought]) for i in range(high)]
        totals = [[[cgutils.alloca_once(builder, VECTOR) for _ in range(parts)] for _ in left] for _ in right]
        for total in itertools.chain.from_iterable(itertools.chain.from_iterable(totals)):
            builder.store(ir.Constant(VECTOR, [0.0] * LANES), total)
        strides = context.make_array(kinds[0])(context, builder, factors).strides
        bytes_apart = builder.extract_value(strides, kinds[0].ndim - 2)
        apart = builder.sdiv(bytes_apart, bytes_apart.type(kinds[0].dtype.bitwidth // 8))

        def step(k, part):
            at = builder.mul(k, apart)
            weights = [_read(builder, builder.gep(place, [at])) for place in left]
            for place, sums in zip(right, totals, strict=True):
                number = _spread(builder, builder.load(builder.gep(place, [k])))
                for factor, total in zip(weights, sums, strict=True):
                    term = builder.fmul(factor, number, flags=ORDER_OF_SUMS)
                    builder.store(_sum(builder, builder.load(total[part]), term), total[part])

        length = builder.sub(stop, start)
        whole = builder.add(start, builder.and_(length, length.type(-parts)))
        with cgutils.for_range_slice(builder, start, whole, panel.type(parts)) as (k, _):
            for part in range(parts):
                step(after(k, part), part)
        if parts > 1:
            with cgutils.for_range_slice(builder, whole, stop, panel.type(1)) as (k, _):
                step(k, 0)
        for i, j in itertools.product(range(high), range(wide)):
            column = builder.mul(after(panel, j), panel.type(LANES))
            place = _place(context, builder, kinds[9], results, [after(row, i), column])
            place = builder.bitcast(place, VECTOR.as_pointer())
            result = _sum(builder, *(builder.load(total) for total in totals[i][j]))
            more = _sum(builder, builder.load(place, align=4), result)
            builder.store(builder.select(adding, more, result), place, align=4)
        return context.get_dummy_value()

    places = types.intp, types.intp
    return types.none(weight, types.intp, panels, x, types.intp, rows, deep, *places, out, types.boolean), emit


@compiled
def exponential(x):
    """e^x, x kept within -reach .. reach: 2^whole * 2^rest, the latter by its series at 0."""
    kept = x if x > -reach else -reach
    power = (kept if kept < reach else reach) * log2_e
    whole = np.floor(power + half)
    rest = (power - whole) * log_2
    term = np.float32(1 / 720)
    term = term * rest + np.float32(1 / 120)
    term = term * rest + np.float32(1 / 24)
    term = term * rest + np.float32(1 / 6)
    term = term * rest + half
    term = term * rest + one
    term = term * rest + one
    return term * as_float((np.int32(whole) + np.int32(127)) << np.int32(23))


@compiled
def products(weight, panel, end, x, start, stop, out, first, last, add):
    """Rows first .. last - 1 of x times panels of a matrix, ``panel`` to end - 1, of k from start to stop - 1.

    They are written to out, or added to it; see tile().
    """
    row = first
    while row < last:
        high, pairs = last - row, end - (end - panel) % 2
        if high >= SIDE_BY_SIDE:
            high = SIDE_BY_SIDE
            for here in range(panel, pairs, 2):
                tile(weight, here, 2, x, row, SIDE_BY_SIDE, 1, start, stop, out, add)
        elif high >= LEAST_BESIDE:
            high = LEAST_BESIDE
            for here in range(panel, pairs, 2):
                tile(weight, here, 2, x, row, LEAST_BESIDE, DEEP, start, stop, out, add)
        elif high == 3:
            for here in range(panel, pairs, 2):
                tile(weight, here, 2, x, row, 3, DEEP, start, stop, out, add)
        else:
            high, pairs = 1, panel
        for place in range(row, row + high):
            for here in range(pairs, end):
                tile(weight, here, 1, x, place, 1, AT_ONCE, start, stop, out, add)
        row += high


@compiled
def product(weight, x, out, first, last, add):
    """Rows first .. last - 1 of x times a whole matrix in panels, written to out or added to it."""
    products(weight, BEGINNING, len(weight), x, BEGINNING, weight.shape[1], out, first, last, add)


@compiled
def normalise(x, weight, eps, out):
    """RMSNorm of the first D numbers of x, out (D,)."""
    square = zero
    for k in range(len(out)):
        square += x[k] * x[k]
    root = one / np.sqrt(square / np.float32(len(out)) + eps)
    for k in range(len(out)):
        out[k] = x[k] * root * weight[k]


@compiled
def turn(keys, start, stop, turned):
    """Write keys (capacity, d) of positions start .. stop - 1 into panels (capacity / LANES, d, LANES)."""
    for position in range(start, stop):
        for k in range(keys.shape[1]):
            turned[position // LANES, k, position % LANES] = keys[position, k]


@compiled
def share(scores, place, scale, slope, roots):
    """Turn a query's products with keys 0 .. place into e to the power of the scores, less the highest; return the sum.

    roots: the square root of every distance, the farthest one first.
    """
    count = place + 1
    away = roots[len(roots) - count :]
    peak = lowest
    for position in range(count):
        scores[position] = scores[position] * scale - slope * away[position]
        peak = higher(peak, scores[position])
    total = zero
    for position in range(count):
        scores[position] = exponential(scores[position] - peak)
        total += scores[position]
    return total


@compiled
def attend(joint, cells, turned, row, like, common, known, place, slopes, roots, scores, out):
    """Attention of a row to positions 0 .. place, after the newest key and value were written there.

    joint: queries, keys, values of the newest position, (H + 2 G, d).   cells: keys and values of all sequences,
    (2, B, G, capacity, d).   turned: their keys in panels, (B, G, capacity / LANES, d, LANES), those of positions
    0 .. known - 1 so far.   like: a row whose first ``common`` positions are the same.   out: (H, d).
    scores: room (H, capacity).   roots: as in share().
    """
    common, count = min(common, place), place + 1
    groups, heads, head = cells.shape[2], len(slopes), cells.shape[4]
    scale = one / np.sqrt(np.float32(head))
    ahead, panels = common // LANES, place // LANES + 1
    for group in range(groups):
        first, last = group * heads // groups, (group + 1) * heads // groups
        keys, values = cells[0, row, group], cells[1, row, group]
        for k in range(head):
            keys[place, k] = joint[heads + group, k]
            values[place, k] = joint[heads + groups + group, k]
        turn(keys, min(known, place), count, turned[row, group])
        products(turned[like, group], BEGINNING, ahead, joint, BEGINNING, head, scores, first, last, FRESH)
        products(turned[row, group], ahead, panels, joint, BEGINNING, head, scores, first, last, FRESH)
        for query in range(first, last):
            factor = one / share(scores[query], place, scale, slopes[query], roots)
            for position in range(count):
                scores[query, position] *= factor
        whole = head // LANES
        products(cells[1, like, group], BEGINNING, whole, scores, BEGINNING, common, out, first, last, FRESH)
        products(values, BEGINNING, whole, scores, common, count, out, first, last, MORE)
        for k in range(whole * LANES, head):
            for query in range(first, last):
                total = zero
                for position in range(count):
                    total += scores[query, position] * values[position, k]
                out[query, k] = total


@compiled
def carry(
    first,
    last,
    common,
    positions,
    cells,
    turned,
    known,
    slopes,
    eps,
    norms,
    joint_weights,
    output_weights,
    gate_up_weights,
    down_weights,
    states,
    normed,
    hidden,
    joint,
    context,
    gate_up,
    gated,
    scores,
    roots,
):
    """Carry rows from states through all layers and the final norm to normed; see CompiledLayers."""
    units = gated.shape[1]
    heads, groups, head = len(slopes), cells.shape[3], cells.shape[5]
    wide = (heads + 2 * groups) * head
    for row in range(first, last):
        for k in range(states.shape[1]):
            hidden[row, k] = states[row, k]
    for layer in range(len(joint_weights)):
        for row in range(first, last):
            normalise(hidden[row], norms[2 * layer], eps, normed[row])
        product(joint_weights[layer], normed, joint, first, last, FRESH)
        for row in range(first, last):
            heads_joint, heads_context = joint[row, :wide].reshape((-1, head)), context[row].reshape((heads, head))
            attend(
                *(heads_joint, cells[layer], turned[layer], row, first, common[0], known[row], positions[row]),
                *(slopes, roots, scores[row], heads_context),
            )
        product(output_weights[layer], context, hidden, first, last, MORE)
        for row in range(first, last):
            normalise(hidden[row], norms[2 * layer + 1], eps, normed[row])
        product(gate_up_weights[layer], normed, gate_up, first, last, FRESH)
        for row in range(first, last):
            for k in range(units):
                gate = gate_up[row, k]
                gated[row, k] = gate / (one + exponential(-gate)) * gate_up[row, units + k]
        product(down_weights[layer], gated, hidden, first, last, MORE)
    for row in range(first, last):
        normalise(hidden[row], norms[len(norms) - 1], eps, normed[row])
        known[row] = positions[row] + 1


@compiled
def least_of_best(logits, best):
    """The least of as many highest logits as ``best`` has room for: a heap with the least one first."""
    count = len(best)
    for place in range(count):
        best[place] = lowest
    for column in range(len(logits)):
        logit = logits[column]
        if logit > best[0]:
            place = 0
            while 2 * place + 1 < count:
                child = 2 * place + 1
                if child + 1 < count and best[child + 1] < best[child]:
                    child += 1
                if best[child] >= logit:
                    break
                best[place] = best[child]
                place = child
            best[place] = logit
    return best[0]


@compiled
def draw(
    first,
    last,
    drawn,
    normed,
    weight,
    ids,
    history,
    uniforms,
    temperature,
    repetition_rule,
    logits,
    best,
    newest,
):
    """Draw an id of each row, as sampling.Drawer does; drawn: how many there are."""
    product(weight, normed, logits, first, last, FRESH)
    columns = len(ids)
    for row in range(first, last):
        latest, seen = history[row, drawn + REPETITION_WINDOW - 1], 0
        for place in range(drawn, drawn + REPETITION_WINDOW - 1):
            seen += history[row, place] == latest
        if repetition_rule and seen and history[row, drawn] > UNKNOWN_ID:
            for column in range(columns):
                if ids[column] == latest:
                    logits[row, column] = lowest
        peak = 0
        for column in range(columns):
            if logits[row, column] > logits[row, peak]:
                peak = column
        if temperature == zero:
            newest[row] = ids[peak]
            continue
        for column in range(columns):
            logits[row, column] /= temperature
        least = lowest
        if 0 < best.shape[1] < columns:
            least = least_of_best(logits[row, :columns], best[row])
        highest = logits[row, peak]
        total = np.float64(0)
        for column in range(columns):
            less = logits[row, column] - highest
            logits[row, column] = exponential(less) if logits[row, column] >= least and less > -reach else zero
            total += np.float64(logits[row, column])
        target, mass, chosen = total * uniforms[row, drawn], np.float64(0), peak
        for column in range(columns):
            if logits[row, column] > zero:
                mass += np.float64(logits[row, column])
                chosen = column
                if mass > target:
                    break
        newest[row] = ids[chosen]


@compiled
def step(first, last, embedding, hidden, newest, counters, history, layers, choice):
    """Take rows through a step: their newest ids go in, the next ones are drawn and become the newest.

    counters, history: of the state, whose places move on.   layers, choice: what carry() and draw() are called with.
    """
    for row in range(first, last):
        for k in range(hidden.shape[1]):
            hidden[row, k] = embedding[newest[row], k]
    carry(first, last, *layers)
    drawn = counters[2, first]
    draw(first, last, drawn, *choice)
    for row in range(first, last):
        history[row, REPETITION_WINDOW + drawn] = newest[row]
        counters[0, row] += 1
        counters[1, row] -= 1
        counters[2, row] += 1
