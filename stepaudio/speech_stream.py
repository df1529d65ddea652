"""Sound while the language model still writes.

    language model (a thread of its own) --numbers, at most 6 s ahead--> vocoder (the thread that asks) --> samples

All state of a stream is one SpeechStream. Whatever ends one side ends the other.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import TracebackType

import numpy as np

from stepaudio.joining import Joiner
from stepaudio.threads import lone_threads
from stepaudio.tokens import GROUP, GROUP_SECONDS
from stepaudio.types import FloatArray, IntArray, Synthesis, Waveform
from stepaudio.vocoder.stream import VocoderStream

MOST_AHEAD = 250
"""Numbers that may wait for the vocoder, 6 s of speech: where it is the slower one, it gets the machine."""

ShouldStop = Callable[[], bool]


class SpeechStream(Iterator[Waveform]):
    """One request's sound in pieces, made by Pipeline.stream(); ``synthesis`` is there after the last.

        with pipeline.stream(reference, text) as stream:
            for piece in stream:
                ...
        stream.synthesis

    Nothing runs before the first piece is asked for. The pieces together are as long as what clone() makes of the
    same tokens. Asking for a piece raises, once, what either side raised; close() may be called at any time and
    waits until both sides have stopped. One thread at a time.
    """

    def __init__(
        self,
        write: Callable[[NumberQueue, ShouldStop], None],
        voice: VocoderStream,
        sample_rate: int,
        conclude: Callable[[SpeechStream], Synthesis],
        joiner: Joiner | None = None,
        *,
        lone_writer: bool = False,
    ) -> None:
        """write: runs the language model, given where its numbers go and when to stop.

        conclude: makes the result once all pieces are out. joiner: cuts and pauses where the numbers have marks.
        lone_writer: whether ``write`` computes without torch's helpers, which the vocoder has then (see threads.py).
        """
        self._write = write
        self._sample_rate = sample_rate
        self._conclude = conclude
        self._joiner = joiner
        self._thread = lone_threads if lone_writer else ThreadPoolExecutor
        self._numbers = NumberQueue()
        self._pieces: list[FloatArray] = []
        self._synthesis: Synthesis | None = None
        self._running = self._run()
        self.voice = voice
        self.started = self.first_sound_at = 0.0  # time.perf_counter seconds

    def __next__(self) -> Waveform:
        return next(self._running)

    def close(self) -> None:
        """Stop both sides and give their memory back; what has come out stays valid."""
        self._running.close()
        self.voice.close()

    def __enter__(self) -> SpeechStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def into(self, hear: Callable[[Waveform], None]) -> Synthesis:
        """Give each piece to ``hear`` as soon as it is ready, and return the result; closes the stream."""
        with self:
            for piece in self:
                hear(piece)
        return self.synthesis

    @property
    def synthesis(self) -> Synthesis:
        """The whole result. Raises ValueError before the last piece is out."""
        if self._synthesis is None:
            raise ValueError("The stream has not come to its end.")
        return self._synthesis

    @property
    def waveform(self) -> Waveform:
        """All that has come out so far."""
        return Waveform(np.concatenate([np.zeros(0, np.float32), *self._pieces]), self._sample_rate)

    @property
    def blocked_seconds(self) -> float:
        """How long the language model waited for the vocoder."""
        return self._numbers.blocked_seconds

    def _run(self) -> Generator[Waveform, None, None]:
        self.started = time.perf_counter()
        # On the way out, in this order: the model is told to stop, its thread ends, the vocoder's memory goes.
        with (
            closing(self.voice) as voice,
            self._thread(1, "stepaudio-lm") as thread,
            closing(self._numbers) as numbers,
        ):
            writing = thread.submit(self._write, numbers, lambda: numbers.closed)
            writing.add_done_callback(lambda done: numbers.close() if done.exception() else numbers.end())
            # A group at a time, so that no push makes two pieces at once.
            while taken := numbers.take(GROUP):
                yield from self._ready(voice.push(taken))
            writing.result()
            yield from self._ready(voice.finish(), last=True)
        self._synthesis = self._conclude(self)

    def _ready(self, samples: FloatArray, *, last: bool = False) -> Iterator[Waveform]:
        if self._joiner is not None:
            # The vocoder is behind the numbers, so a mark is known before the samples at it come.
            for numbers, pause in self._numbers.marks():
                groups = numbers // GROUP
                self._joiner.join_at(round(groups * GROUP_SECONDS * self._sample_rate), pause)
            samples = self._joiner.push(samples)
            if last:
                samples = np.concatenate((samples, self._joiner.finish()))
        if len(samples):
            self.first_sound_at = self.first_sound_at or time.perf_counter()
            self._pieces.append(samples)
            yield Waveform(samples, self._sample_rate)


class NumberQueue:
    """Speech numbers on their way from one thread to another; ``put`` waits while too many are held.

    They come in whole groups; a ``mark`` stands between the last group of a passage and the first of the next.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: deque[int] = deque()
        self._marks: list[tuple[int, float]] = []
        self._put = 0
        self._ended = False
        self.closed = False
        self.blocked_seconds = 0.0

    def put(self, numbers: IntArray) -> None:
        """Hand numbers (n,) over. Once closed, they are dropped."""
        with self._changed:
            start = time.perf_counter()
            self._changed.wait_for(lambda: len(self._held) < MOST_AHEAD or self.closed)
            self.blocked_seconds += time.perf_counter() - start
            if not self.closed:
                self._held.extend(numbers.tolist())
                self._put += len(numbers)
                self._changed.notify_all()

    def mark(self, pause: float) -> None:
        """Say that what is put from now on is another passage, after a pause in seconds."""
        with self._changed:
            self._marks.append((self._put, pause))

    def marks(self) -> list[tuple[int, float]]:
        """Return the marks that are new since the last call: how many numbers stood before each, and its pause."""
        with self._changed:
            new, self._marks = self._marks, []
            return new

    def take(self, count: int) -> list[int]:
        """Wait for ``count`` numbers and return them; fewer at the end, then none, and none once closed."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._held) >= count or self._ended or self.closed)
            taken = [self._held.popleft() for _ in range(min(count, len(self._held)))]
            self._changed.notify_all()
            return taken

    def end(self) -> None:
        """Nothing more will be put."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """Something went wrong on either side: nothing more is put or taken."""
        with self._changed:
            self.closed = True
            self._held.clear()
            self._changed.notify_all()
