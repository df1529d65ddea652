"""The window-parallel encoder (sanm.py) written out as an ONNX graph.

Stacked, normalised frames (n, input_size) go in, output frames (n, size) come out, for any n >= 1: positions, windows
and masks are made inside from n alone. The graph is put together by hand, because a traced one would fix the number
of windows or carry the tracer's detours; names of weights are the checkpoint's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from stepaudio.encoder.sanm import CARRIED_FRAMES, MEMORY, NEW_FRAMES, REMEMBERED, WINDOW, SanmEncoder, SanmLayer

INPUT, OUTPUT = "frames", "encoded"
OPSET, IR_VERSION = 17, 8
"""The first opset with LayerNormalization: every ONNX Runtime since 1.12 reads it."""

MASKED = -1e9
"""Added to the scores of positions that do not exist: its exponential is zero beside that of any real score."""


class _Graph:
    """Nodes and constants as they are added; every method returns the name of what it made."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: dict[str, Any] = {}

    def add(self, kind: str, *inputs: str, **attributes: object) -> str:
        """Add a node of one output."""
        return self.split(kind, *inputs, outputs=1, **attributes)[0]

    def split(self, kind: str, *inputs: str, outputs: int, **attributes: object) -> list[str]:
        """Add a node of several outputs."""
        number = len(self.nodes)
        names = [f"{kind}_{number}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=f"{kind}_{number}", **attributes))
        return names

    def weight(self, name: str, tensor: torch.Tensor) -> str:
        """Add a named float32 tensor of the network."""
        self.weights[name] = numpy_helper.from_array(tensor.detach().float().cpu().contiguous().numpy(), name)
        return name

    def number(self, value: float) -> str:
        """Return a float32 scalar, the same one for the same value."""
        return self._constant(np.array(value, np.float32), f"float_{value!r}")

    def integers(self, *values: int) -> str:
        """Return an int64 vector, the same one for the same values."""
        return self._constant(np.array(values, np.int64), "ints_" + "_".join(map(str, values)))

    def integer(self, value: int) -> str:
        """Return an int64 scalar, the same one for the same value."""
        return self._constant(np.array(value, np.int64), f"int_{value}")

    def _constant(self, array: np.ndarray[Any, Any], name: str) -> str:
        if name not in self.weights:
            self.weights[name] = numpy_helper.from_array(array, name)
        return name


class _Windows:
    """What all layers share of a sound: which rows belong to which window, and which of them exist.

    own: int64 (W, 9), rows of each window.   before: int64 (W, 16), rows of the memory, after its 16 empty ones.
    mask: float32 (W, 1, 1, 25), 0 or MASKED.   real: float32 (W, 9, 1), 1 or 0.
    """

    def __init__(self, graph: _Graph, count: str) -> None:
        add, integer, integers = graph.add, graph.integer, graph.integers
        windows = add("Div", add("Add", count, integer(NEW_FRAMES - 1)), integer(NEW_FRAMES))
        rows = add("Mul", windows, integer(NEW_FRAMES))
        self.padding = add("Unsqueeze", add("Sub", rows, count), integers(0))
        starts = add("Range", integer(0), rows, integer(NEW_FRAMES))
        starts = add("Unsqueeze", starts, integers(1))
        self.own = add("Add", starts, integers(*range(WINDOW)))
        self.before = add("Add", starts, integers(*range(MEMORY)))
        known = add("GreaterOrEqual", self.before, integer(MEMORY))
        exists = add("Less", self.own, add("Add", count, integer(CARRIED_FRAMES)))
        visible = add("Concat", known, exists, axis=1)
        mask = add("Where", visible, graph.number(0.0), graph.number(MASKED))
        self.mask = add("Unsqueeze", mask, integers(1, 2))
        self.real = add("Unsqueeze", add("Cast", exists, to=TensorProto.FLOAT), integers(2))


def build_graph(network: SanmEncoder) -> ModelProto:
    """Return the network, in float32, as a checked ONNX model of one input ``frames`` and one output ``encoded``."""
    config, graph = network.config, _Graph()
    count = graph.add("Gather", graph.add("Shape", INPUT), graph.integer(0), axis=0)
    windows = _Windows(graph, count)
    scaled = graph.add("Mul", INPUT, graph.number(math.sqrt(config.size)))
    embedded = graph.add("Add", scaled, _positions(graph, count, config.input_size))
    pads = graph.add("Concat", graph.integers(CARRIED_FRAMES, 0), windows.padding, graph.integers(0), axis=0)
    x = graph.add("Gather", graph.add("Pad", embedded, pads), windows.own, axis=0)
    layers = [(f"encoders0.{i}", layer) for i, layer in enumerate(network.encoders0)]
    layers += [(f"encoders.{i}", layer) for i, layer in enumerate(network.encoders)]
    for name, layer in layers:
        assert isinstance(layer, SanmLayer)
        x = _layer(graph, name, layer, x, windows)
    new = graph.add("Slice", x, graph.integers(CARRIED_FRAMES), graph.integers(WINDOW), graph.integers(1))
    new = graph.add("Reshape", new, graph.integers(-1, config.size))
    new = graph.add("Slice", new, graph.integers(0), graph.add("Unsqueeze", count, graph.integers(0)))
    last = _norm(graph, "after_norm", network.after_norm, new)
    graph.nodes.append(helper.make_node("Identity", [last], [OUTPUT], name=OUTPUT))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "sanm_encoder",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", config.input_size])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", config.size])],
            list(graph.weights.values()),
        ),
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="stepaudio",
    )
    checker.check_model(model)
    return model


def _positions(graph: _Graph, count: str, size: int) -> str:
    """Add the sinusoids (n, size) of positions 1 .. n: all sines, then all cosines (sanm.positions)."""
    numbers = graph.add("Range", graph.integer(1), graph.add("Add", count, graph.integer(1)), graph.integer(1))
    numbers = graph.add("Unsqueeze", graph.add("Cast", numbers, to=TensorProto.FLOAT), graph.integers(1))
    step = -torch.log(torch.tensor(10000.0)) / (size / 2 - 1)
    rates = graph.weight("position_rates", torch.exp(torch.arange(size // 2).float() * step))
    angles = graph.add("Mul", numbers, rates)
    return graph.add("Concat", graph.add("Sin", angles), graph.add("Cos", angles), axis=1)


def _layer(graph: _Graph, name: str, layer: SanmLayer, x: str, windows: _Windows) -> str:
    """Add one layer: (W, 9, input size) to (W, 9, size)."""
    attended = _attention(graph, f"{name}.self_attn", layer, _norm(graph, f"{name}.norm1", layer.norm1, x), windows)
    if layer.residual:
        attended = graph.add("Add", x, attended)
    inner = _norm(graph, f"{name}.norm2", layer.norm2, attended)
    inner = graph.add("Relu", _linear(graph, f"{name}.feed_forward.w_1", layer.feed_forward.w_1, inner))
    return graph.add("Add", attended, _linear(graph, f"{name}.feed_forward.w_2", layer.feed_forward.w_2, inner))


def _attention(graph: _Graph, name: str, layer: SanmLayer, x: str, windows: _Windows) -> str:
    """Add the attention of each window to itself and to what is remembered, and the memory convolution."""
    part = layer.self_attn
    size, add = part.size, graph.add
    mixed = _linear(graph, f"{name}.linear_q_k_v", part.linear_q_k_v, x)
    query, key_value = graph.split("Split", mixed, graph.integers(size, 2 * size), outputs=2, axis=-1)
    remembered = add("Slice", key_value, graph.integers(0), graph.integers(REMEMBERED), graph.integers(1))
    remembered = add("Reshape", remembered, graph.integers(-1, 2 * size))
    remembered = add("Pad", remembered, graph.integers(MEMORY, 0, 0, 0))
    everything = add(
        "Concat", add("Gather", remembered, windows.before, axis=0), key_value, axis=1
    )  # (W, 25, 2 * size)
    key, value = graph.split("Split", everything, graph.integers(size, size), outputs=2, axis=-1)
    heads = graph.integers(0, 0, part.heads, size // part.heads)
    query = add("Mul", query, graph.number((size // part.heads) ** -0.5))
    query = add("Transpose", add("Reshape", query, heads), perm=[0, 2, 1, 3])
    key = add("Transpose", add("Reshape", key, heads), perm=[0, 2, 3, 1])
    value = add("Transpose", add("Reshape", value, heads), perm=[0, 2, 1, 3])
    shares = add("Softmax", add("Add", add("MatMul", query, key), windows.mask), axis=-1)
    attended = add("Transpose", add("MatMul", shares, value), perm=[0, 2, 1, 3])
    attended = add("Reshape", attended, graph.integers(0, 0, size))
    attended = _linear(graph, f"{name}.linear_out", part.linear_out, attended)
    return add("Add", attended, _memory(graph, name, layer, key_value, windows))


def _memory(graph: _Graph, name: str, layer: SanmLayer, key_value: str, windows: _Windows) -> str:
    """Add the values plus their convolution within each window, zeros beyond its ends."""
    part = layer.self_attn
    own = graph.split("Split", key_value, graph.integers(part.size, part.size), outputs=2, axis=-1)[1]
    own = graph.add("Mul", own, windows.real)
    kernel = graph.weight(f"{name}.fsmn_block.weight", part.fsmn_block.weight)
    over_time = graph.add("Transpose", own, perm=[0, 2, 1])
    summed = graph.add("Conv", over_time, kernel, group=part.size, pads=list(part.context))
    return graph.add("Add", graph.add("Transpose", summed, perm=[0, 2, 1]), own)


def _linear(graph: _Graph, name: str, layer: torch.nn.Linear, x: str) -> str:
    product = graph.add("MatMul", x, graph.weight(f"{name}.weight", layer.weight.T))
    return graph.add("Add", product, graph.weight(f"{name}.bias", layer.bias))


def _norm(graph: _Graph, name: str, layer: torch.nn.LayerNorm, x: str) -> str:
    weight, bias = graph.weight(f"{name}.weight", layer.weight), graph.weight(f"{name}.bias", layer.bias)
    return graph.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=layer.eps)
