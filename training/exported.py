"""The semantic tokenizer of a weights folder, to be trained on: for it no checkpoint is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from training.semantic import Tokenizer


def exported_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of an exported speech_tokenizer_v1.onnx.

    The exporter keeps the names of all weights but those of matrices, which are turned over and told by the bias that
    is added to their product. What stands behind the bottleneck was not exported; nothing here needs it.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    stored = {one.name: numpy_helper.to_array(one).astype(np.float32) for one in graph.initializer}
    # As bytes they are widened first, and then multiplied by their scales (training.stored).
    for node in graph.node:
        if all(name in stored for name in node.input):
            if node.op_type == "Cast":
                stored[node.output[0]] = stored[node.input[0]]
            elif node.op_type == "Mul":
                stored[node.output[0]] = stored[node.input[0]] * stored[node.input[1]]
    products = {
        node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in stored
    }
    found = dict(stored)
    for node in graph.node:
        if node.op_type == "Add":
            bias = next((name for name in node.input if name.endswith(".bias")), None)
            product = next((name for name in node.input if name in products), None)
            if bias and product:
                found[bias.removesuffix("bias") + "weight"] = stored[products[product]].T
    model = Tokenizer()
    inside = [name for name in model.state_dict() if not name.startswith("bottleneck.outside.")]
    left = model.load_state_dict({name: torch.from_numpy(found[name].copy()) for name in inside}, strict=False)
    assert all(name.startswith("bottleneck.outside.") for name in left.missing_keys)
    return model
