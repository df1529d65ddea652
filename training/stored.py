"""How mini's weights are stored: in half the room or less, which every loader of the product widens again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from stepaudio.tokens import LINGUISTIC_CODES, PAD_LINGUISTIC
from stepaudio.vocoder.dit import TIME_FEATURES

SMALL = 256
"""Arrays with fewer numbers stay as they are."""

LEAST_SCALE = 1e-6
"""Of a row of zeros."""

STEPS = 127
"""Of a byte, either way of zero."""

EXACT = 1e-2
"""Steps by which rounding in single precision may be off."""

ESTIMATOR = "decoder.estimator."
TIME_LAYERS = tuple(f"{ESTIMATOR}t_embedder.mlp.{place}." for place in (0, 2))
TIME_OUT = ".adaLN_modulation.1."
FLOW_TABLE = "input_embedding.embedding.weight"


def as_bytes(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight (output, ...) rounded to STEPS steps either way of what is largest in each output.

    Vectors stay as they are.
    """
    if weight.ndim < 2:
        return weight
    scale = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True).clamp(min=LEAST_SCALE) / STEPS
    return (weight / scale).round() * scale


@torch.no_grad()
def to_bytes(model: nn.Module) -> None:
    """Round all weights of a model as ``as_bytes`` does, so that storing them so changes nothing."""
    for weight in model.parameters():
        weight.copy_(as_bytes(weight))


def compact(path: Path) -> None:
    """Store the arrays of an ONNX file as bytes with a scale for each output where ``as_bytes`` made them, else halved.

    The runtime widens them once, when it loads them, and computes in full precision.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    columns = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}
    nodes = []
    for tensor in list(model.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) < SMALL:
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        output = values.ndim - 1 if name in columns else 0
        others = tuple(axis for axis in range(values.ndim) if axis != output)
        scale = np.maximum(np.abs(values).max(others, keepdims=True), LEAST_SCALE).astype(np.float32) / STEPS
        if values.ndim > 1 and np.abs(values / scale - np.rint(values / scale)).max() < EXACT:
            stored, wide, factor = (f"{name}_{part}" for part in ("bytes", "wide", "scale"))
            tensor.CopyFrom(numpy_helper.from_array(np.rint(values / scale).astype(np.int8), stored))
            model.graph.initializer.append(numpy_helper.from_array(scale, factor))
            nodes.append(helper.make_node("Cast", [stored], [wide], to=TensorProto.FLOAT))
            nodes.append(helper.make_node("Mul", [wide, factor], [name]))
        else:
            stored = f"{name}_half"
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
            nodes.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def half(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights in half precision."""
    return {name: value.half() for name, value in state.items()}


def flow_file(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what flow.pt holds of a trained flow: timeless, and deaf to linguistic codes."""
    return timeless(deaf(state))


def deaf(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a flow's weights with a table in which every linguistic code tells what none does.

    It is trained so (training.flow): no linguistic code may mislead it.
    """
    table = state[FLOW_TABLE].clone()
    table[:LINGUISTIC_CODES] = table[PAD_LINGUISTIC]
    return state | {FLOW_TABLE: table}


def timeless(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a flow's weights in half precision, with what tells its layers the time as it is at time 0.

    Mini makes the mel in one step, from time 0 to time 1, so the time is the same always: what its matrices make of it
    goes into the biases, and the matrices become zeros, of which a file holds one. They are a fifth of the flow.
    """
    half_features = TIME_FEATURES // 2
    told = torch.cat((torch.ones(half_features), torch.zeros(half_features)))  # cosines and sines of 0
    first, second = ({part: state[layer + part].float() for part in ("weight", "bias")} for layer in TIME_LAYERS)
    told = nn.functional.silu(first["weight"] @ told + first["bias"])
    told = nn.functional.silu(second["weight"] @ told + second["bias"])
    out = half(state)
    for name in state:
        if name.endswith(f"{TIME_OUT}weight"):
            bias = name.removesuffix("weight") + "bias"
            out[bias] = (state[bias].float() + state[name].float() @ told).half()
            out[name] = torch.zeros(1, 1, dtype=torch.half).expand(state[name].shape)
    return out
