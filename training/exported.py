"""The two code encoders of a weights folder, to be trained on: for them no checkpoint is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stepaudio.encoder import funasr_folder
from training import linguistic_export
from training.linguistic import CONFIG, Quantised
from training.semantic import Tokenizer


def exported_frames(folder: Path) -> Quantised:
    """Return encoder, statistics and centroids of an exported Step-Audio-Tokenizer."""
    inner = folder / linguistic_export.FUNASR_FOLDER
    lines = (inner / funasr_folder.CMVN).read_text(encoding="utf-8").splitlines()
    shift, scale = (
        torch.tensor([float(one) for one in line[line.index("[") + 1 : line.rindex("]")].split()])[
            : CONFIG.input_size // 7
        ]
        for line in lines
        if line.startswith("<LearnRateCoef>")
    )
    centroids = torch.from_numpy(np.load(folder / "linguistic_tokenizer.npy", allow_pickle=False))
    model = Quantised(CONFIG, -shift, 1 / scale, centroids)
    state = torch.load(inner / funasr_folder.WEIGHTS, weights_only=True)
    prefix = "encoder."
    encoder = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    model.encoder.load_state_dict(encoder)
    return model


def exported_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of an exported speech_tokenizer_v1.onnx.

    The exporter keeps the names of all weights but those of matrices, which are turned over and told by the bias that
    is added to their product. What stands behind the bottleneck was not exported; nothing here needs it.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    stored = {one.name: numpy_helper.to_array(one).astype(np.float32) for one in graph.initializer}
    stored |= {
        node.output[0]: stored[node.input[0]]
        for node in graph.node
        if node.op_type == "Cast" and node.input[0] in stored
    }
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
