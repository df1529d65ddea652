"""The reference encoder: all that a voice needs from its sound, four independent parts side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from stepaudio import audio
from stepaudio.features import MelConfig, log_mel
from stepaudio.threads import lone_threads
from stepaudio.types import EncodedReference, FloatArray, IntArray, PartTime, ReferenceEncoding, Waveform

PARTS = ("Linguistic", "Semantic", "Mel", "Speaker")
"""The names of the parts in EncodedReference.parts, in this order."""

Array = TypeVar("Array", bound=npt.NDArray[np.generic])


class CodeEncoder(Protocol):
    """Turns prepared 16 kHz samples into codes."""

    def encode(self, samples: FloatArray) -> IntArray: ...


class VectorEncoder(Protocol):
    """Turns 16 kHz samples into one speaker vector."""

    def encode(self, samples: FloatArray) -> FloatArray: ...


class ReferenceEncoder:
    """Encodes the sound of a voice; the same sound gives the same bits, however the threads run.

    The parts run beside each other in threads of the object, which compute alone (see threads.py); :meth:`close` ends
    them. Where there are cores for all parts, the linguistic encoder, the largest one, works in the calling thread
    instead, which has helpers.

    threads: how many cores there are to compute with.
    """

    def __init__(
        self,
        *,
        linguistic: CodeEncoder,
        semantic: CodeEncoder,
        speaker: VectorEncoder,
        mel: MelConfig,
        threads: int = len(PARTS),
    ) -> None:
        self.linguistic, self.semantic, self.speaker, self.mel = linguistic, semantic, speaker, mel
        self._scarce = threads < len(PARTS)
        self._pool = lone_threads(threads if self._scarce else len(PARTS) - 1, "reference-encoder")

    def encode(self, waveform: Waveform) -> EncodedReference:
        """Return the encoding of a mono, finite ``waveform`` of any rate, with what each part took.

        Everything works on the sound limited to a peak of 0.6: the codes on what ``audio.prepare_for_codes``
        makes of it, mel and speaker vector on the whole of it, untrimmed.
        """
        start = time.perf_counter()
        sound = audio.limit_peak(Waveform(audio.to_mono(waveform.samples), waveform.sample_rate))
        at_16k = audio.resample(sound, audio.CODE_RATE)
        prepared = audio.prepare_for_codes(at_16k)

        def work() -> tuple[IntArray, PartTime]:
            return _timed("Linguistic", lambda: self.linguistic.encode(prepared))

        # The longest first, so that on few cores it does not come last.
        linguistic = self._pool.submit(work) if self._scarce else None
        semantic = self._pool.submit(_timed, "Semantic", lambda: self.semantic.encode(prepared))
        speaker = self._pool.submit(_timed, "Speaker", lambda: self.speaker.encode(at_16k.samples))
        mel = self._pool.submit(
            _timed, "Mel", lambda: log_mel(audio.resample(sound, self.mel.sampling_rate).samples, self.mel)
        )
        beside: list[Future[Any]] = [semantic, speaker, mel]
        try:
            first = work() if linguistic is None else linguistic.result()
        finally:
            wait(beside)  # all of them, also where one has failed
        parts = first, semantic.result(), mel.result(), speaker.result()
        (codes, _), (tokens, _), (log_mels, _), (vector, _) = parts
        encoding = ReferenceEncoding(linguistic=codes, semantic=tokens, mel=log_mels, speaker=vector)
        return EncodedReference(encoding, time.perf_counter() - start, tuple(times for _, times in parts))

    def close(self) -> None:
        """End the threads once their work is done; the object cannot encode afterwards."""
        self._pool.shutdown(wait=True)


def _timed(name: str, work: Callable[[], Array]) -> tuple[Array, PartTime]:
    """Return what the work gives, and when it was done."""
    begin = time.perf_counter()
    value = work()
    return value, PartTime(name, begin, time.perf_counter())
