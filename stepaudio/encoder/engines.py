"""What computes the linguistic codes: torch in float32 or bfloat16, or an exported encoder in ONNX Runtime.

Codes of one engine are never taken for another's: the engine is part of the cache's fingerprint. Not offered is
ONNX Runtime's TensorRT provider: it rounds to TF32, and has no option of a session against that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from stepaudio.encoder.exported import FLOAT, INT8, OnnxNetwork, check_export
from stepaudio.encoder.funasr_folder import load_frontend
from stepaudio.encoder.paraformer import LinguisticEncoder, StackedFbank, load_centroids, load_linguistic

LinguisticEngine = Literal["torch", "torch-bf16", "onnx", "onnx-int8"]

EXPORTS: dict[LinguisticEngine, str] = {"onnx": FLOAT, "onnx-int8": INT8}


@dataclass(frozen=True)
class LinguisticChoice:
    """An engine, and the folder of the exported encoder (None: it lies in the FunASR folder)."""

    engine: LinguisticEngine = "torch"
    exported: Path | None = None

    def export_in(self, folder: Path) -> Path | None:
        """Return the ONNX file that this choice runs for the FunASR ``folder``, None where it runs none."""
        name = EXPORTS.get(self.engine)
        return None if name is None else (self.exported or folder) / name


TORCH = LinguisticChoice()
"""The engine that the others are held against."""


def load_chosen(
    choice: LinguisticChoice, folder: Path, centroids: Path, *, device: torch.device, threads: int
) -> LinguisticEncoder:
    """Return the linguistic encoder of a FunASR folder, run by the engine that is chosen.

    With an exported encoder model.pt is only hashed, not loaded, so ``funasr`` of what is returned is None.
    Raises WeightsError naming what is missing, damaged or out of date.
    """
    path = choice.export_in(folder)
    if path is None:
        dtype = torch.bfloat16 if choice.engine == "torch-bf16" else torch.float32
        return load_linguistic(folder, centroids, device=device, dtype=dtype)
    # ONNX Runtime multiplies unsigned by signed bytes on the CPU alone: with a GPU it would copy at every layer.
    place = torch.device("cpu") if choice.engine == "onnx-int8" else device
    network = OnnxNetwork(path, check_export(path, folder), device=place, threads=threads)
    fbank = StackedFbank.of(load_frontend(folder))
    return LinguisticEncoder(fbank, network, load_centroids(centroids, network.config.size), device=place)


def engine_words(encoder: LinguisticEncoder, choice: LinguisticChoice) -> str:
    """Return in a few words what runs, e.g. "onnx-int8, CPUExecutionProvider"."""
    where = encoder.provider or encoder.device.type
    return f"{choice.engine}, {where}"
