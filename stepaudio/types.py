"""The values that travel between the parts of the pipeline: frozen dataclasses over numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

Stopped = Literal["end", "length"]


@dataclass(frozen=True, eq=False)
class Waveform:
    """Mono sound: ``samples`` float32 (N,) nominally in [-1, 1], at ``sample_rate`` Hz."""

    samples: FloatArray
    sample_rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate


@dataclass(frozen=True, eq=False)
class Reference:
    """What the user gives: the sound of a voice and the words spoken in it."""

    waveform: Waveform
    text: str


@dataclass(frozen=True, eq=False)
class ReferenceEncoding:
    """All that a voice needs, from its audio alone (the transcript never belongs here).

    linguistic: int64 (L,), 0..1023, 16.67 a second.   semantic: int64 (S,), 0..4095, 25 a second.
    mel: float32 (F, 80), natural log, 50 a second.    speaker: float32 (192,).

    Upstream's code calls the linguistic codes "vq02" and the semantic codes "vq06".
    """

    linguistic: IntArray
    semantic: IntArray
    mel: FloatArray
    speaker: FloatArray


@dataclass(frozen=True)
class PartTime:
    """When one of several parts that ran side by side began and ended (time.perf_counter seconds)."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class EncodedReference:
    """A fresh encoding with what it took: wall ``seconds`` of the whole, and each part's own times."""

    encoding: ReferenceEncoding
    seconds: float
    parts: tuple[PartTime, ...] = ()


@dataclass(frozen=True, eq=False)
class SpeechTokens:
    """Speech as whole groups of five numbers [2 linguistic, 3 semantic]; a group is 120 ms.

    numbers: int64 (5 * groups,), the N of each ``<audio_N>``: linguistic code c is c, semantic code c
    is 1024 + c. The id that a language model gives to ``<audio_N>`` is its tokenizer's affair.
    """

    numbers: IntArray

    @property
    def groups(self) -> int:
        return len(self.numbers) // 5


@dataclass(frozen=True)
class Task:
    """One kind of work, e.g. Task("clone") or Task("emotion", "happy"); see tasks.py for the table."""

    name: str
    option: str | None = None


@dataclass(frozen=True)
class SamplingParams:
    """How the language model draws ids.

    temperature 0 means greedy; top_k 0 and top_p 1.0 switch those filters off. max_tokens bounds the new
    ids (None: the pipeline's cap from the text). seed None means that one is drawn and reported.
    """

    temperature: float = 0.7
    top_k: int = 50
    top_p: float = 1.0
    repetition_rule: bool = True
    max_tokens: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Stage:
    """One timed stage: wall ``seconds`` on the critical path, which the children sum to.

    ``busy`` is what the stage itself worked where it ran beside others (None: it ran alone). ``tokens``: how many
    speech tokens were written in it.
    """

    name: str
    seconds: float
    busy: float | None = None
    note: str = ""
    children: tuple[Stage, ...] = ()
    tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """The stages of one request, in order, and its total wall seconds."""

    total: float
    stages: tuple[Stage, ...] = field(default_factory=tuple)

    def find(self, name: str) -> Stage | None:
        """Return the first stage of that name, depth first, or None."""
        pending = list(self.stages)
        while pending:
            stage = pending.pop(0)
            if stage.name == name:
                return stage
            pending = [*stage.children, *pending]
        return None


@dataclass(frozen=True)
class EncodingTimes:
    """How a request came by its reference encoding, in seconds; encode and merge are 0 on a hit.

    A request that waited for another one's encoding is a hit; its ``lookup`` holds the wait.
    """

    hit: bool
    hash: float
    lookup: float
    encode: float = 0.0
    merge: float = 0.0


@dataclass(frozen=True, eq=False)
class Synthesis:
    """The result of one request.

    prompt_ids: what the language model read, prompt after prompt where a long text was spoken in several
    ``passages``.   notices: sentences the user should see beside the sound.
    transcript: the words of the sound, as far as they are known: with them it can be the next reference.
    first_sound: of a stream, the seconds until its first piece, on the clock of ``timings``.
    beside_seconds: how much other sound was made in the time of ``timings``: that of other takes or texts.
    """

    waveform: Waveform
    tokens: SpeechTokens
    prompt_ids: tuple[int, ...]
    timings: Timings
    encoding: EncodingTimes
    seed: int
    stopped: Stopped
    notices: tuple[str, ...] = ()
    transcript: str = ""
    first_sound: float | None = None
    passages: int = 1
    beside_seconds: float = 0.0

    @property
    def cache_hit(self) -> bool:
        return self.encoding.hit

    @property
    def rtf(self) -> float:
        """Compute seconds per second of all sound that was made in them (lower is faster)."""
        return self.timings.total / self.made_seconds

    @property
    def made_seconds(self) -> float:
        """How much sound was made in the time of ``timings``."""
        return self.waveform.seconds + self.beside_seconds
