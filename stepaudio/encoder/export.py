"""Writing the encoder as ONNX files: float32, and with its matrix products in int8.

int8 is ONNX Runtime's dynamic quantisation: weights signed, one scale for each output channel; activations unsigned,
one scale for each call; attention, norms and convolutions stay float32.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from stepaudio.encoder import onnx_session
from stepaudio.encoder.exported import (
    FLOAT,
    GRAPH_REVISION,
    INT8,
    Description,
    description_of,
    source_hashes,
)
from stepaudio.encoder.fingerprint import hash_file
from stepaudio.encoder.funasr_folder import load_funasr
from stepaudio.encoder.paraformer import window_encoder
from stepaudio.encoder.sanm import SanmConfig
from stepaudio.errors import StepAudioError

_LARGEST = 2**31 - 1
"""A file of protobuf cannot be larger; the real encoder has 0.63 GB."""


def export_encoder(folder: Path, target: Path, *, int8: bool) -> list[Path]:
    """Write the encoder of a FunASR folder to ``target``, and return the ONNX files that were written.

    Always ``encoder.onnx``; with ``int8`` also ``encoder.int8.onnx``; each with its description. A file appears when
    it is complete. Raises WeightsError for a faulty folder, StepAudioError where the target cannot be written.
    """
    import torch
    from onnx import save_model

    from stepaudio.encoder.graph import build_graph

    made_of = source_hashes(folder)
    network = window_encoder(load_funasr(folder, torch.device("cpu")).model.get_submodule("encoder"), folder)
    model = build_graph(network)
    if model.ByteSize() > _LARGEST:
        raise StepAudioError(f"The encoder of {folder} is too large for one ONNX file ({model.ByteSize()} bytes).")
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=target) as name:
            work = Path(name)
            save_model(model, str(work / FLOAT))
            names = [FLOAT, INT8] if int8 else [FLOAT]
            if int8:
                _quantise(work / FLOAT, work / INT8)
            return [_publish(work / name, target, made_of, network.config) for name in names]
    except OSError as error:
        raise StepAudioError(f"The exported encoder cannot be written to {target} ({error.strerror}).") from error


def _quantise(source: Path, target: Path) -> None:
    """Write ``source`` with the products of its linear layers in int8."""
    import onnx

    onnx_session.runtime()  # first, because it sees to it that nothing is reported
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(str(source))
    # The mark of the quantiser's own preparation: without it, it warns through the root logger and so sets that up.
    # The graph needs none, its shapes being plain and nothing in it being left to fold.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    marked = source.with_name(f"marked-{source.name}")
    onnx.save_model(model, str(marked))
    quantize_dynamic(marked, target, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8)


def _publish(made: Path, target: Path, made_of: dict[str, str], sizes: SanmConfig) -> Path:
    """Move a finished file and its description into ``target`` and return its place there."""
    description = Description(GRAPH_REVISION, made_of, hash_file(made)[0], sizes)
    description_of(made).write_text(description.to_json(), encoding="utf-8")
    final = target / made.name
    os.replace(made, final)
    os.replace(description_of(made), description_of(final))
    return final
