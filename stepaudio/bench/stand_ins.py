"""A semantic tokenizer of a chosen size: what CosyVoice's speech_tokenizer_v1.onnx computes, with random weights.

Two convolutions that halve the rate, then transformer layers as Whisper's encoder has them, then the nearest of 4096
codes. Its codes mean nothing; its cost is that of the real one, which has 129 million parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stepaudio.features import WHISPER_MELS
from stepaudio.tokens import SEMANTIC_CODES

OPSET, IR_VERSION = 17, 8


@dataclass(frozen=True)
class S3Size:
    """Width, heads and layers of the transformer; its feed-forward part is four times as wide."""

    width: int
    heads: int
    layers: int


class _Graph:
    """Nodes and weights as they are added; every method returns the name of what it made."""

    def __init__(self, seed: int) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._rng = np.random.default_rng(seed)

    def add(self, kind: str, *inputs: str, **attributes: object) -> str:
        from onnx import helper

        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        from onnx import numpy_helper

        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def random(self, *shape: int, fan_in: int) -> str:
        return self.constant(self._rng.standard_normal(shape, np.float32) / np.float32(fan_in**0.5))

    def linear(self, x: str, inner: int, outer: int) -> str:
        product = self.add("MatMul", x, self.random(inner, outer, fan_in=inner))
        return self.add("Add", product, self.constant(np.zeros(outer, np.float32)))

    def norm(self, x: str, width: int) -> str:
        weight, bias = self.constant(np.ones(width, np.float32)), self.constant(np.zeros(width, np.float32))
        return self.add("LayerNormalization", x, weight, bias, axis=-1)

    def gelu(self, x: str) -> str:
        inner = self.add("Erf", self.add("Mul", x, self.number(0.5**0.5)))
        shifted = self.add("Add", inner, self.number(1.0))
        return self.add("Mul", self.add("Mul", x, shifted), self.number(0.5))


def write_s3_of(path: Path, size: S3Size, seed: int) -> None:
    """Write the ONNX file, with the ports of the real one."""
    from onnx import TensorProto, checker, helper

    graph, width = _Graph(seed), size.width
    x = "feats"
    for channels in (WHISPER_MELS, width):
        kernel = graph.random(width, channels, 3, fan_in=3 * channels)
        x = graph.gelu(graph.add("Conv", x, kernel, kernel_shape=[3], strides=[2], pads=[1, 1]))
    x = graph.add("Transpose", x, perm=[0, 2, 1])  # (1, L, width)
    for _ in range(size.layers):
        x = _layer(graph, x, size)
    scores = graph.add("MatMul", graph.norm(x, width), graph.random(width, SEMANTIC_CODES, fan_in=width))
    # The length is an input of the real file; here it only has to be read.
    zero = graph.add("Mul", graph.add("Cast", "feats_length", to=TensorProto.FLOAT), graph.number(0.0))
    codes = graph.add("ArgMax", graph.add("Add", scores, zero), axis=2, keepdims=0)
    graph.nodes.append(helper.make_node("Identity", [codes], ["codes"]))
    inputs = [("feats", TensorProto.FLOAT, [1, WHISPER_MELS, "T"]), ("feats_length", TensorProto.INT32, [1])]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "s3_stand_in",
            [helper.make_tensor_value_info(*port) for port in inputs],
            [helper.make_tensor_value_info("codes", TensorProto.INT64, [1, "L"])],
            graph.weights,
        ),
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    checker.check_model(model)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _layer(graph: _Graph, x: str, size: S3Size) -> str:
    """Add one pre-norm transformer layer: (1, L, width) to the same."""
    width, head = size.width, size.width // size.heads
    split = graph.constant(np.array([0, 0, size.heads, head], np.int64))
    joined = graph.constant(np.array([0, 0, width], np.int64))
    normed = graph.norm(x, width)
    query, key, value = (graph.add("Reshape", graph.linear(normed, width, width), split) for _ in range(3))
    query = graph.add("Transpose", query, perm=[0, 2, 1, 3])
    key = graph.add("Transpose", key, perm=[0, 2, 3, 1])
    value = graph.add("Transpose", value, perm=[0, 2, 1, 3])
    scores = graph.add("Mul", graph.add("MatMul", query, key), graph.number(head**-0.5))
    mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
    mixed = graph.add("Reshape", graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), joined)
    x = graph.add("Add", x, graph.linear(mixed, width, width))
    inner = graph.gelu(graph.linear(graph.norm(x, width), width, 4 * width))
    return graph.add("Add", x, graph.linear(inner, 4 * width, width))
