"""The language model at work: prompt ids in, speech tokens out. It knows nothing of text.

1. prefill     each prompt goes into its row of the cache: what was read before is copied, the rest is read at once,
               that of several prompts with one beginning side by side
2. decode      one id of every row per step (step.py): head, repetition rule, draw, feed back
3. look        every few steps the new ids are read from the device: ends, progress, stop wishes; ended rows leave
4. cut         whole groups of five become SpeechTokens
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from stepaudio.errors import Cancelled, GenerationError, InvalidInput
from stepaudio.llm import compiled, fused, sampling
from stepaudio.llm.attention import KeyValueCache
from stepaudio.llm.graphs import CudaCapture
from stepaudio.llm.layers import PlainLayers
from stepaudio.llm.network import Decoder
from stepaudio.llm.prefixes import PrefixStore
from stepaudio.llm.step import DecodeState, Step, StepWeights
from stepaudio.llm.workspace import Workspace, Workspaces
from stepaudio.tokens import GROUP, SpeechVocabulary, cut_to_groups
from stepaudio.types import IntArray, SamplingParams, SpeechTokens, Stopped

_LOOK_EVERY, _LOOK_EVERY_WHERE_COMPILED, _LOOK_EVERY_ELSEWHERE = 1, GROUP, 2 * GROUP
"""In a large network on a CPU, in a compiled loop, on other devices. Looking takes time, and there it waits for the
device; but what is drawn after an unnoticed end is work for nothing."""

_READ_AT_ONCE = 4096
"""Positions of several prompts that are read side by side, filling included; at full size they take half a gigabyte."""


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


Listener = Callable[[int, IntArray], None]
"""Hears the number of a request and the speech numbers int64 (n,) that are new in it."""


@dataclass(frozen=True, eq=False)
class _Request:
    """One prompt and how to continue it; see SpeechLM.generate()."""

    number: int
    prompt: tuple[int, ...]
    seed: int
    max_tokens: int
    shared: int

    @property
    def beginning(self) -> tuple[int, ...]:
        """The ids that are read apart, because others may begin with them."""
        return self.prompt[: min(self.shared, len(self.prompt) - 1)]


@dataclass(frozen=True, eq=False)
class _Listeners:
    """Who wants to know how it goes."""

    progress: Callable[[int, int], None] | None
    should_stop: Callable[[], bool] | None
    on_numbers: Listener | None

    def stop_if_wished(self) -> None:
        if self.should_stop is not None and self.should_stop():
            raise Cancelled("The request was stopped while the language model was speaking.")

    def hear(self, request: int, numbers: IntArray) -> None:
        if self.on_numbers is not None and len(numbers):
            self.on_numbers(request, numbers)


class _Row:
    """A request under way: what it has drawn, at most ``limit`` ids, and when it ended."""

    def __init__(self, request: _Request, limit: int) -> None:
        self.request, self.limit = request, limit
        self.new: list[int] = []
        self.stopped: Stopped = "length"
        self.finished = False
        self._ended = 0.0

    def length(self, drawn: int) -> int:
        """Return how long the sequence is after so many new ids."""
        return len(self.request.prompt) + drawn

    def take(self, fresh: list[int], vocabulary: SpeechVocabulary) -> IntArray:
        """Append what was drawn up to the end, and return the numbers int64 (n,) of it."""
        if vocabulary.end in fresh:
            fresh = fresh[: fresh.index(vocabulary.end)]
            self.stopped = "end"
        self.new += fresh
        self.finished = self.stopped == "end" or len(self.new) == self.limit
        self._ended = time.perf_counter()
        return vocabulary.numbers(fresh)

    def generation(self, vocabulary: SpeechVocabulary, started: float, prefilled: float) -> Generation:
        """Return the outcome of a finished row."""
        return Generation(
            tokens=SpeechTokens(cut_to_groups(vocabulary.numbers(self.new))),
            new_ids=len(self.new) + (self.stopped == "end"),
            stopped=self.stopped,
            prefill_seconds=prefilled - started,
            decode_seconds=self._ended - prefilled,
        )


class SpeechLM:
    """A loaded language model and the ids it speaks in.

    look_every: how many steps may pass between looks at what was drawn (None: what suits device and layers).
    prefix_bytes: how much memory the beginnings of prompts may take that are kept for later requests.
    cuda_graphs: whether a GPU replays its steps as CUDA graphs. fused_kernels: whether their layers are computed in
    kernels of our own (see fused.py and, for a CPU, compiled.py), where they can be and it pays.
    Building one joins the weights of ``model`` (see StepWeights). Requests may come from several threads at once.
    """

    def __init__(
        self,
        model: CausalLM,
        vocabulary: SpeechVocabulary,
        *,
        look_every: int | None = None,
        prefix_bytes: int = 0,
        cuda_graphs: bool = True,
        fused_kernels: bool = True,
    ) -> None:
        self._decoder = model.model
        self._head = sampling.SpeechHead(model.lm_head.weight, vocabulary)
        self._weights = StepWeights(self._decoder)
        self._vocabulary = vocabulary
        self.device = self._decoder.device
        self.max_length = self._decoder.size.max_length
        on_cpu = self.device.type == "cpu"
        self._capture = None if on_cpu or not cuda_graphs else CudaCapture(self.device)
        choose = compiled.layers_for if on_cpu else fused.layers_for
        self._layers = choose(self._weights, self.device, wanted=fused_kernels)
        where_fast = _LOOK_EVERY_WHERE_COMPILED if on_cpu else _LOOK_EVERY_ELSEWHERE
        self._look_every = look_every or (_LOOK_EVERY if on_cpu and not self.fused else where_fast)
        self._prefixes = PrefixStore(prefix_bytes)
        self._workspaces = Workspaces(self._new_workspace)

    @property
    def fused(self) -> bool:
        """Whether the layers of a step are computed in kernels of our own."""
        return self._layers is not PlainLayers

    @property
    def alone(self) -> bool:
        """Whether one thread decodes a sequence as fast as several: in a compiled loop, or on another device."""
        return self.device.type != "cpu" or self.fused

    @property
    def element_size(self) -> int:
        """Return how many bytes a step reads for a number of the layers' matrices that are not packed."""
        if isinstance(self._layers, compiled.Network):
            return self._layers.element_size
        return self._weights.embedding.element_size()

    @property
    def graphs(self) -> bool:
        """Whether steps are replayed as CUDA graphs."""
        return self._capture is not None

    def generate(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        seed: int,
        max_tokens: int,
        shared: int = 0,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_numbers: Callable[[IntArray], None] | None = None,
    ) -> Generation:
        """Return the speech that follows ``prompt_ids``, in whole groups, at least one.

        ``seed`` and ``max_tokens`` are taken as given here; those of ``params`` are the caller's to resolve. At
        most ``max_tokens`` ids are drawn, fewer where the model's longest sequence is reached first. The first
        ``shared`` ids are read apart and kept, because other requests may begin with the same; the result does not
        depend on whether they were found. ``progress`` hears (ids so far, ids at most). ``on_numbers`` receives,
        while drawing goes on, the numbers int64 (n,) that are new since its last call: all in order, without the
        end, but with a ragged last group, if there is one, which the result leaves out.
        Raises InvalidInput for values out of range and a prompt that is too long, GenerationError when the model
        computes no numbers, Cancelled soon after ``should_stop`` says so.
        """
        request = _Request(0, tuple(prompt_ids), seed, max_tokens, shared)
        hear: Listener | None = None if on_numbers is None else lambda _, numbers: on_numbers(numbers)
        (generation,) = self._generate([request], params, _Listeners(progress, should_stop, hear))
        return generation

    def generate_many(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        seeds: Sequence[int],
        max_tokens: Sequence[int],
        shared: Sequence[int] | None = None,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_numbers: Listener | None = None,
    ) -> list[Generation]:
        """Return what generate() would for each prompt with its seed, cap and shared length; decoded side by side.

        A prompt that stands there several times is read once: takes with several seeds. The results are those of
        generate() but for rounding: products of several rows add up in another order. In float32 that lets another id
        win once in millions of draws. In bfloat16 it does so within a second or two of sound (with mini's weights, sums
        in two halves instead of one: in 39 of 40 sounds), after which the sound is another reading of the same words;
        the same requests together give the same again.
        ``progress`` hears the sums over all requests, ``on_numbers`` also the number of the request. The seconds of a
        Generation run until its own end; its prefill is that of all.
        Raises as generate() does, for all requests at once, and ValueError for lists of other lengths.
        """
        told = zip(prompts, seeds, max_tokens, [0] * len(prompts) if shared is None else shared, strict=True)
        requests = [_Request(number, tuple(prompt), *rest) for number, (prompt, *rest) in enumerate(told)]
        return self._generate(requests, params, _Listeners(progress, should_stop, on_numbers))

    def forget(self) -> None:
        """Let go of what only saves time: the beginnings of prompts, and the room in which requests decode."""
        self._prefixes.clear()
        self._workspaces.clear()

    def _new_workspace(self, batch: int, capacity: int) -> Workspace:
        return Workspace(self._weights, self._head, batch, capacity, self._capture, self._layers)

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

    @torch.inference_mode()
    def _generate(
        self, requests: Sequence[_Request], params: SamplingParams, listeners: _Listeners
    ) -> list[Generation]:
        """Return what follows each prompt, all decoded side by side."""
        sampling.check(params)
        rows = [_Row(request, self._limit(len(request.prompt), request.max_tokens)) for request in requests]
        if not rows:
            return []
        params = replace(params, seed=None, max_tokens=None)  # what is left is what a step depends on
        started = time.perf_counter()
        with self._workspaces.lend(self._rounded(len(rows)), max(row.length(row.limit) for row in rows)) as workspace:
            self._read(rows, workspace.state, listeners)
            prefilled = time.perf_counter()
            self._decode(rows, workspace, params, listeners)
        return [row.generation(self._vocabulary, started, prefilled) for row in rows]

    def _read(self, rows: list[_Row], state: DecodeState, listeners: _Listeners) -> None:
        """Read the prompts into the cache, equal ones once, neighbours that begin alike side by side."""
        firsts: dict[tuple[tuple[int, ...], int], int] = {}  # of equal prompts
        where = [firsts.setdefault((row.request.prompt, row.request.shared), n) for n, row in enumerate(rows)]
        states: dict[int, Tensor] = {}
        for together in _neighbours([rows[number].request for number in firsts.values()]):
            listeners.stop_if_wished()
            cache = state.cache.rows(together[0].number, len(together))
            states.update(zip((one.number for one in together), self._prefill(together, cache), strict=True))
        state.common.fill_(_in_common([row.request for row in rows]))
        for number, (row, first) in enumerate(zip(rows, where, strict=True)):
            prompt = row.request.prompt
            if first != number:
                state.cache.row(number).begin_with(state.cache.row(first).first(len(prompt)))
            state.begin(number, prompt, states[first], sampling.uniforms(row.request.seed, row.limit))
        # Reading this one value also waits for the device, so that the clock is honest.
        _check_finite(state, len(rows))

    def _prefill(self, requests: Sequence[_Request], cache: KeyValueCache) -> Tensor:
        """Return the states (B, D) after the prompts, which begin alike and whose keys and values go into the cache.

        The shared beginning is a block of its own whether it is kept or not: cut otherwise, sums would be taken in
        another order and the result would depend, in its last bits, on what was asked before. Shorter prompts are
        filled up: nothing looks ahead, and what the filling leaves in the cache is written over before it is read.
        """
        beginning = requests[0].beginning
        shared = len(beginning)
        if shared > 0:
            kept = self._prefixes.get(beginning)
            if kept is None:
                first = cache.row(0)
                self._decoder(torch.tensor([beginning], device=self.device), cache=first)
                kept = first.first(shared)
                self._prefixes.put(beginning, kept)
            cache.begin_with(kept)
        rests = [request.prompt[shared:] for request in requests]
        longest = max(map(len, rests))
        ids = torch.tensor([rest + (0,) * (longest - len(rest)) for rest in rests], device=self.device)
        states = self._decoder(ids, cache=cache, start=shared)  # (B, longest, D)
        return torch.stack([state[len(rest) - 1] for state, rest in zip(states, rests, strict=True)])

    def _decode(self, rows: list[_Row], workspace: Workspace, params: SamplingParams, listeners: _Listeners) -> None:
        """Draw for every row until its end or its limit. A row that has finished leaves its place to the last one."""
        live = list(rows)
        state = workspace.state
        most, seen = sum(row.limit for row in rows), 0
        limit = min(row.limit for row in live)
        step = self._step(live, workspace, params)
        step.draw(self._head.choice(0))
        drawn = 1
        while True:
            if drawn == limit or drawn % self._look_every == 0:
                listeners.stop_if_wished()
                for row, fresh in zip(live, state.drawn(len(live), seen, drawn), strict=True):
                    listeners.hear(row.request.number, row.take(fresh, self._vocabulary))
                seen = drawn
                if listeners.progress is not None:
                    listeners.progress(sum(len(row.new) for row in rows), most)
                if any(row.finished for row in live):
                    _check_finite(state, len(live))
                    live = _closed_up(live, state)
                    if not live:
                        return
                    limit = min(row.limit for row in live)
                    step = self._step(live, workspace, params)
            following = range(drawn, min(limit, drawn + self._look_every - drawn % self._look_every))
            longest = max(row.length(0) for row in live)
            keys = [KeyValueCache.rounded(longest + place) for place in following]
            step.run_on(keys, [self._head.choice(place) for place in following])
            drawn = following.stop

    def _step(self, live: list[_Row], workspace: Workspace, params: SamplingParams) -> Step:
        """Return the step of the rows that go on; what it computes beside them, nobody looks at."""
        rows = self._rounded(len(live))
        for idle in range(len(live), rows):
            workspace.state.rest(idle)
        return workspace.step(rows, params)

    def _rounded(self, rows: int) -> int:
        """Return how many rows a step computes for so many sequences.

        Where steps are captured, a power of two: each number of rows needs graphs of its own, and on a GPU capturing
        them takes longer than computing some rows for nothing. Elsewhere no more than there are.
        """
        return rows if self._capture is None else 1 << (rows - 1).bit_length()


def _neighbours(requests: Sequence[_Request]) -> Iterator[list[_Request]]:
    """Yield the requests in runs that are read at once: neighbours in the cache, alike in beginning and in length."""
    run: list[_Request] = []
    for request in requests:
        if run:
            rests = [len(one.prompt) - len(one.beginning) for one in (*run, request)]
            beside = request.number == run[-1].number + 1 and request.beginning == run[0].beginning
            if not beside or max(rests) * len(rests) > min(_READ_AT_ONCE, 2 * sum(rests)):
                yield run
                run = []
        run.append(request)
    yield run


def _in_common(requests: Sequence[_Request]) -> int:
    """Return how many positions all requests begin with that were read once and copied."""
    one = requests[0]
    if all((other.prompt, other.shared) == (one.prompt, one.shared) for other in requests):
        return len(one.prompt)
    return len(one.beginning) if all(other.beginning == one.beginning for other in requests) else 0


def _closed_up(live: list[_Row], state: DecodeState) -> list[_Row]:
    """Return the rows that go on, in the first places of the state."""
    live = list(live)
    for number in reversed(range(len(live))):
        if live[number].finished:
            last = live.pop()
            if number < len(live):
                state.move(len(live), number)
                live[number] = last
    return live


def _check_finite(state: DecodeState, rows: int) -> None:
    if not bool(torch.isfinite(state.normed[:rows]).all()):
        raise GenerationError("The language model computed no finite numbers; its weights may be damaged.")
