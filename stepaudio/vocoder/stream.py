"""Audio tokens to sound while the tokens are still being written.

    numbers --groups--> rows --pieces of 15, 24, 48, 48, ... + 3 ahead--> flow --> mel --> generator --> samples

The first sound is ready after 30 numbers (0.72 s of speech). A piece sees the prompt and what came before it, but
of the future three rows only, so the sound differs a little from that of Vocoder.flow and Vocoder.sound; its
length does not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stepaudio.errors import GenerationError, WeightsError
from stepaudio.tokens import GROUP, ROWS_PER_GROUP, cut_to_groups, rows
from stepaudio.types import FloatArray, IntArray
from stepaudio.vocoder.checks import check_finite, check_rows
from stepaudio.vocoder.flow import Flow, FlowPast, ShouldStop
from stepaudio.vocoder.lane import Lane
from stepaudio.vocoder.sound_stream import DrawNoise, SoundStream


@dataclass(frozen=True)
class StreamConfig:
    """How a stream is cut and how far back it looks.

    chunk_rows: rows of the first, second, ... piece; the last size repeats. Whole groups (of three rows), and not
    less than six: a piece must be longer than what the generator withholds.
    flow_window: frames after the prompt, 50 a second, that the estimator attends to.
    encoder_window: rows, 25 a second, that the encoder attends to, the prompt's included.

    The first two are those of the original implementation. Its encoder attends to everything, and so ends with
    an error when its table of positions does, after 100 seconds; here the last minute is enough.
    """

    chunk_rows: tuple[int, ...] = (15, 24, 48)
    flow_window: int = 96
    encoder_window: int = 1500

    def __post_init__(self) -> None:
        if not self.chunk_rows or any(size < 6 or size % ROWS_PER_GROUP for size in self.chunk_rows):
            raise ValueError(f"Pieces are multiples of {ROWS_PER_GROUP} rows and at least 6, not {self.chunk_rows}.")
        if self.flow_window < 1 or self.encoder_window < 1:
            raise ValueError("A window holds at least 1.")


@dataclass(frozen=True, eq=False)
class Voice:
    """Whose voice speaks: the prompt's rows int64 (P, 2), its mel (1, F, M) and the speaker embedding (1, S)."""

    rows: IntArray
    mel: Tensor
    speaker: Tensor


class VocoderStream:
    """One stream of sound with all its state; made by Vocoder.stream().

    Streams share nothing but the networks' weights: any number may run side by side, each used by one thread at a
    time. How much a stream holds is bounded however long it runs; most of it are the prompt's keys and values
    (at full size 1.3 MB a frame, 65 MB a second, at ten steps), which close() gives back.

    flow_seconds, sound_seconds: what the two networks have worked so far.
    """

    def __init__(
        self,
        flow: Flow,
        sound: SoundStream,
        voice: Voice,
        noise: DrawNoise,
        lane: Lane,
        *,
        steps: int,
        config: StreamConfig,
        should_stop: ShouldStop | None = None,
    ) -> None:
        """noise: the flow's, of as many channels as the mel. lane: where sound and voice were made.

        Raises WeightsError where the encoder looks too far.
        """
        if flow.encoder.pre_lookahead_layer.lookahead > ROWS_PER_GROUP:
            raise WeightsError("The flow looks more than 3 rows ahead, which a stream does not provide.")
        self._flow = flow
        self._sound: SoundStream | None = sound
        self._voice = voice
        self._noise = noise
        self._lane = lane
        self._steps = steps
        self._config = config
        self._should_stop = should_stop
        self._lookahead = flow.encoder.pre_lookahead_layer.lookahead
        self._numbers = np.zeros(0, dtype=np.int64)  # those that have not become sound
        self._past: FlowPast | None = None
        self._pieces = 0
        self.flow_seconds = self.sound_seconds = 0.0

    def push(self, numbers: npt.ArrayLike) -> FloatArray:
        """Return the sound float32 (N,) that the next ``numbers`` (n,) of ``<audio_N>`` make ready, often none.

        They may come one by one or in any count; the very first of the stream begins a group.

        Raises GenerationError for numbers that are no audio tokens and for values that are not finite, and
        Cancelled between two steps as soon as ``should_stop`` says so; either closes the stream. Raises
        ValueError when it is closed.
        """
        with self._working() as sound:
            new = np.asarray(numbers, dtype=np.int64).reshape(-1)
            self._numbers = np.concatenate((self._numbers, new))
            if self._past is None and len(self._numbers) >= GROUP:
                # At once, not with the first piece: the prompt takes as long as its own length of speech.
                self._past = self._begin()
            ready = []
            while self._past is not None:
                taken = self._chunk_rows() // ROWS_PER_GROUP * GROUP
                if len(self._numbers) < taken + GROUP:
                    break
                ready.append(self._speak(sound, self._past, self._numbers[: taken + GROUP], last=False))
                self._numbers = self._numbers[taken:]
                self._pieces += 1
            return np.concatenate(ready) if ready else np.zeros(0, dtype=np.float32)

    def finish(self) -> FloatArray:
        """Return the rest of the sound, float32 (N,), and close the stream.

        With it, the sound is as long as the whole groups that came: 2,880 samples each. Numbers that fill no
        group are dropped. Raises what push() raises, and GenerationError when there was no whole group.
        """
        with self._working() as sound:
            if self._past is None:
                raise GenerationError("The language model produced no sound; trying again may help.")
            rest = self._speak(sound, self._past, cut_to_groups(self._numbers), last=True)
        self.close()
        return rest

    def close(self) -> None:
        """Give the memory back; nothing more can be pushed. May be called at any time, and again."""
        self._sound = self._past = None

    @property
    def closed(self) -> bool:
        """Whether the stream was finished, closed or stopped."""
        return self._sound is None

    @contextmanager
    def _working(self) -> Iterator[SoundStream]:
        """Give the open sound; a stream that fails half-way is closed, for its parts no longer fit together."""
        if self._sound is None:
            raise ValueError("The stream is closed.")
        done = False
        try:
            with torch.inference_mode(), self._lane.taken():
                yield self._sound
            done = True
        finally:
            if not done:
                self.close()

    def _chunk_rows(self) -> int:
        sizes = self._config.chunk_rows
        return sizes[min(self._pieces, len(sizes) - 1)]

    def _begin(self) -> FlowPast:
        """Return the flow's past after the prompt."""
        voice = self._voice
        ahead = rows(self._numbers[:GROUP])[: self._lookahead]
        started = time.perf_counter()
        past = self._flow.begin(
            self._tensor(np.concatenate((voice.rows, ahead))),
            voice.mel,
            voice.speaker,
            self._draw(len(voice.rows)),
            steps=self._steps,
            window=self._config.flow_window,
            should_stop=self._should_stop,
        )
        self.flow_seconds += time.perf_counter() - started
        return past

    def _speak(self, sound: SoundStream, past: FlowPast, numbers: IntArray, *, last: bool) -> FloatArray:
        """Return the samples (N,) that are ready after a piece, whose last group is looked at only, if not ``last``."""
        table = rows(numbers)
        count = len(table) if last else len(table) - ROWS_PER_GROUP
        started = time.perf_counter()
        mel, self._past = self._flow.extend(
            self._tensor(table if last else table[: count + self._lookahead]),
            self._voice.speaker,
            self._draw(count),
            past,
            last=last,
            steps=self._steps,
            window=self._config.flow_window,
            encoder_window=self._config.encoder_window,
            should_stop=self._should_stop,
        )
        # Looking also waits for the device, so that the clock is honest.
        check_finite(mel, "The flow produced values")
        middle = time.perf_counter()
        samples = sound.extend(mel.transpose(1, 2), last=last)[0]
        check_finite(samples, "The vocoder produced samples")
        result: FloatArray = samples.cpu().numpy()
        self.flow_seconds += middle - started
        self.sound_seconds += time.perf_counter() - middle
        return result

    def _draw(self, count: int) -> Tensor:
        """Return the noise of the frames of ``count`` rows."""
        return self._noise(self._flow.frames_per_row * count).to(self._voice.mel.device)

    def _tensor(self, table: IntArray) -> Tensor:
        check_rows(table, self._flow.input_embedding.embedding.num_embeddings)
        return torch.tensor(table, device=self._voice.mel.device)[None]
