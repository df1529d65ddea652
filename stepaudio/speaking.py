"""Orders become sound: the language model and the vocoder at work, one after the other or side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from stepaudio.joining import Joiner, joined
from stepaudio.llm.generate import Generation, SpeechLM
from stepaudio.orders import Order, Spoken, spoken, synthesis
from stepaudio.speech_stream import NumberQueue, ShouldStop, SpeechStream
from stepaudio.timing import StageTimer
from stepaudio.tokens import GROUP, cut_to_groups
from stepaudio.types import IntArray, Synthesis, Waveform
from stepaudio.vocoder.vocoder import FlowOrder, Vocoder

Progress = Callable[[str, float], None]
"""Hears (stage, fraction done of it)."""

LLM, FLOW, VOCODER = "LLM", "Flow", "Vocoder"


class Speaker:
    """The language model and the vocoder; ``rows``: how many passages are decoded side by side.

    flow_steps: the Euler steps of the flow where 0 are asked for.
    """

    def __init__(self, lm: SpeechLM, vocoder: Vocoder, *, rows: int, flow_steps: int) -> None:
        self._lm = lm
        self._vocoder = vocoder
        self._rows = rows
        self.flow_steps = flow_steps

    def carry_out(
        self, orders: Sequence[Order], flow_steps: int, timer: StageTimer, progress: Progress, should_stop: ShouldStop
    ) -> list[Synthesis]:
        """Return the result of each order: first the language model works for all, then the vocoder.

        Raises GenerationError when no sound came out, Cancelled once ``should_stop`` returns True.
        """
        progress(LLM, 0.0)
        with timer.stage(LLM) as stage:
            answers, stage.tokens, stage.note = self._write(orders, progress, should_stop)
        waveforms = self._speak(orders, answers, flow_steps or self.flow_steps, timer, progress, should_stop)
        seconds = sum(waveform.seconds for waveform in waveforms)
        return [
            replace(synthesis(order, answer, waveform, timer), beside_seconds=seconds - waveform.seconds)
            for order, answer, waveform in zip(orders, answers, waveforms, strict=True)
        ]

    def stream(
        self, order: Order, flow_steps: int, timer: StageTimer, progress: Progress, should_stop: ShouldStop
    ) -> SpeechStream:
        """Return the result of one order in pieces, made while the language model writes."""
        flow_steps = flow_steps or self.flow_steps
        answers: list[Generation] = []

        def write(numbers: NumberQueue, closed: ShouldStop) -> None:
            self._write_into(numbers, order, answers, progress, lambda: closed() or should_stop())

        def conclude(stream: SpeechStream) -> Synthesis:
            _add_side_by_side(timer, stream, answers, flow_steps)
            progress(VOCODER, 1.0)
            first_sound = timer.seconds_at(stream.first_sound_at)
            made = synthesis(order, spoken(order, answers), stream.waveform, timer)
            return replace(made, first_sound=first_sound)

        progress(LLM, 0.0)
        encoding, rate = order.encoding, self._vocoder.sample_rate
        voice = self._vocoder.stream(
            order.prompt,
            encoding.mel,
            encoding.speaker,
            seed=order.seed,
            steps=flow_steps,
            should_stop=should_stop,
        )
        joiner = Joiner(rate) if len(order.passages) > 1 else None
        return SpeechStream(write, voice, rate, conclude, joiner, lone_writer=self._lm.alone)

    def _write(
        self, orders: Sequence[Order], progress: Progress, should_stop: ShouldStop
    ) -> tuple[list[Spoken], int, str]:
        """Return what the language model answers to each order, how many tokens it wrote, and a note of its speed.

        The passages of all orders are decoded side by side.
        """
        jobs = [(order, passage) for order in orders for passage in order.passages]
        most = sum(passage.max_tokens for _, passage in jobs)
        generations: list[Generation] = []
        prefill = decode = 0.0
        for first in range(0, len(jobs), self._rows):
            batch = jobs[first : first + self._rows]
            before = sum(passage.max_tokens for _, passage in jobs[:first])
            made = self._lm.generate_many(
                [passage.ids for _, passage in batch],
                batch[0][0].sampling,
                seeds=[order.seed for order, _ in batch],
                max_tokens=[passage.max_tokens for _, passage in batch],
                shared=[passage.shared for _, passage in batch],
                progress=_written(progress, before, most),
                should_stop=should_stop,
            )
            prefill += made[0].prefill_seconds
            decode += max(generation.decode_seconds for generation in made)
            generations += made
        rest = iter(generations)
        answers = [spoken(order, [next(rest) for _ in order.passages]) for order in orders]
        return answers, _tokens(generations), _speed(generations, prefill, decode)

    def _write_into(
        self,
        numbers: NumberQueue,
        order: Order,
        answers: list[Generation],
        progress: Progress,
        should_stop: ShouldStop,
    ) -> None:
        """Let the language model speak the passages of an order, one after another; append what it answered.

        ``numbers`` gets the numbers of whole groups while they are drawn, and a mark between two passages.
        """
        left = order.max_tokens
        for number, passage in enumerate(order.passages):
            if left < GROUP:
                return
            if number:
                numbers.mark(order.passages[number - 1].pause)
            hear = _WholeGroups(numbers.put)
            made = self._lm.generate(
                passage.ids,
                order.sampling,
                seed=order.seed,
                max_tokens=min(passage.max_tokens, left),
                shared=passage.shared,
                progress=_written(progress, order.max_tokens - left, order.max_tokens),
                should_stop=should_stop,
                on_numbers=hear,
            )
            left -= made.tokens.groups * GROUP + passage.pause_tokens
            answers.append(made)

    def _speak(
        self,
        orders: Sequence[Order],
        answers: Sequence[Spoken],
        flow_steps: int,
        timer: StageTimer,
        progress: Progress,
        should_stop: ShouldStop,
    ) -> list[Waveform]:
        """Return the sound of what was answered to each order, in the order's voice."""
        jobs = [(order, tokens) for order, answer in zip(orders, answers, strict=True) for tokens in answer.tokens]
        progress(FLOW, 0.0)
        with timer.stage(FLOW) as stage:
            mels = self._vocoder.flow_many(
                [
                    FlowOrder(tokens, order.prompt, order.encoding.mel, order.encoding.speaker, order.seed)
                    for order, tokens in jobs
                ],
                steps=flow_steps,
                progress=partial(progress, FLOW),
                should_stop=should_stop,
            )
            stage.note = _steps(flow_steps)
        progress(VOCODER, 0.0)
        with timer.stage(VOCODER):
            sounds = [
                self._vocoder.sound(
                    mel, seed=order.seed, progress=_part(progress, VOCODER, number, len(jobs)), should_stop=should_stop
                )
                for number, (mel, (order, _)) in enumerate(zip(mels, jobs, strict=True))
            ]
            rest = iter(sounds)
            return [
                joined([next(rest) for _ in answer.tokens], order.pauses[: len(answer.tokens)])
                for order, answer in zip(orders, answers, strict=True)
            ]


class _WholeGroups:
    """Passes numbers on in whole groups; those of a ragged end stay behind."""

    def __init__(self, hear: Callable[[IntArray], None]) -> None:
        self._hear = hear
        self._rest = np.zeros(0, np.int64)

    def __call__(self, numbers: IntArray) -> None:
        numbers = np.concatenate((self._rest, numbers))
        whole = cut_to_groups(numbers)
        self._rest = numbers[len(whole) :]
        self._hear(whole)


def _add_side_by_side(
    timer: StageTimer, stream: SpeechStream, generations: Sequence[Generation], flow_steps: int
) -> None:
    """Record language model, flow and vocoder of a stream, which ran side by side.

    While the model works, it is what all wait for; the rest of the time is flow's and vocoder's, in proportion to
    what each worked. So the three never sum to more than the time that passed.
    """
    prefill = sum(generation.prefill_seconds for generation in generations)
    decoding = sum(generation.decode_seconds for generation in generations) - stream.blocked_seconds
    writing = prefill + decoding
    flow, sound = stream.voice.flow_seconds, stream.voice.sound_seconds
    rest = max(time.perf_counter() - stream.started - writing, 0.0)
    share = min(rest / max(flow + sound, 1e-9), 1.0)
    note = _speed(generations, prefill, decoding)
    timer.add(LLM, writing, busy=writing, note=note, tokens=_tokens(generations))
    timer.add(FLOW, share * flow, busy=flow, note=_steps(flow_steps))
    timer.add(VOCODER, share * sound, busy=sound)


def _written(progress: Progress, before: int, most: int) -> Callable[[int, int], None]:
    """Return what hears of the ids of some prompts, when ``before`` ids of ``most`` were asked for already."""
    return lambda done, _: progress(LLM, (before + done) / most)


def _part(progress: Progress, stage: str, number: int, count: int) -> Callable[[float], None]:
    """Return what hears the fraction done of one passage among several."""
    return lambda fraction: progress(stage, (number + fraction) / count)


def _tokens(generations: Sequence[Generation]) -> int:
    return sum(len(generation.tokens.numbers) for generation in generations)


def _speed(generations: Sequence[Generation], prefill: float, decode: float) -> str:
    ids = sum(generation.new_ids for generation in generations)
    several = f" in {len(generations)} sequences" if len(generations) > 1 else ""
    return f"prefill {prefill:.3f}s, {ids} tokens{several}, {ids / max(decode, 1e-9):.1f} tokens/s"


def _steps(flow_steps: int) -> str:
    return f"{flow_steps} step{'s' if flow_steps != 1 else ''}"
