"""The reference encoder: all that a voice needs from its sound, four independent parts side by side."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from stepaudio import audio
from stepaudio.features import MelConfig, log_mel
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

    The threads belong to the object; :meth:`close` ends them.
    """

    def __init__(
        self, *, linguistic: CodeEncoder, semantic: CodeEncoder, speaker: VectorEncoder, mel: MelConfig
    ) -> None:
        self.linguistic, self.semantic, self.speaker, self.mel = linguistic, semantic, speaker, mel
        self._pool = ThreadPoolExecutor(max_workers=len(PARTS), thread_name_prefix="reference-encoder")

    def encode(self, waveform: Waveform) -> EncodedReference:
        """Return the encoding of a mono, finite ``waveform`` of any rate, with what each part took.

        Everything works on the sound limited to a peak of 0.6: the codes on what ``audio.prepare_for_codes``
        makes of it, mel and speaker vector on the whole of it, untrimmed.
        """
        start = time.perf_counter()
        sound = audio.limit_peak(Waveform(audio.to_mono(waveform.samples), waveform.sample_rate))
        at_16k = audio.resample(sound, audio.CODE_RATE)
        prepared = audio.prepare_for_codes(at_16k)
        # The longest first, so that on few cores it does not come last.
        linguistic = self._start("Linguistic", lambda: self.linguistic.encode(prepared))
        semantic = self._start("Semantic", lambda: self.semantic.encode(prepared))
        speaker = self._start("Speaker", lambda: self.speaker.encode(at_16k.samples))
        mel = self._start("Mel", lambda: log_mel(audio.resample(sound, self.mel.sampling_rate).samples, self.mel))
        futures: list[Future[Any]] = [linguistic, semantic, mel, speaker]
        wait(futures)  # all of them, also where one has failed
        encoding = ReferenceEncoding(
            linguistic=linguistic.result()[0],
            semantic=semantic.result()[0],
            mel=mel.result()[0],
            speaker=speaker.result()[0],
        )
        return EncodedReference(encoding, time.perf_counter() - start, tuple(part.result()[1] for part in futures))

    def _start(self, name: str, work: Callable[[], Array]) -> Future[tuple[Array, PartTime]]:
        def timed() -> tuple[Array, PartTime]:
            begin = time.perf_counter()
            value = work()
            return value, PartTime(name, begin, time.perf_counter())

        return self._pool.submit(timed)

    def close(self) -> None:
        """End the threads once their work is done; the object cannot encode afterwards."""
        self._pool.shutdown(wait=True)
