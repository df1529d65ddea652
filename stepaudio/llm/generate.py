"""The language model at work: prompt ids in, speech tokens out. It knows nothing of text.

1. prefill     all prompt ids at once into a cache with room for all that this request can draw
2. decode      one id per step: the legal rows of the head, repetition rule, draw, feed back
3. look        every few steps the new ids are read from the device: end, progress, stop wishes
4. cut         whole groups of five become SpeechTokens
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from stepaudio.errors import Cancelled, GenerationError, InvalidInput
from stepaudio.llm import sampling
from stepaudio.llm.attention import KeyValueCache
from stepaudio.llm.network import Decoder
from stepaudio.tokens import GROUP, SpeechVocabulary, cut_to_groups
from stepaudio.types import IntArray, SamplingParams, SpeechTokens, Stopped

_LOOK_EVERY_ON_CPU = 1
_LOOK_EVERY_ELSEWHERE = 2 * GROUP
"""Looking waits for the device, but what is drawn after an unnoticed end is work for nothing."""

_WARM_PROMPT = 16
_WARM_GROUPS = 2


class CausalLM(Protocol):
    """What is needed of a model: its decoder and its head."""

    model: Decoder
    lm_head: nn.Linear


@dataclass(frozen=True, eq=False)
class Generation:
    """What came out: whole groups, how many ids were drawn (the end included), why it stopped, and the seconds."""

    tokens: SpeechTokens
    new_ids: int
    stopped: Stopped
    prefill_seconds: float
    decode_seconds: float


@dataclass(eq=False)
class _Run:
    """One request under way: all that changes from step to step."""

    cache: KeyValueCache
    generator: torch.Generator
    ids: Tensor  # int64 (1, prompt + limit): the prompt, then what has been drawn
    length: int  # how many of them are there
    hidden: Tensor  # (1, D): the state of the last one


class SpeechLM:
    """A loaded language model and the ids it speaks in.

    look_every: how many steps may pass between looks at what was drawn (None: 1 on a CPU, 10 elsewhere).
    Requests share nothing but the weights.
    """

    def __init__(self, model: CausalLM, vocabulary: SpeechVocabulary, *, look_every: int | None = None) -> None:
        self._decoder = model.model
        self._head = sampling.SpeechHead(model.lm_head.weight, vocabulary)
        self._vocabulary = vocabulary
        self._slope = self._decoder.slopes()
        self.device = self._decoder.device
        self.max_length = self._decoder.size.max_length
        on_cpu = self.device.type == "cpu"
        self._look_every = look_every or (_LOOK_EVERY_ON_CPU if on_cpu else _LOOK_EVERY_ELSEWHERE)

    @torch.inference_mode()
    def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        seed: int,
        max_tokens: int,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_numbers: Callable[[IntArray], None] | None = None,
    ) -> Generation:
        """Return the speech that follows ``prompt_ids``, in whole groups, at least one.

        ``seed`` and ``max_tokens`` are taken as given here; those of ``params`` are the caller's to resolve. At
        most ``max_tokens`` ids are drawn, fewer where the model's longest sequence is reached first. ``progress``
        hears (ids so far, ids at most). ``on_numbers`` receives, while drawing goes on, the numbers int64 (n,) that
        are new since its last call: all in order, without the end, but with a ragged last group, if there is one,
        which the result leaves out.
        Raises InvalidInput for values out of range and a prompt that is too long, GenerationError when the model
        computes no numbers, Cancelled soon after ``should_stop`` says so.
        """
        sampling.check(params)
        limit = self._limit(len(prompt_ids), max_tokens)
        _stop_if_wished(should_stop)
        started = time.perf_counter()
        run = self._prefill(prompt_ids, limit, seed)
        prefilled = time.perf_counter()
        new = self._decode(run, params, limit, progress, should_stop, on_numbers)
        decoded = time.perf_counter()
        ended = new[-1] == self._vocabulary.end
        speech = new[:-1] if ended else new
        return Generation(
            tokens=SpeechTokens(cut_to_groups(self._vocabulary.numbers(speech))),
            new_ids=len(new),
            stopped="end" if ended else "length",
            prefill_seconds=prefilled - started,
            decode_seconds=decoded - prefilled,
        )

    def warm(self) -> None:
        """Generate a little, so that the first request finds everything compiled and allocated."""
        prompt = [self._vocabulary.linguistic.start] * _WARM_PROMPT
        self.generate(prompt, SamplingParams(), seed=0, max_tokens=_WARM_GROUPS * GROUP)

    def _limit(self, prompt: int, max_tokens: int) -> int:
        """Return how many ids to draw: whole groups, and one more where it may still turn out to be the end."""
        if max_tokens < GROUP:
            raise InvalidInput(f"At most {max_tokens} new ids were asked for; the shortest sound takes {GROUP}.")
        if not 0 < prompt <= self.max_length - GROUP:
            raise InvalidInput(
                f"The prompt is {prompt} ids long; the model takes 1 to {self.max_length - GROUP}. "
                "A shorter reference or text would fit."
            )
        whole, rest = divmod(min(max_tokens, self.max_length - prompt), GROUP)
        return whole * GROUP + (1 if rest else 0)

    def _prefill(self, prompt_ids: Sequence[int], limit: int, seed: int) -> _Run:
        """Return the run after reading the prompt."""
        length = len(prompt_ids)
        ids = torch.zeros(1, length + limit, dtype=torch.int64, device=self.device)
        ids[0, :length] = torch.tensor(prompt_ids, dtype=torch.int64)
        cache = self._decoder.new_cache(length + limit)
        hidden = self._decoder(ids[:, :length], cache=cache)[:, -1]  # (1, D)
        # Reading this one value also waits for the device, so that the clock is honest.
        if not bool(torch.isfinite(hidden).all()):
            raise GenerationError("The language model computed no finite numbers; its weights may be damaged.")
        generator = torch.Generator(self.device).manual_seed(seed)
        return _Run(cache, generator, ids, length, hidden)

    def _decode(
        self,
        run: _Run,
        params: SamplingParams,
        limit: int,
        progress: Callable[[int, int], None] | None,
        should_stop: Callable[[], bool] | None,
        on_numbers: Callable[[IntArray], None] | None,
    ) -> list[int]:
        """Return the ids drawn: up to ``limit`` of them, or up to and including the end."""
        prompt = run.length
        new: list[int] = []
        for drawn in range(1, limit + 1):
            self._draw(run, params, drawn - 1)
            if drawn == limit or drawn % self._look_every == 0:
                _stop_if_wished(should_stop)
                seen = len(new)
                new += run.ids[0, prompt + seen : run.length].tolist()
                ended = self._vocabulary.end in new[seen:]
                end = new.index(self._vocabulary.end, seen) if ended else len(new)
                if on_numbers is not None and end > seen:
                    on_numbers(self._vocabulary.numbers(new[seen:end]))
                if progress is not None:
                    progress(len(new), limit)
                if ended:
                    return new[: end + 1]
            if drawn < limit:
                self._advance(run)
        return new

    def _draw(self, run: _Run, params: SamplingParams, drawn: int) -> None:
        """Append the id that follows ``drawn`` earlier ones."""
        logits, ids = self._head.logits(run.hidden, drawn)
        if params.repetition_rule:
            recent = run.ids[:, max(run.length - sampling.REPETITION_WINDOW, 0) : run.length]
            logits = sampling.ban_repetition(logits, ids, recent)
        run.ids[:, run.length] = ids[sampling.draw(logits, params, run.generator)[:, 0]]
        run.length += 1

    def _advance(self, run: _Run) -> None:
        """Compute the state of the newest id."""
        position = torch.arange(run.length - 1, run.length, device=self.device)
        keys = min(KeyValueCache.rounded(run.length), run.cache.capacity)
        newest = run.ids[:, run.length - 1 : run.length]
        run.hidden = self._decoder.step(newest, position, self._slope, run.cache, keys)[:, -1]


def _stop_if_wished(should_stop: Callable[[], bool] | None) -> None:
    if should_stop is not None and should_stop():
        raise Cancelled("The request was stopped while the language model was speaking.")
