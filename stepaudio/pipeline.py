"""The pipeline: a reference, its transcript and a text become that text in the reference's voice (clone), or a
reference and a task become the same words spoken otherwise (edit).

    reference sound --> EncodingCache (hit: one read | miss: ReferenceEncoder, then a write)
                          linguistic + semantic codes, mel, speaker embedding
    transcript, text or task, codes --> PromptBuilder --> ids --> SpeechLM --> speech tokens
    speech tokens, codes, mel, speaker embedding --> Vocoder: flow --> mel --> HiFT --> 24 kHz sound

clone() takes one step after the other, stream() the last two at the same time. A long text is spoken in passages:
clone() decodes them side by side, as takes() and clone_many() do with theirs, and joins their sound.
Read this file first; each part has a package of its own. Nothing here knows of files, pages or queues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch

from stepaudio import tasks
from stepaudio.cache import CacheOutcome, EncodingCache
from stepaudio.encoder.reference import ReferenceEncoder
from stepaudio.errors import GenerationError, InvalidInput
from stepaudio.llm.generate import SpeechLM
from stepaudio.orders import MAX_SEED, Limits, Order, Passage, most_tokens, seed_of
from stepaudio.prompts import PromptBuilder
from stepaudio.speaking import Progress, Speaker
from stepaudio.speech_stream import ShouldStop, SpeechStream
from stepaudio.text import clean, passages, seconds_cap
from stepaudio.timing import StageTimer, critical_path
from stepaudio.tokens import GROUP, IDS_PER_SECOND, interleave
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

FUNASR = "FunASR"
MAX_PASSES = 5
MAX_TAKES = 16
# What a pass must give at least, so that the next one can encode it.
MIN_PASS_SECONDS = 0.5
WARM_SECONDS = 3.0
WARM_RATE = 24_000


class Pipeline:
    """The loaded models and the cache, put together. Made by loading.py; one request at a time.

    flow_steps: the Euler steps of the flow where a request asks for 0, which is for none in particular.
    """

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
        flow_steps: int = 10,
        synchronize: Callable[[], None] = lambda: None,
    ) -> None:
        self._encoder = encoder
        self.cache = cache
        self._prompts = prompts
        self._lm = lm
        self._vocoder = vocoder
        self._speaker = Speaker(lm, vocoder, rows=limits.decode_rows, flow_steps=flow_steps)
        self.limits = limits
        self._verbalise = verbalise
        self._synchronize = synchronize

    def timer(self) -> StageTimer:
        """Return a timer that waits for this pipeline's device at each edge."""
        return StageTimer(self._synchronize)

    @property
    def flow_steps(self) -> int:
        """Return the Euler steps of the flow where a request asks for none in particular."""
        return self._speaker.flow_steps

    @torch.inference_mode()
    def clone(
        self,
        reference: Reference,
        text: str,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen, so shared safely
        *,
        flow_steps: int = 0,
        max_seconds: float | None = None,
        timer: StageTimer | None = None,
        progress: Progress = lambda stage, fraction: None,
        should_stop: ShouldStop = lambda: False,
    ) -> Synthesis:
        """Return ``text`` spoken in the voice of ``reference``.

        max_seconds bounds the sound; whatever it says, the limits and a generous cap from the text's length hold
        too. A text longer than one passage (see Limits) is split where sentences end; the passages are decoded side
        by side and joined with pauses, equally loud. ``timer`` lets a caller time this as part of something larger;
        ``progress`` receives (stage, 0..1). Raises InvalidInput for what the user can mend, GenerationError when no
        sound came out, Cancelled once ``should_stop`` returns True.
        """
        timer = timer or self.timer()
        (order,) = self._prepare(reference, [text], sampling, max_seconds, timer, progress)
        (made,) = self._speaker.carry_out([order], flow_steps, timer, progress, should_stop)
        return made

    @torch.inference_mode()
    def takes(
        self,
        reference: Reference,
        text: str,
        count: int,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen, so shared safely
        *,
        flow_steps: int = 0,
        max_seconds: float | None = None,
        timer: StageTimer | None = None,
        progress: Progress = lambda stage, fraction: None,
        should_stop: ShouldStop = lambda: False,
    ) -> list[Synthesis]:
        """Return ``count`` takes of a clone, whose prompt is read once and which are decoded side by side.

        The first has the seed of ``sampling`` (or a drawn one), each further one the next number: clone() with the
        seed of a take gives the same but for rounding, which in bfloat16 makes another reading of it (see
        SpeechLM.generate_many); the same call gives the same takes. The timings of each are those of
        all. Otherwise as clone().
        """
        if not 1 <= count <= MAX_TAKES:
            raise InvalidInput(f"The number of takes is {count}; it must lie between 1 and {MAX_TAKES}.")
        timer = timer or self.timer()
        (order,) = self._prepare(reference, [text], sampling, max_seconds, timer, progress)
        orders = [replace(order, seed=(order.seed + number) % (MAX_SEED + 1)) for number in range(count)]
        return self._speaker.carry_out(orders, flow_steps, timer, progress, should_stop)

    @torch.inference_mode()
    def clone_many(
        self,
        reference: Reference,
        texts: Sequence[str],
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen, so shared safely
        *,
        flow_steps: int = 0,
        max_seconds: float | None = None,
        timer: StageTimer | None = None,
        progress: Progress = lambda stage, fraction: None,
        should_stop: ShouldStop = lambda: False,
    ) -> list[Synthesis]:
        """Return each of the texts spoken in the voice of ``reference``, decoded side by side.

        Limits and arguments are those of clone(), for each text; one seed serves all, so that each result is what
        clone() gives with it but for rounding, as in takes(). The timings of each are those of all.
        What is wrong with one text is raised before anything runs.
        """
        timer = timer or self.timer()
        orders = self._prepare(reference, texts, sampling, max_seconds, timer, progress)
        return self._speaker.carry_out(orders, flow_steps, timer, progress, should_stop)

    @torch.inference_mode()
    def edit(
        self,
        reference: Reference,
        task: Task,
        *,
        new_text: str | None = None,
        passes: int = 1,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen, so shared safely
        flow_steps: int = 0,
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
        told = self._verbalise(target) if target is not None else None
        transcript = self._transcript(reference) if spec.needs_transcript or reference.text.strip() else ""
        sampling = replace(sampling, seed=seed_of(sampling))
        done: list[Synthesis] = []
        sound = reference.waveform
        for number in range(1, passes + 1):
            with timer.stage(f"Pass {number}") if passes > 1 else nullcontext():
                prompt, encoding, times = self._listen(sound, timer, progress)
                ids = self._prompts.edit(task, self._verbalise(transcript), prompt, target=told)
                longest = spec.stretch * sound.seconds + seconds_cap(told or "")
                most = most_tokens(longest, self.limits, sampling, max_seconds)
                words, seed = target or transcript, seed_of(sampling)
                order = Order(
                    (Passage(ids, self._prompts.shared(ids), most),),
                    prompt,
                    encoding,
                    times,
                    words,
                    sampling,
                    seed,
                    most,
                )
                (made,) = self._speaker.carry_out([order], flow_steps, timer, progress, should_stop)
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
        flow_steps: int = 0,
        max_seconds: float | None = None,
        timer: StageTimer | None = None,
        progress: Progress = lambda stage, fraction: None,
        should_stop: ShouldStop = lambda: False,
    ) -> SpeechStream:
        """Return ``text`` spoken in the voice of ``reference``, piece by piece while it is still being written.

        The arguments are those of clone(), and so are the tokens, those of a long text but for rounding (see takes()),
        for its passages are written one after another; the sound differs a little, for a piece knows little of what
        comes after it (see vocoder/stream.py). The reference is encoded before this returns; what
        is wrong with it or with the texts is raised here, everything else where the pieces are asked for.
        """
        timer = timer or self.timer()
        (order,) = self._prepare(reference, [text], sampling, max_seconds, timer, progress)

        return self._speaker.stream(order, flow_steps, timer, progress, should_stop)

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
        return clean(reference.text, what="The transcript of the reference", limit=limit)

    def _new_text(self, spec: tasks.TaskSpec, text: str | None) -> str | None:
        """Return the new text of an edit, or None where the task takes none."""
        if spec.needs_target:
            return clean(text or "", what="The new text", limit=self.limits.max_text_characters)
        if text is not None:
            raise InvalidInput(f"The task {spec.name!r} takes no new text, but one was given.")
        return None

    def _prepare(
        self,
        reference: Reference,
        texts: Sequence[str],
        sampling: SamplingParams,
        max_seconds: float | None,
        timer: StageTimer,
        progress: Progress,
    ) -> list[Order]:
        """Return a clone of each text made ready: texts checked, seed drawn, reference encoded."""
        limit = self.limits.max_text_characters
        all_words = [clean(text, what="The text", limit=limit) for text in texts]
        transcript = self._verbalise(self._transcript(reference))
        seed = seed_of(sampling)
        prompt, encoding, times = self._listen(reference.waveform, timer, progress)

        def order(words: str) -> Order:
            parts: list[Passage] = []
            longest = 0.0
            for part in passages(words, self.limits.passage_seconds, tasks.LANGUAGE_TAGS):
                told = self._verbalise(part.text)
                ids = self._prompts.clone(transcript, prompt, told, reference.waveform)
                most = most_tokens(seconds_cap(told), self.limits, sampling, max_seconds)
                parts.append(Passage(ids, self._prompts.shared(ids), most, part.pause))
                longest += seconds_cap(told) + parts[-1].pause_tokens / IDS_PER_SECOND
            most = most_tokens(longest, self.limits, sampling, max_seconds)
            return Order(tuple(parts), prompt, encoding, times, words, sampling, seed, most)

        return [order(words) for words in all_words]

    def _listen(
        self, waveform: Waveform, timer: StageTimer, progress: Progress
    ) -> tuple[SpeechTokens, ReferenceEncoding, EncodingTimes]:
        """Return the codes of a reference as tokens, and its encoding with how it was come by."""
        progress(FUNASR, 0.0)
        encoding, times = self._encode(waveform, timer)
        prompt = interleave(encoding.linguistic, encoding.semantic)
        if prompt.groups == 0:
            raise InvalidInput("The reference is too short: it gives no speech codes.")
        return prompt, encoding, times

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


def _add_parts(timer: StageTimer, outcome: CacheOutcome, encoded: EncodedReference) -> None:
    """Record the parts of a fresh encoding, which ran side by side, and the write into the cache."""
    start = min((part.start for part in encoded.parts), default=0.0)
    for stage in critical_path(encoded.parts, start):
        timer.add(stage.name, stage.seconds, busy=stage.busy)
    timer.add("Cache write", outcome.write_seconds)
