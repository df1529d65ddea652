"""Semantic codes: the S3 speech tokenizer of CosyVoice-300M-25Hz, an ONNX model (25 Hz, 4096 codes)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from stepaudio.encoder.onnx_session import Port, check_inputs, create_session, run_first_output, running_provider
from stepaudio.errors import WeightsError
from stepaudio.features import WHISPER_MELS, WHISPER_RATE, whisper_log_mel
from stepaudio.tokens import SEMANTIC_CODES
from stepaudio.types import FloatArray, IntArray

BLOCK_SECONDS = 30
SHORTEST_BLOCK = 480
"""Samples below which a block is dropped."""

CODE_RATE = 25
COUNT_TOLERANCE = 2

_WHAT = "a 25 Hz speech tokenizer"
_INPUTS = (Port("float", (1, WHISPER_MELS, None)), Port("int32", (1,)))


class SemanticEncoder:
    """16 kHz samples to semantic codes. ``provider`` is what the model really runs with."""

    def __init__(self, path: Path, *, device: torch.device, threads: int) -> None:
        """Load the model; raises WeightsError naming ``path`` where it is missing, damaged or something else."""
        self._path = path
        self._session = create_session(path, device, threads)
        # Fed by position: the names differ between exports of the same model.
        self._features, self._length = check_inputs(self._session, path, _INPUTS, _WHAT)
        self.provider = running_provider(self._session)

    def encode(self, samples: FloatArray) -> IntArray:
        """Return the codes, int64 (about 25 a second), of 16 kHz ``samples``.

        Blocks of 30 s are encoded by themselves, each with its own log-mel; one under 480 samples is dropped.
        """
        step = BLOCK_SECONDS * WHISPER_RATE
        blocks = [samples[start : start + step] for start in range(0, len(samples), step)]
        codes = [self._encode_block(block) for block in blocks if len(block) >= SHORTEST_BLOCK]
        return np.concatenate(codes) if codes else np.zeros(0, np.int64)

    def encode_features(self, mel: FloatArray) -> IntArray:
        """Return the codes, int64 (ceil(T / 4),), of a log-mel (128, T) of at most 30 s."""
        length = np.array([mel.shape[1]], np.int32)
        out = run_first_output(self._session, self._path, {self._features: mel[None], self._length: length})
        if out.dtype.kind != "i":
            raise WeightsError(f"The model {self._path.name} in {self._path.parent} gives {out.dtype}, not codes.")
        codes: IntArray = out.reshape(-1).astype(np.int64)
        if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < SEMANTIC_CODES:
            raise WeightsError(
                f"The model {self._path.name} in {self._path.parent} gives codes outside 0..{SEMANTIC_CODES - 1}."
            )
        return codes

    def _encode_block(self, samples: FloatArray) -> IntArray:
        codes = self.encode_features(whisper_log_mel(samples))
        expected = len(samples) / WHISPER_RATE * CODE_RATE
        if abs(len(codes) - expected) > COUNT_TOLERANCE:
            raise WeightsError(
                f"The model {self._path.name} in {self._path.parent} gives {len(codes)} codes "
                f"where {expected:.0f} were expected: it is not {_WHAT}."
            )
        return codes
