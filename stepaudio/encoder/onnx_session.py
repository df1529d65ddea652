"""ONNX Runtime sessions: where they run is chosen, checked and said, never silently changed.

ONNX Runtime reports its use to its maker from its import on, so ``runtime`` is how everything here comes by it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stepaudio.errors import WeightsError
from stepaudio.settings import report_to_nobody

if TYPE_CHECKING:
    import onnxruntime

log = logging.getLogger(__name__)

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"

# HEURISTIC: the default searches anew for every length of sound. use_tf32: rounding must not move codes.
_CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}


def runtime() -> ModuleType:
    """Return the module onnxruntime, which reports nothing unless the operator wants it to."""
    report_to_nobody()
    import onnxruntime

    module: ModuleType = onnxruntime
    return module


def runtime_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises; it has no common base class."""
    state = runtime().capi.onnxruntime_pybind11_state
    return (
        state.EPFail,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
    )


@dataclass(frozen=True)
class Port:
    """What an input or output must look like; a None in ``shape`` may be anything."""

    dtype: str
    shape: tuple[int | None, ...]

    def fits(self, node: Any) -> bool:
        """Return whether a NodeArg is of this type and shape, as far as its shape is declared."""
        if node.type != f"tensor({self.dtype})" or (node.shape and len(node.shape) != len(self.shape)):
            return False
        declared = zip(node.shape, self.shape, strict=True) if node.shape else ()
        return all(want is None or not isinstance(have, int) or have == want for have, want in declared)


def create_session(path: Path, device: torch.device, threads: int) -> onnxruntime.InferenceSession:
    """Return a session on ``device`` with ``threads`` CPU threads.

    On a CUDA device the CUDA provider is asked for; whether it came is logged, as a WARNING where the session fell
    back to the CPU. Raises WeightsError naming the file and its folder where it is missing or damaged.
    """
    if not path.is_file():
        raise WeightsError(f"The file {path.name} is missing in {path.parent}.")
    on_gpu = device.type != "cpu"
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the cores from the other parts, which run beside this one.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    wanted: list[Any] = [CPU]
    # Of a build for the CPU nothing is to be preloaded: it would only print that it cannot.
    if on_gpu and CUDA in onnxruntime.get_available_providers():
        onnxruntime.preload_dlls()  # CUDA and cuDNN libraries that torch brought along
        wanted.insert(0, (CUDA, {"device_id": str(device.index or 0), **_CUDA_OPTIONS}))
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
    except runtime_errors() as error:
        raise WeightsError(f"The file {path.name} in {path.parent} is damaged or not an ONNX model.") from error
    provider = running_provider(session)
    if on_gpu and provider != CUDA:
        log.warning("%s runs on the CPU (%s) although a GPU was asked for: encoding will be slow.", path.name, provider)
    else:
        log.info("%s runs with %s.", path.name, provider)
    return session


def running_provider(session: onnxruntime.InferenceSession) -> str:
    """Return the name of the provider that the session really runs with."""
    return str(session.get_providers()[0])


def check_inputs(session: onnxruntime.InferenceSession, path: Path, inputs: Sequence[Port], what: str) -> list[str]:
    """Return the names of the inputs in order; raises WeightsError where they are not those of ``what``."""
    nodes = session.get_inputs()
    if len(nodes) != len(inputs) or not all(port.fits(node) for port, node in zip(inputs, nodes, strict=True)):
        found = ", ".join(f"{node.type} {node.shape}" for node in nodes)
        raise WeightsError(f"The file {path.name} in {path.parent} is not {what}: its inputs are {found}.")
    return [node.name for node in nodes]


def run_first_output(
    session: onnxruntime.InferenceSession, path: Path, feeds: dict[str, np.ndarray[Any, Any]]
) -> np.ndarray[Any, Any]:
    """Return the first output; raises WeightsError where the model cannot run on what its kind must accept."""
    try:
        out: np.ndarray[Any, Any] = session.run(None, feeds)[0]
    except runtime_errors() as error:
        raise WeightsError(f"The model {path.name} in {path.parent} failed: {error}") from error
    return out
