"""The speaker vector: CAM++ (3D-Speaker), an ONNX model from filterbank frames to 192 numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stepaudio.encoder.onnx_session import Port, check_inputs, create_session, run_first_output, running_provider
from stepaudio.errors import WeightsError
from stepaudio.features import FBANK_BINS, speaker_fbank
from stepaudio.types import FloatArray

SPEAKER_SIZE = 192

_INPUTS = (Port("float", (None, None, FBANK_BINS)),)


class SpeakerEncoder:
    """16 kHz samples to a speaker vector. ``provider`` is what the model really runs with."""

    def __init__(self, path: Path, *, device: torch.device, threads: int) -> None:
        """Load the model; raises WeightsError naming ``path`` where it is missing, damaged or something else."""
        self._path = path
        self._session = create_session(path, device, threads)
        (self._input,) = check_inputs(self._session, path, _INPUTS, "a CAM++ speaker encoder")
        self.provider = running_provider(self._session)

    def encode(self, samples: FloatArray) -> FloatArray:
        """Return the vector, float32 (192,), not normalised, of 16 kHz ``samples``; zeros below 25 ms of sound."""
        bank = speaker_fbank(samples)
        if len(bank) == 0:
            return np.zeros(SPEAKER_SIZE, np.float32)
        out = run_first_output(self._session, self._path, {self._input: bank[None]})
        if out.shape != (1, SPEAKER_SIZE):
            raise WeightsError(
                f"The model {self._path.name} in {self._path.parent} gives {out.shape}, not (1, {SPEAKER_SIZE}): "
                "it is not a CAM++ speaker encoder."
            )
        vector: FloatArray = out[0].astype(np.float32)
        return vector
