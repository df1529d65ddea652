"""Requests made ready for the language model, and what it answered: the values that the pipeline works with."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stepaudio.errors import InvalidInput
from stepaudio.llm.generate import Generation
from stepaudio.timing import StageTimer
from stepaudio.tokens import GROUP, GROUP_SECONDS
from stepaudio.types import (
    EncodingTimes,
    ReferenceEncoding,
    SamplingParams,
    SpeechTokens,
    Stopped,
    Synthesis,
    Waveform,
)

MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Limits:
    """How much text and sound one request may bring and take; the fields are those of Settings.

    passage_seconds: how much speech one prompt asks for, roughly; a longer text is split.
    decode_rows: how many prompts are decoded side by side.
    """

    max_text_characters: int = 5000
    max_transcript_characters: int = 1000
    max_output_seconds: float = 300.0
    passage_seconds: float = 15.0
    decode_rows: int = 16


@dataclass(frozen=True, eq=False)
class Passage:
    """What the language model reads to speak one passage, the most ids that it may take, the silence after it.

    shared: how many ids at the beginning other passages in this voice begin with.
    """

    ids: list[int]
    shared: int
    max_tokens: int
    pause: float = 0.0

    @property
    def pause_tokens(self) -> int:
        """As many ids as speech of the pause's length would take, in whole groups."""
        return math.ceil(self.pause / GROUP_SECONDS - 1e-6) * GROUP


@dataclass(frozen=True, eq=False)
class Order:
    """A request made ready: its passages, whose voice speaks, and how the language model may draw.

    words: what is spoken. max_tokens: the most ids of all passages together, with the pauses between them.
    """

    passages: tuple[Passage, ...]
    prompt: SpeechTokens
    encoding: ReferenceEncoding
    times: EncodingTimes
    words: str
    sampling: SamplingParams
    seed: int
    max_tokens: int

    @property
    def pauses(self) -> list[float]:
        return [passage.pause for passage in self.passages]


def seed_of(sampling: SamplingParams) -> int:
    """Return the seed to use: the one given, or one that is drawn. Raises InvalidInput outside its range."""
    seed = sampling.seed if sampling.seed is not None else secrets.randbelow(MAX_SEED + 1)
    if not 0 <= seed <= MAX_SEED:
        raise InvalidInput(f"The seed is {seed}; it must lie between 0 and {MAX_SEED}.")
    return seed


def most_tokens(longest: float, limits: Limits, sampling: SamplingParams, max_seconds: float | None) -> int:
    """Return the cap of new ids: the least of what task, limits and request allow, in whole groups, at least one."""
    seconds = min(longest, limits.max_output_seconds, max_seconds or float("inf"))
    groups = max(int(seconds / GROUP_SECONDS + 1e-6), 1)
    if sampling.max_tokens is not None:
        groups = min(groups, max(sampling.max_tokens // GROUP, 1))
    return groups * GROUP


@dataclass(frozen=True, eq=False)
class Spoken:
    """What the language model answered to an order: the tokens of each passage, in all within the order's cap."""

    tokens: tuple[SpeechTokens, ...]
    stopped: Stopped

    @property
    def all_tokens(self) -> SpeechTokens:
        """The tokens of all passages, one after another."""
        if len(self.tokens) == 1:
            return self.tokens[0]
        return SpeechTokens(np.concatenate([tokens.numbers for tokens in self.tokens]))


def spoken(order: Order, generations: Sequence[Generation]) -> Spoken:
    """Return what the generations of an order's passages, the first ones at least, come to within its cap."""
    left = order.max_tokens // GROUP
    tokens: list[SpeechTokens] = []
    stopped: Stopped = "end" if len(generations) == len(order.passages) else "length"
    for passage, generation in zip(order.passages, generations, strict=False):
        groups = min(generation.tokens.groups, max(left, 0))
        left -= groups + passage.pause_tokens // GROUP
        if groups < generation.tokens.groups or generation.stopped == "length":
            stopped = "length"
        if groups == generation.tokens.groups:
            tokens.append(generation.tokens)
        elif groups:
            tokens.append(SpeechTokens(generation.tokens.numbers[: groups * GROUP]))
    return Spoken(tuple(tokens), stopped)


def synthesis(order: Order, answer: Spoken, waveform: Waveform, timer: StageTimer) -> Synthesis:
    """Return the result of an order that was carried out."""
    return Synthesis(
        waveform=waveform,
        tokens=answer.all_tokens,
        prompt_ids=tuple(number for passage in order.passages for number in passage.ids),
        timings=timer.finish(),
        encoding=order.times,
        seed=order.seed,
        stopped=answer.stopped,
        transcript=order.words,
        passages=len(answer.tokens),
    )
