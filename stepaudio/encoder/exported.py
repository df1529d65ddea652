"""An exported encoder: an ONNX file that takes the place of the network, and the JSON file that says what it is.

Beside ``encoder.onnx`` lies ``encoder.json``: hashes of the files it was made of, its own hash and the network's
sizes. An export of other weights, of another version of the graph, or without its description is refused in one
sentence: it would give wrong codes without a sign of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from stepaudio.encoder import funasr_folder
from stepaudio.encoder.fingerprint import hash_file
from stepaudio.encoder.onnx_session import Port, check_inputs, create_session, run_first_output, running_provider
from stepaudio.encoder.sanm import SanmConfig
from stepaudio.errors import WeightsError

FLOAT, INT8 = "encoder.onnx", "encoder.int8.onnx"
SOURCES = (funasr_folder.WEIGHTS, funasr_folder.CONFIG)
"""The files of the FunASR folder that the graph is made of; am.mvn is applied before it."""

GRAPH_REVISION = 1
"""To be raised whenever graph.py, or how a graph is quantised, changes what comes out."""


@dataclass(frozen=True)
class Description:
    """What the JSON file beside an export says.

    made_of: SHA-256 of each of SOURCES.   sha256: of the ONNX file itself.   sizes: of the network.
    """

    revision: int
    made_of: Mapping[str, str]
    sha256: str
    sizes: SanmConfig

    def to_json(self) -> str:
        """Return the text of the file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Description:
        """Return what a file says; raises WeightsError naming it where it cannot be read."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**fields, "sizes": SanmConfig(**fields["sizes"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise WeightsError(
                f"The file {path.name} in {path.parent}, which describes the exported encoder, cannot be read; "
                f"{_remedy(path)}."
            ) from error


def description_of(path: Path) -> Path:
    """Return where the description of an ONNX file lies."""
    return path.with_suffix(".json")


def source_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a FunASR folder that an export is made of."""
    return {name: hash_file(folder / name)[0] for name in SOURCES}


def check_export(path: Path, folder: Path) -> SanmConfig:
    """Return the sizes of the exported network in ``path``.

    Raises WeightsError where the file is missing, is not the one described beside it, or was made of other files than
    those in the FunASR ``folder``.
    """
    if not path.is_file():
        raise WeightsError(f"The exported encoder {path.name} is missing in {path.parent}; {_remedy(path)}.")
    described = Description.read(description_of(path))
    if described.revision != GRAPH_REVISION:
        raise WeightsError(
            f"The file {path.name} in {path.parent} was exported by another version of stepaudio; {_remedy(path)}."
        )
    for name, found in source_hashes(folder).items():
        if described.made_of.get(name) != found:
            raise WeightsError(
                f"The file {path.name} in {path.parent} was made of another {name} than the one in {folder}; "
                f"{_remedy(path)}."
            )
    if described.sha256 != hash_file(path)[0]:
        raise WeightsError(
            f"The file {path.name} in {path.parent} is not the one that its {description_of(path).name} describes; "
            f"{_remedy(path)}."
        )
    return described.sizes


def _remedy(path: Path) -> str:
    flag = " --int8" if "int8" in path.name else ""
    return f"'python -m stepaudio export-encoder{flag}' writes it anew"


class OnnxNetwork(nn.Module):
    """The encoder in an ONNX file, called as SanmEncoder is; it has no parameters of torch."""

    def __init__(self, path: Path, config: SanmConfig, *, device: torch.device, threads: int) -> None:
        super().__init__()
        self.config = config
        self._path = path
        self._session = create_session(path, device, threads)
        (self._input,) = check_inputs(
            self._session, path, [Port("float", (None, config.input_size))], "an exported encoder of these weights"
        )

    @property
    def provider(self) -> str:
        """The ONNX Runtime provider that really runs."""
        return running_provider(self._session)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return float32 (n, size) for stacked, normalised filterbank frames (n, input_size), on their device."""
        if len(frames) == 0:
            return frames.new_zeros(0, self.config.size)
        out = run_first_output(self._session, self._path, {self._input: frames.float().cpu().numpy()})
        return torch.from_numpy(out).to(frames.device)
