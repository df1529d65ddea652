# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, call-overload, call-arg, import-untyped"
"""The loops of compiled.py, for Numba: a step's layers and its draw, for the rows first .. last - 1 of a state.

Importing this module imports Numba. Nothing is compiled before it is called with arrays; what was compiled is kept on
disk, where there is a place for it (beside the source, or NUMBA_CACHE_DIR), and used again by the next process.

Letters as in compiled.py.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic, overload

from stepaudio.llm.sampling import REPETITION_WINDOW, UNKNOWN_ID

SIDE_BY_SIDE = 4
"""Sequences that share a reading of the weights."""

ORDER_OF_SUMS = {"reassoc", "contract", "nsz"}
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
    options = {"fastmath": ORDER_OF_SUMS, "nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder that may be written to
        return numba.njit(**options)(function)


def widens_halves() -> bool:
    """Return whether this processor widens half precision by itself."""
    arm = binding.get_default_triple().startswith(("aarch64", "arm64"))
    return arm or binding.get_host_cpu_features().get("f16c", False)


@intrinsic
def widened(_context, bits):
    def emit(_, builder, __, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), emit


@intrinsic
def as_float(_context, bits):
    def emit(_, builder, __, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), emit


def number(stored):
    """A weight as it is reckoned with: a float32, or that of a half's bits."""
    raise NotImplementedError("It is for compiled functions alone.")


@overload(number, inline="always")
def _number(stored):
    return (lambda stored: widened(stored)) if stored == types.uint16 else (lambda stored: stored)


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
def alone(weight, x, out, add):
    """out (N,) = weight (N, K) @ x (K,), or that added to it; four rows of the matrix at a time."""
    outer, depth = weight.shape
    for n in range(0, outer - 3, 4):
        a = b = c = d = zero
        for k in range(depth):
            a += number(weight[n, k]) * x[k]
            b += number(weight[n + 1, k]) * x[k]
            c += number(weight[n + 2, k]) * x[k]
            d += number(weight[n + 3, k]) * x[k]
        out[n] = a + (out[n] if add else zero)
        out[n + 1] = b + (out[n + 1] if add else zero)
        out[n + 2] = c + (out[n + 2] if add else zero)
        out[n + 3] = d + (out[n + 3] if add else zero)
    for n in range(outer - outer % 4, outer):
        a = zero
        for k in range(depth):
            a += number(weight[n, k]) * x[k]
        out[n] = a + (out[n] if add else zero)


@compiled
def together(weight, x, out, add):
    """out (4, N) = x (4, K) @ weight (N, K).T, or that added to it; two rows of the matrix at a time."""
    outer, depth = weight.shape
    for n in range(0, outer - 1, 2):
        a = b = c = d = e = f = g = h = zero
        for k in range(depth):
            first, second = number(weight[n, k]), number(weight[n + 1, k])
            a += first * x[0, k]
            b += first * x[1, k]
            c += first * x[2, k]
            d += first * x[3, k]
            e += second * x[0, k]
            f += second * x[1, k]
            g += second * x[2, k]
            h += second * x[3, k]
        for row, left, right in ((0, a, e), (1, b, f), (2, c, g), (3, d, h)):
            out[row, n] = left + (out[row, n] if add else zero)
            out[row, n + 1] = right + (out[row, n + 1] if add else zero)
    if outer % 2:
        for row in range(4):
            alone(weight[outer - 1 :], x[row], out[row, outer - 1 :], add)


@compiled
def product(weight, x, out, first, last, add):
    """The product of rows first .. last - 1, as many as can be side by side."""
    row = first
    while row + SIDE_BY_SIDE <= last:
        together(weight, x[row : row + SIDE_BY_SIDE], out[row : row + SIDE_BY_SIDE], add)
        row += SIDE_BY_SIDE
    while row < last:
        alone(weight, x[row], out[row], add)
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
def score(query, keys, place, slope, roots, out):
    """Scores of positions 0 .. place for a query (d,), by their keys (capacity, d) and distances."""
    head, count = len(query), place + 1
    scale = one / np.sqrt(np.float32(head))
    for position in range(0, count - 3, 4):
        a = b = c = d = zero
        for k in range(head):
            a += query[k] * keys[position, k]
            b += query[k] * keys[position + 1, k]
            c += query[k] * keys[position + 2, k]
            d += query[k] * keys[position + 3, k]
        out[position], out[position + 1], out[position + 2], out[position + 3] = a, b, c, d
    for position in range(count - count % 4, count):
        a = zero
        for k in range(head):
            a += query[k] * keys[position, k]
        out[position] = a
    for position in range(count):
        out[position] = out[position] * scale - slope * roots[place - position]


@compiled
def share(scores, count):
    """Turn ``count`` scores into e to the power of them, less the highest; return the sum."""
    peak = scores[0]
    for position in range(count):
        peak = scores[position] if scores[position] > peak else peak
    total = zero
    for position in range(count):
        scores[position] = exponential(scores[position] - peak)
        total += scores[position]
    return total


@compiled
def mix(shares, values, count, factor, out):
    """out (d,) = factor * shares (count,) @ values (capacity, d)."""
    head = len(out)
    for k in range(head):
        out[k] = zero
    for position in range(0, count - 3, 4):
        a, b, c, d = shares[position], shares[position + 1], shares[position + 2], shares[position + 3]
        for k in range(head):
            both = a * values[position, k] + b * values[position + 1, k]
            out[k] += both + c * values[position + 2, k] + d * values[position + 3, k]
    for position in range(count - count % 4, count):
        for k in range(head):
            out[k] += shares[position] * values[position, k]
    for k in range(head):
        out[k] *= factor


@compiled
def attend(joint, keys, values, place, slopes, roots, scores, out):
    """Attention of all heads to positions 0 .. place, after the newest key and value were written there.

    joint: queries, keys, values of the newest position.   keys, values: (G, capacity, d).   out: (D,).
    scores: room (capacity,).   roots: the square root of every distance.
    """
    groups, heads, head = len(keys), len(slopes), keys.shape[2]
    queries = heads // groups
    for group in range(groups):
        at = (heads + group) * head
        for k in range(head):
            keys[group, place, k] = joint[at + k]
            values[group, place, k] = joint[at + groups * head + k]
        for query in range(group * queries, (group + 1) * queries):
            at = query * head
            score(joint[at : at + head], keys[group], place, slopes[query], roots, scores)
            total = share(scores, place + 1)
            mix(scores, values[group], place + 1, one / total, out[at : at + head])


@compiled
def carry(
    first,
    last,
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
    for layer in range(len(joint_weights)):
        for row in range(first, last):
            normalise(hidden[row], norms[2 * layer], eps, normed[row])
        product(joint_weights[layer], normed, joint, first, last, False)
        for row in range(first, last):
            keys, values = cells[layer, 0, row], cells[layer, 1, row]
            attend(joint[row], keys, values, positions[row], slopes, roots, scores[row], context[row])
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
            logit = logits[row, column]
            logits[row, column] = np.exp(logit - highest) if logit >= least else zero
            total += np.float64(logits[row, column])
        target, mass, chosen = total * uniforms[row, drawn], np.float64(0), peak
        for column in range(columns):
            if logits[row, column] > zero:
                mass += np.float64(logits[row, column])
                chosen = column
                if mass > target:
                    break
        newest[row] = ids[chosen]
