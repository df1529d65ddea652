# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, call-overload, call-arg, import-untyped"
# mypy: disable-error-code="unreachable, var-annotated"
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
from numba.extending import intrinsic, models, register_model

from stepaudio.llm.sampling import REPETITION_WINDOW, UNKNOWN_ID

WIDE = binding.get_host_cpu_features().get("avx512f", False)
LANES, SIDE_BY_SIDE = (16, 8) if WIDE else (8, 4)
"""Numbers in a vector, and sequences that share a reading of the weights: what the processor's registers hold."""

LEAST_BESIDE, AT_ONCE = 4, 8
"""Fewer sequences than this go one by one, with so many sums at once."""

BLOCK = 64
"""Positions whose values stay in the nearest cache while all queries that look at them do."""

ORDER_OF_SUMS = ("reassoc", "contract", "nsz")
"""What of float arithmetic the compiler may change; what is no number must stay so, for the check after a decode."""

FAILURES = (numba.core.errors.NumbaError, RuntimeError, OSError)
"""What calling a kernel may raise where it cannot be compiled: by Numba, by LLVM, by the disk that keeps it."""

zero, half, one = np.float32(0), np.float32(0.5), np.float32(1)
lowest = np.float32(-np.inf)
log_2, log2_e = np.float32(math.log(2)), np.float32(math.log2(math.e))
reach = np.float32(87)
"""Beyond it, e^x or its inverse is no normal float32."""


def compiled(function):
    """Return a function that Numba compiles when it is called, and keeps on disk if it can."""
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


class Vector(types.Type):
    """LANES numbers float32 in a register."""


VECTOR, vector = ir.VectorType(ir.FloatType(), LANES), Vector("Vector")
NOTHING = ir.Constant(VECTOR, [0.0] * LANES)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, VECTOR)


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


def _picked(builder, a, b, places):
    """The numbers of two vectors, one after the other, that are in these places."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places))


def _spread(builder, number):
    """A vector of one number."""
    first = builder.insert_element(ir.Constant(VECTOR, ir.Undefined), number, ir.IntType(32)(0))
    return _picked(builder, first, first, [0] * LANES)


def _sum(builder, first, *others):
    for other in others:
        first = builder.fadd(first, other, flags=ORDER_OF_SUMS)
    return first


def _plus_product(builder, total, a, b):
    return _sum(builder, total, builder.fmul(a, b, flags=ORDER_OF_SUMS))


def _write(builder, vector, place, adding, columns):
    """Write a vector, or the sum of it and what is there; ``columns``: how many there are from that place on."""

    def write(result, place):
        more = _sum(builder, builder.load(place, align=4), result)
        builder.store(builder.select(adding, more, result), place, align=4)

    with builder.if_else(builder.icmp_signed(">=", columns, columns.type(LANES))) as (all_of_it, a_part):
        with all_of_it:
            write(vector, builder.bitcast(place, vector.type.as_pointer()))
        with a_part, cgutils.for_range(builder, columns) as loop:
            write(builder.extract_element(vector, loop.index), builder.gep(place, [loop.index]))


@intrinsic(prefer_literal=True)
def tile(_context, weight, panel, panels, x, row, rows, deep, out, add):
    """out[row + i, n] = weight[n] . x[row + i], or that added to it: for i < rows and all n of some panels.

    weight: (.., K, LANES), as Network.stored() makes it.   panels, rows, deep: constants; each number is the sum of
    ``deep`` ones, which the processor adds to side by side.
    """
    wide, high, parts = panels.literal_value, rows.literal_value, deep.literal_value

    def emit(context, builder, signature, arguments):
        kinds, (factors, panel, _, inputs, row, _, _, results, adding) = signature.args, arguments
        nought = panel.type(0)

        def after(start, number):
            return builder.add(start, start.type(number))

        left = [_place(context, builder, kinds[0], factors, [after(panel, j), nought, nought]) for j in range(wide)]
        right = [_place(context, builder, kinds[3], inputs, [after(row, i), nought]) for i in range(high)]
        totals = [[[cgutils.alloca_once(builder, VECTOR) for _ in range(parts)] for _ in left] for _ in right]
        for total in itertools.chain.from_iterable(itertools.chain.from_iterable(totals)):
            builder.store(NOTHING, total)

        def step(k, part):
            at = builder.mul(k, k.type(LANES))
            weights = [_read(builder, builder.gep(begin, [at])) for begin in left]
            for begin, sums in zip(right, totals, strict=True):
                number = _spread(builder, builder.load(builder.gep(begin, [k])))
                for factor, total in zip(weights, sums, strict=True):
                    builder.store(_plus_product(builder, builder.load(total[part]), factor, number), total[part])

        depth = builder.extract_value(context.make_array(kinds[0])(context, builder, factors).shape, 1)
        whole = builder.and_(depth, depth.type(-parts))
        with cgutils.for_range_slice(builder, nought, whole, panel.type(parts)) as (k, _):
            for part in range(parts):
                step(after(k, part), part)
        if parts > 1:
            with cgutils.for_range_slice(builder, whole, depth, panel.type(1)) as (k, _):
                step(k, 0)
        columns = builder.extract_value(context.make_array(kinds[7])(context, builder, results).shape, 1)
        for i, j in itertools.product(range(high), range(wide)):
            vectors = [builder.load(total) for total in totals[i][j]]
            column = builder.mul(after(panel, j), panel.type(LANES))
            place = _place(context, builder, kinds[7], results, [after(row, i), column])
            _write(builder, _sum(builder, *vectors), place, adding, builder.sub(columns, column))
        return context.get_dummy_value()

    return types.none(weight, types.intp, panels, x, types.intp, rows, deep, out, types.boolean), emit


@intrinsic
def nothing(_context):
    """A vector of zeros."""

    def emit(_, __, ___, ____):
        return NOTHING

    return vector(), emit


@intrinsic
def plus_product(_context, total, factor, matrix, row, column):
    """total + factor * the vector that begins at (row, column)."""

    def emit(context, builder, signature, arguments):
        total, factor, matrix, *where = arguments
        numbers = _read(builder, _place(context, builder, signature.args[2], matrix, where))
        return _plus_product(builder, total, _spread(builder, factor), numbers)

    return vector(vector, types.float32, matrix, types.intp, types.intp), emit


@intrinsic
def plus_products(_context, total, a, row_a, column_a, b, row_b, column_b):
    """total + the vector of one matrix * that of another."""

    def emit(context, builder, signature, arguments):
        total, *rest = arguments
        places = (_place(context, builder, signature.args[n], rest[n - 1], rest[n : n + 2]) for n in (1, 4))
        return _plus_product(builder, total, *(_read(builder, place) for place in places))

    return vector(vector, a, types.intp, types.intp, b, types.intp, types.intp), emit


@intrinsic
def add_sum(_context, vectors, matrix, row, column):
    """Add the sum of some vectors to what is at (row, column) and after it."""

    def emit(context, builder, signature, arguments):
        vectors, matrix, *where = arguments
        place = _place(context, builder, signature.args[1], matrix, where)
        total = _sum(builder, _read(builder, place), *cgutils.unpack_tuple(builder, vectors))
        builder.store(total, builder.bitcast(place, total.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(vectors, matrix, types.intp, types.intp), emit


@intrinsic
def put_sums(_context, vectors, matrix, row, column):
    """Write the sum of each of eight vectors to where (row, column) is and after it.

    Neighbours are added, of two vectors at a time, within parts of four lanes, where shuffling costs least.
    """

    def emit(context, builder, signature, arguments):
        vectors, matrix, *where = arguments

        def parts(a, b, first, second):
            return _sum(builder, _picked(builder, a, b, first), _picked(builder, a, b, second))

        eights = cgutils.unpack_tuple(builder, vectors)
        if LANES == 16:
            eights = [parts(one, one, list(range(8)), list(range(8, 16))) for one in eights]
        for _ in range(2):
            pairs = zip(eights[::2], eights[1::2], strict=True)
            eights = [parts(a, b, [0, 2, 8, 10, 4, 6, 12, 14], [1, 3, 9, 11, 5, 7, 13, 15]) for a, b in pairs]
        sums = parts(*eights, [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])
        place = _place(context, builder, signature.args[1], matrix, where)
        builder.store(sums, builder.bitcast(place, sums.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(vectors, matrix, types.intp, types.intp), emit


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
def product(weight, x, out, first, last, add):
    """The product of rows first .. last - 1 of x with a matrix in panels, written to out's or added to them."""
    panels = len(weight)
    row = first
    while row < last:
        panel = 0
        if last - row >= SIDE_BY_SIDE:
            while panel < panels - 1:
                tile(weight, panel, 2, x, row, SIDE_BY_SIDE, 1, out, add)
                panel += 2
            if panel < panels:
                tile(weight, panel, 1, x, row, SIDE_BY_SIDE, 1, out, add)
            row += SIDE_BY_SIDE
        elif last - row >= LEAST_BESIDE:
            while panel < panels - 1:
                tile(weight, panel, 2, x, row, LEAST_BESIDE, 1, out, add)
                panel += 2
            if panel < panels:
                tile(weight, panel, 1, x, row, LEAST_BESIDE, 1, out, add)
            row += LEAST_BESIDE
        else:
            for panel in range(panels):
                tile(weight, panel, 1, x, row, 1, AT_ONCE, out, add)
            row += 1


@compiled
def normalise(x, weight, eps, out):
    """RMSNorm of x (D,)."""
    square = zero
    for k in range(len(x)):
        square += x[k] * x[k]
    root = one / np.sqrt(square / np.float32(len(x)) + eps)
    for k in range(len(x)):
        out[k] = x[k] * root * weight[k]


@compiled
def score(joint, keys, first, last, start, stop, out):
    """out (H, capacity)[query, n] = joint (.., d)[query] . keys (capacity, d)[n].

    For queries first .. last - 1 and n from start to stop - 1.
    """
    head = keys.shape[1]
    whole = head - head % LANES
    n = start
    while n <= stop - 8:
        for query in range(first, last):
            a = b = c = d = e = f = g = h = nothing()
            for k in range(0, whole, LANES):
                a = plus_products(a, joint, query, k, keys, n, k)
                b = plus_products(b, joint, query, k, keys, n + 1, k)
                c = plus_products(c, joint, query, k, keys, n + 2, k)
                d = plus_products(d, joint, query, k, keys, n + 3, k)
                e = plus_products(e, joint, query, k, keys, n + 4, k)
                f = plus_products(f, joint, query, k, keys, n + 5, k)
                g = plus_products(g, joint, query, k, keys, n + 6, k)
                h = plus_products(h, joint, query, k, keys, n + 7, k)
            put_sums((a, b, c, d, e, f, g, h), out, query, n)
            for place in range(n, n + 8):
                for k in range(whole, head):
                    out[query, place] += joint[query, k] * keys[place, k]
        n += 8
    for query in range(first, last):
        for place in range(n, stop):
            total = zero
            for k in range(head):
                total += joint[query, k] * keys[place, k]
            out[query, place] = total


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
    for position in range(place + 1):
        scores[position] = exponential(scores[position] - peak)
        total += scores[position]
    return total


@compiled
def mix(shares, values, first, last, start, stop, out):
    """Add shares (H, capacity)[query] @ values (capacity, d) of positions start .. stop - 1 to out (H, d)[query]."""
    head = values.shape[1]
    for begin in range(start, stop, BLOCK):
        end = min(begin + BLOCK, stop)
        for query in range(first, last):
            column = 0
            while column <= head - 2 * LANES:
                a = b = c = d = e = f = g = h = nothing()
                for p in range(begin, end - 3, 4):
                    a = plus_product(a, shares[query, p], values, p, column)
                    b = plus_product(b, shares[query, p], values, p, column + LANES)
                    c = plus_product(c, shares[query, p + 1], values, p + 1, column)
                    d = plus_product(d, shares[query, p + 1], values, p + 1, column + LANES)
                    e = plus_product(e, shares[query, p + 2], values, p + 2, column)
                    f = plus_product(f, shares[query, p + 2], values, p + 2, column + LANES)
                    g = plus_product(g, shares[query, p + 3], values, p + 3, column)
                    h = plus_product(h, shares[query, p + 3], values, p + 3, column + LANES)
                for p in range(end - (end - begin) % 4, end):
                    a = plus_product(a, shares[query, p], values, p, column)
                    b = plus_product(b, shares[query, p], values, p, column + LANES)
                add_sum((a, c, e, g), out, query, column)
                add_sum((b, d, f, h), out, query, column + LANES)
                column += 2 * LANES
            for k in range(column, head):
                for p in range(begin, end):
                    out[query, k] += shares[query, p] * values[p, k]


@compiled
def attend(joint, cells, row, common, place, slopes, roots, scores, out):
    """Attention of all heads to positions 0 .. place, after the newest key and value were written there.

    joint: queries, keys, values of the newest position, ((H + 2 G), d).   cells: keys and values of all sequences,
    (2, B, G, capacity, d); the first ``common`` positions of ``row`` are those of row 0.   out: (H, d).
    scores: room (H, capacity).   roots: as in share().
    """
    common, count = min(common, place), place + 1
    groups, heads, head = cells.shape[2], len(slopes), cells.shape[4]
    scale = one / np.sqrt(np.float32(head))
    for group in range(groups):
        first, last = group * heads // groups, (group + 1) * heads // groups
        keys, values = cells[0, row, group], cells[1, row, group]
        for k in range(head):
            keys[place, k] = joint[heads + group, k]
            values[place, k] = joint[heads + groups + group, k]
        score(joint, cells[0, 0, group], first, last, 0, common, scores)
        score(joint, keys, first, last, common, count, scores)
        for query in range(first, last):
            factor = one / share(scores[query], place, scale, slopes[query], roots)
            for position in range(count):
                scores[query, position] *= factor
            for k in range(head):
                out[query, k] = zero
        mix(scores, cells[1, 0, group], first, last, 0, common, out)
        mix(scores, values, first, last, common, count, out)


@compiled
def carry(
    first,
    last,
    common,
    positions,
    cells,
    slopes,
    eps,
    norms,
    joint_weights,
    output_weights,
    gate_up_weights,
    down_weights,
    hidden,
    normed,
    joint,
    context,
    gate_up,
    gated,
    scores,
    roots,
):
    """Carry rows from hidden through all layers and the final norm to normed; see CompiledLayers."""
    units = gated.shape[1]
    heads, head = len(slopes), cells.shape[5]
    for layer in range(len(joint_weights)):
        for row in range(first, last):
            normalise(hidden[row], norms[2 * layer], eps, normed[row])
        product(joint_weights[layer], normed, joint, first, last, False)
        for row in range(first, last):
            heads_joint, heads_context = joint[row].reshape((-1, head)), context[row].reshape((heads, head))
            attend(heads_joint, cells[layer], row, common[0], positions[row], slopes, roots, scores[row], heads_context)
        product(output_weights[layer], context, hidden, first, last, True)
        for row in range(first, last):
            normalise(hidden[row], norms[2 * layer + 1], eps, normed[row])
        product(gate_up_weights[layer], normed, gate_up, first, last, False)
        for row in range(first, last):
            for k in range(units):
                gate = gate_up[row, k]
                gated[row, k] = gate / (one + exponential(-gate)) * gate_up[row, units + k]
        product(down_weights[layer], gated, hidden, first, last, True)
    for row in range(first, last):
        normalise(hidden[row], norms[len(norms) - 1], eps, normed[row])


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
    product(weight, normed, logits, first, last, False)
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
            least = least_of_best(logits[row], best[row])
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
