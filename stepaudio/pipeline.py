"""The pipeline: a reference, its transcript and a text become that text in the reference's voice (clone), or a
reference and a task become the same words spoken otherwise (edit).

    reference sound --> EncodingCache (hit: one read | miss: ReferenceEncoder, then a write)
                          linguistic + semantic codes, mel, speaker embedding
    transcript, text or task, codes --> PromptBuilder --> ids --> SpeechLM --> speech tokens
    speech tokens, codes, mel, speaker embedding --> Vocoder: flow --> mel --> HiFT --> 24 kHz sound

clone() takes one step after the other, stream() the last two at the same time.
Read this file first; each part has a package of its own. Nothing here knows of files, pages or queues.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from stepaudio import tasks
from stepaudio import text as texts
from stepaudio.cache import CacheOutcome, EncodingCache
from stepaudio.encoder.reference import ReferenceEncoder
from stepaudio.errors import GenerationError, InvalidInput
from stepaudio.llm.generate import Generation, SpeechLM
from stepaudio.prompts import PromptBuilder
from stepaudio.speech_stream import OnNumbers, ShouldStop, SpeechStream
from stepaudio.timing import StageTimer, critical_path
from stepaudio.tokens import GROUP, GROUP_SECONDS, interleave
from stepaudio.types import (
    EncodedReference,
    EncodingTimes,
    Reference,
    ReferenceEncoding,
    SamplingParams,
    SpeechTokens,
    Synthesis,
    Task,
    Waveform,
)
from stepaudio.verbalise import Verbalise
from stepaudio.vocoder.vocoder import Vocoder

Progress = Callable[[str, float], None]

FUNASR, LLM, FLOW, VOCODER = "FunASR", "LLM", "Flow", "Vocoder"
MAX_SEED = 2**32 - 1
MAX_PASSES = 5
# What a pass must give at least, so that the next one can encode it.
MIN_PASS_SECONDS = 0.5
WARM_SECONDS = 3.0
WARM_RATE = 24_000


@dataclass(frozen=True)
class Limits:
    """How much text and sound one request may bring and take; the fields are those of Settings."""

    max_text_characters: int = 1000
    max_transcript_characters: int = 1000
    max_output_seconds: float = 60.0


@dataclass(frozen=True, eq=False)
class _Order:
    """A request made ready: what the language model reads and may draw, the words that it is to speak, whose voice."""

    ids: list[int]
    prompt: SpeechTokens
    encoding: ReferenceEncoding
    times: EncodingTimes
    words: str
    sampling: SamplingParams
    seed: int
    max_tokens: int


class Pipeline:
    """The loaded models and the cache, put together. Made by loading.py; one request at a time."""

    def __init__(
        self,
        *,
        encoder: ReferenceEncoder,
        cache: EncodingCache,
        prompts: PromptBuilder,
        lm: SpeechLM,
        vocoder: Vocoder,
        limits: Limits,
        verbalise: Verbalise = lambda text: text,
        synchronize: Callable[[], None] = lambda: None,
    ) -> None:
        self._encoder = encoder
        self.cache = cache
        self._prompts = prompts
        self._lm = lm
        self._vocoder = vocoder
        self.limits = limits
        self._verbalise = verbalise
        self._synchronize = synchronize

    def timer(self) -> StageTimer:
        """Return a timer that waits for this pipeline's device at each edge."""
        return StageTimer(self._synchronize)

    @torch.inference_mode()
    def clone(
        self,
        reference: Reference,
        text: str,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen, so shared safely
        *,
        flow_steps: int = 10,
        max_seconds: float | None = None,
        timer: StageTimer | None = None,
        progress: Progress = lambda stage, fraction: None,
        should_stop: ShouldStop = lambda: False,
    ) -> Synthesis:
        """Return ``text`` spoken in the voice of ``reference``.

        max_seconds bounds the sound; whatever it says, the limits and a generous cap from the text's length hold
        too. ``timer`` lets a caller time this as part of something larger; ``progress`` receives (stage, 0..1).
        Raises InvalidInput for what the user can mend, GenerationError when no sound came out, Cancelled once
        ``should_stop`` returns True.
        """
        timer = timer or self.timer()
        order = self._prepare(reference, text, sampling, max_seconds, timer, progress)
        return self._carry_out(order, flow_steps, timer, progress, should_stop)

    @torch.inference_mode()
    def edit(
        self,
        reference: Reference,
        task: Task,
        *,
        new_text: str | None = None,
        passes: int = 1,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen, so shared safely
        flow_steps: int = 10,
        max_seconds: float | None = None,
        timer: StageTimer | None = None,
        progress: Progress = lambda stage, fraction: None,
        should_stop: ShouldStop = lambda: False,
    ) -> Synthesis:
        """Return ``reference`` after ``task`` was done to it ``passes`` times, each time to what came out before.

        Every task but denoise and vad needs the transcript of the reference. new_text: the words to speak in its
        place, with tags such as [Laughter]; for the task paralinguistic, and for no other. The result's
        ``transcript`` is the new text, or else the one given: result and transcript can be edited again. Its
        ``encoding`` tells of the reference itself, not of what later passes encoded.

        The sound of a pass is bounded by ``stretch`` (see tasks.py) times the length of its input and 3 s, and by
        what a new text may take; the limits and ``max_seconds`` hold too. With several passes the timer gets a
        stage for each. Raises as clone does, and GenerationError when a pass gave too little sound for the next.
        """
        timer = timer or self.timer()
        spec = tasks.spec_of_edit(task)
        if not 1 <= passes <= MAX_PASSES:
            raise InvalidInput(f"The number of passes is {passes}; it must lie between 1 and {MAX_PASSES}.")
        target = self._new_text(spec, new_text)
        spoken = self._verbalise(target) if target is not None else None
        transcript = self._transcript(reference) if spec.needs_transcript or reference.text.strip() else ""
        sampling = replace(sampling, seed=_seed(sampling))
        done: list[Synthesis] = []
        sound = reference.waveform
        for number in range(1, passes + 1):
            with timer.stage(f"Pass {number}") if passes > 1 else nullcontext():
                order = self._order(
                    sound,
                    partial(self._prompts.edit, task, self._verbalise(transcript), target=spoken),
                    target or transcript,
                    spec.stretch * sound.seconds + texts.seconds_cap(spoken or ""),
                    sampling,
                    max_seconds,
                    timer,
                    progress,
                )
                made = self._carry_out(order, flow_steps, timer, progress, should_stop)
            done.append(made)
            sound, transcript = made.waveform, made.transcript
            if number < passes and sound.seconds < MIN_PASS_SECONDS:
                raise GenerationError(f"Pass {number} gave only {sound.seconds:.2f} s of sound; trying again may help.")
        return replace(done[-1], encoding=done[0].encoding, timings=timer.finish())

    @torch.inference_mode()
    def encode(self, waveform: Waveform) -> EncodingTimes:
        """Encode a reference, so that the cache has it for later requests; return how it was come by."""
        return self._encode(waveform, self.timer())[1]

    @torch.inference_mode()
    def stream(
        self,
        reference: Reference,
        text: str,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen, so shared safely
        *,
        flow_steps: int = 10,
        max_seconds: float | None = None,
        timer: StageTimer | None = None,
        progress: Progress = lambda stage, fraction: None,
        should_stop: ShouldStop = lambda: False,
    ) -> SpeechStream:
        """Return ``text`` spoken in the voice of ``reference``, piece by piece while it is still being written.

        The arguments are those of clone(), and so are the tokens; the sound differs a little, for a piece knows
        little of what comes after it (see vocoder/stream.py). The reference is encoded before this returns; what
        is wrong with it or with the texts is raised here, everything else where the pieces are asked for.
        """
        timer = timer or self.timer()
        order = self._prepare(reference, text, sampling, max_seconds, timer, progress)

        def conclude(stream: SpeechStream, generation: Generation) -> Synthesis:
            _add_side_by_side(timer, stream, generation, flow_steps)
            progress(VOCODER, 1.0)
            first_sound = timer.seconds_at(stream.first_sound_at)
            return replace(_synthesis(order, generation, stream.waveform, timer), first_sound=first_sound)

        progress(LLM, 0.0)
        encoding = order.encoding
        voice = self._vocoder.stream(
            order.prompt,
            encoding.mel,
            encoding.speaker,
            seed=order.seed,
            steps=flow_steps,
            should_stop=should_stop,
        )
        return SpeechStream(
            lambda hear, closed: self._write(order, progress, lambda: closed() or should_stop(), hear),
            voice,
            self._vocoder.sample_rate,
            conclude,
        )

    def warm(self) -> None:
        """Run every part once on synthetic sound, so that the first request is as fast as the next."""
        t = np.arange(int(WARM_SECONDS * WARM_RATE)) / WARM_RATE
        hum = (0.3 * np.sin(2 * np.pi * 150 * t) * (1 + np.sin(2 * np.pi * 3 * t))).astype(np.float32)
        with torch.inference_mode():
            encoding = self._encoder.encode(Waveform(hum, WARM_RATE)).encoding
            prompt = interleave(encoding.linguistic, encoding.semantic)
            ids = self._prompts.clone("warm", prompt, "warm", Waveform(hum, WARM_RATE))
            tokens = self._lm.generate(ids, SamplingParams(), seed=0, max_tokens=2 * GROUP).tokens
            mel = self._vocoder.flow(tokens, prompt, encoding.mel, encoding.speaker, seed=0, steps=2)
            self._vocoder.sound(mel, seed=0)

    def forget(self) -> None:
        """Let go of memory that only saves time; the next request takes longer."""
        self._lm.forget()

    def close(self) -> None:
        """Release the encoder's threads and the cache; the pipeline cannot be used afterwards."""
        self._encoder.close()
        self.cache.close()

    def _transcript(self, reference: Reference) -> str:
        limit = self.limits.max_transcript_characters
        return texts.clean(reference.text, what="The transcript of the reference", limit=limit)

    def _new_text(self, spec: tasks.TaskSpec, text: str | None) -> str | None:
        """Return the new text of an edit, or None where the task takes none."""
        if spec.needs_target:
            return texts.clean(text or "", what="The new text", limit=self.limits.max_text_characters)
        if text is not None:
            raise InvalidInput(f"The task {spec.name!r} takes no new text, but one was given.")
        return None

    def _prepare(
        self,
        reference: Reference,
        text: str,
        sampling: SamplingParams,
        max_seconds: float | None,
        timer: StageTimer,
        progress: Progress,
    ) -> _Order:
        """Return a clone made ready: texts checked, seed drawn, reference encoded."""
        words = texts.clean(text, what="The text", limit=self.limits.max_text_characters)
        spoken, transcript = self._verbalise(words), self._verbalise(self._transcript(reference))
        return self._order(
            reference.waveform,
            lambda prompt: self._prompts.clone(transcript, prompt, spoken, reference.waveform),
            words,
            texts.seconds_cap(spoken),
            sampling,
            max_seconds,
            timer,
            progress,
        )

    def _order(
        self,
        waveform: Waveform,
        write_prompt: Callable[[SpeechTokens], list[int]],
        words: str,
        longest: float,
        sampling: SamplingParams,
        max_seconds: float | None,
        timer: StageTimer,
        progress: Progress,
    ) -> _Order:
        """Return a request made ready: the codes of ``waveform``, and the prompt that ``write_prompt`` makes of them.

        words: what will be spoken. longest: the most seconds that this may take.
        """
        seed = _seed(sampling)
        progress(FUNASR, 0.0)
        encoding, times = self._encode(waveform, timer)
        prompt = interleave(encoding.linguistic, encoding.semantic)
        if prompt.groups == 0:
            raise InvalidInput("The reference is too short: it gives no speech codes.")
        most = self._max_tokens(longest, sampling, max_seconds)
        return _Order(write_prompt(prompt), prompt, encoding, times, words, sampling, seed, most)

    def _carry_out(
        self, order: _Order, flow_steps: int, timer: StageTimer, progress: Progress, should_stop: ShouldStop
    ) -> Synthesis:
        """Return what the language model and the vocoder make of an order, one after the other."""
        progress(LLM, 0.0)
        with timer.stage(LLM) as stage:
            generation = self._write(order, progress, should_stop)
            stage.note = _speed(generation, generation.decode_seconds)
        waveform = self._speak(order, generation.tokens, flow_steps, timer, progress, should_stop)
        return _synthesis(order, generation, waveform, timer)

    def _write(
        self, order: _Order, progress: Progress, should_stop: ShouldStop, on_numbers: OnNumbers | None = None
    ) -> Generation:
        """Return what the language model answers to the prompt."""
        return self._lm.generate(
            order.ids,
            order.sampling,
            seed=order.seed,
            max_tokens=order.max_tokens,
            shared=self._prompts.shared(order.ids),
            progress=lambda done, most: progress(LLM, done / most),
            should_stop=should_stop,
            on_numbers=on_numbers,
        )

    def _encode(self, waveform: Waveform, timer: StageTimer) -> tuple[ReferenceEncoding, EncodingTimes]:
        """Return the encoding from the cache or, on a miss, from the encoder; times it as the stage FunASR."""
        with timer.stage(FUNASR) as stage:
            outcome = self.cache.get_or_encode(waveform, self._encoder.encode)
            stage.note = "hit" if outcome.hit else "miss"
            if outcome.encoded is not None:
                _add_parts(timer, outcome, outcome.encoded)
        return outcome.encoding, EncodingTimes(
            hit=outcome.hit,
            hash=outcome.hash_seconds,
            lookup=outcome.lookup_seconds,
            encode=0.0 if outcome.hit else outcome.encode_seconds,
            merge=outcome.merge_seconds,
        )

    def _max_tokens(self, longest: float, sampling: SamplingParams, max_seconds: float | None) -> int:
        """Return the cap of new ids: the least of what task, limits and request allow, in whole groups."""
        seconds = min(longest, self.limits.max_output_seconds, max_seconds or float("inf"))
        groups = max(int(seconds / GROUP_SECONDS + 1e-6), 1)
        if sampling.max_tokens is not None:
            groups = min(groups, max(sampling.max_tokens // GROUP, 1))
        return groups * GROUP

    def _speak(
        self,
        order: _Order,
        tokens: SpeechTokens,
        flow_steps: int,
        timer: StageTimer,
        progress: Progress,
        should_stop: ShouldStop,
    ) -> Waveform:
        """Return the sound of the tokens in the voice of the order."""
        progress(FLOW, 0.0)
        with timer.stage(FLOW) as stage:
            mel = self._vocoder.flow(
                tokens,
                order.prompt,
                order.encoding.mel,
                order.encoding.speaker,
                seed=order.seed,
                steps=flow_steps,
                progress=lambda fraction: progress(FLOW, fraction),
                should_stop=should_stop,
            )
            stage.note = _steps(flow_steps)
        progress(VOCODER, 0.0)
        with timer.stage(VOCODER):
            waveform = self._vocoder.sound(mel, seed=order.seed)
        progress(VOCODER, 1.0)
        return waveform


def _seed(sampling: SamplingParams) -> int:
    """Return the seed to use: the one given, or one that is drawn. Raises InvalidInput outside its range."""
    seed = sampling.seed if sampling.seed is not None else secrets.randbelow(MAX_SEED + 1)
    if not 0 <= seed <= MAX_SEED:
        raise InvalidInput(f"The seed is {seed}; it must lie between 0 and {MAX_SEED}.")
    return seed


def _add_parts(timer: StageTimer, outcome: CacheOutcome, encoded: EncodedReference) -> None:
    """Record the parts of a fresh encoding, which ran side by side, and the write into the cache."""
    start = min((part.start for part in encoded.parts), default=0.0)
    for stage in critical_path(encoded.parts, start):
        timer.add(stage.name, stage.seconds, busy=stage.busy)
    timer.add("Cache write", outcome.write_seconds)


def _add_side_by_side(timer: StageTimer, stream: SpeechStream, generation: Generation, flow_steps: int) -> None:
    """Record language model, flow and vocoder of a stream, which ran side by side.

    While the model works, it is what all wait for; the rest of the time is flow's and vocoder's, in proportion to
    what each worked. So the three never sum to more than the time that passed.
    """
    decoding = generation.decode_seconds - stream.blocked_seconds
    writing = generation.prefill_seconds + decoding
    flow, sound = stream.voice.flow_seconds, stream.voice.sound_seconds
    rest = max(time.perf_counter() - stream.started - writing, 0.0)
    share = min(rest / max(flow + sound, 1e-9), 1.0)
    timer.add(LLM, writing, busy=writing, note=_speed(generation, decoding))
    timer.add(FLOW, share * flow, busy=flow, note=_steps(flow_steps))
    timer.add(VOCODER, share * sound, busy=sound)


def _speed(generation: Generation, decode_seconds: float) -> str:
    speed = generation.new_ids / max(decode_seconds, 1e-9)
    return f"prefill {generation.prefill_seconds:.3f}s, {generation.new_ids} tokens, {speed:.1f} tokens/s"


def _steps(flow_steps: int) -> str:
    return f"{flow_steps} steps"


def _synthesis(order: _Order, generation: Generation, waveform: Waveform, timer: StageTimer) -> Synthesis:
    return Synthesis(
        waveform=waveform,
        tokens=generation.tokens,
        prompt_ids=tuple(order.ids),
        timings=timer.finish(),
        encoding=order.times,
        seed=order.seed,
        stopped=generation.stopped,
        transcript=order.words,
    )
