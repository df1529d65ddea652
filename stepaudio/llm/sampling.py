"""How the next id is drawn: the legal part of the head, repetition rule, temperature, top_k, top_p.

The order is: repetition rule, then what is legal at this phase of the 2:3 cycle, then temperature, top_k, top_p.
The legal ids lie together in the vocabulary, so only their rows of the head are ever multiplied; that equals
computing all logits and setting the others to -inf.

Letters in the shapes: B sequences, n ids that are legal, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepaudio.errors import InvalidInput, WeightsError
from stepaudio.tokens import GROUP, SpeechVocabulary
from stepaudio.types import SamplingParams

REPETITION_WINDOW = 10
UNKNOWN_ID = -1
"""Stands in the window for each id that a sequence of fewer than ten lacks."""

TEMPERATURES = (0.01, 10.0)
"""Below, logits divided by it overflow; above, nothing but noise comes out."""

_NOT_LEGAL = float("-inf")


class Drawer:
    """Draws the next id of each of B sequences. It works in place: only top_p's sorting allocates while drawing.

    logits: float32 (B, n), to be filled by the caller, then altered by every method.
    recent: int64 (B, 10), the newest ids, prompt included, newest last; UNKNOWN_ID at the left where there are fewer.
    uniform: float64 (B, 1), a random number in [0, 1) for each; not read at temperature 0.
    """

    def __init__(self, ids: Tensor, rows: int, params: SamplingParams) -> None:
        """ids int64 (n,): the id of each column."""
        columns, device = len(ids), ids.device

        def room(width: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(rows, width, dtype=dtype, device=device)

        self._ids, self._params = ids, params
        self.logits = room(columns)
        self.recent = room(REPETITION_WINDOW, torch.int64)
        self.uniform = room(1, torch.float64)
        self._newest, self._earlier = self.recent[:, -1:], self.recent[:, :-1]
        self._oldest = self.recent[:, :1]
        self._same = room(REPETITION_WINDOW - 1, torch.bool)
        self._repeated, self._complete = room(1, torch.bool), room(1, torch.bool)
        # Constants as tensors: a Python number would become a new one at every step.
        self._unknown = torch.tensor(UNKNOWN_ID, device=device)
        self._temperature = torch.tensor(params.temperature, dtype=torch.float32, device=device)
        self._top_p = torch.tensor(params.top_p, dtype=torch.float32, device=device)

        self._mask = room(columns, torch.bool)
        self._top = min(params.top_k, columns)
        self._best = room(self._top), room(self._top, torch.int64)
        self._least = self._best[0][:, -1:]
        sorting = columns if params.top_p < 1.0 else 0
        self._ordered = room(sorting), room(sorting, torch.int64)
        self._share, self._before, self._drop = room(sorting), room(sorting), room(sorting, torch.bool)
        self._drop_first = self._drop[:, :1]

        self._probability = room(columns)
        self._mass = room(columns, torch.float64)
        self._total = self._mass[:, -1:]
        self._target = room(1, torch.float64)
        self._column = room(1, torch.int64)
        self._columns = self._column.view(-1)

    def ban_repetition(self) -> None:
        """Give -inf to the newest id, if it stands at least twice among the last ten.

        With fewer than ten ids nothing is banned. It only ever bans the id that has just been drawn: a loop of two
        passes.
        """
        torch.eq(self._earlier, self._newest, out=self._same)
        torch.any(self._same, -1, keepdim=True, out=self._repeated)
        torch.gt(self._oldest, self._unknown, out=self._complete)
        self._repeated.logical_and_(self._complete)
        torch.eq(self._ids, self._newest, out=self._mask)
        self._mask.logical_and_(self._repeated)
        self.logits.masked_fill_(self._mask, _NOT_LEGAL)

    def warp(self) -> None:
        """Apply temperature, top_k (ties with the k-th stay) and top_p."""
        self.logits.div_(self._temperature)
        if 0 < self._top < self.logits.shape[1]:
            torch.topk(self.logits, self._top, out=self._best)
            torch.lt(self.logits, self._least, out=self._mask)
            self.logits.masked_fill_(self._mask, _NOT_LEGAL)
        if self._params.top_p < 1.0:
            self._keep_top_p()

    def draw(self, newest: Tensor) -> None:
        """Write the ids that are drawn into ``newest`` int64 (B,); temperature 0 takes the largest logit.

        A draw is the place where ``uniform`` falls in the running sum of the probabilities: exact, one random number
        for an id, and, unlike torch.multinomial, without waiting for the device. The sum is taken in float64, where
        the order of the additions does not show.
        """
        if self._params.temperature == 0:
            torch.argmax(self.logits, -1, keepdim=True, out=self._column)
        else:
            self.warp()
            torch.softmax(self.logits, -1, out=self._probability)
            self._mass.copy_(self._probability)
            self._mass.cumsum_(-1)
            torch.mul(self._total, self.uniform, out=self._target)
            # The first place whose sum lies above: one that adds something, so never one that is ruled out.
            torch.searchsorted(self._mass, self._target, right=True, out=self._column)
            self._column.clamp_(max=self.logits.shape[1] - 1)  # in case the product was rounded up to the total
        torch.index_select(self._ids, 0, self._columns, out=newest)

    def _keep_top_p(self) -> None:
        ordered, places = torch.sort(self.logits, dim=-1, descending=True, out=self._ordered)
        torch.softmax(ordered, -1, out=self._share)
        # An id stays while those before it have not filled top_p; so the first one always stays.
        torch.cumsum(self._share, -1, out=self._before).sub_(self._share)
        torch.ge(self._before, self._top_p, out=self._drop)
        self._drop_first.zero_()
        self._mask.scatter_(-1, places, self._drop)
        self.logits.masked_fill_(self._mask, _NOT_LEGAL)


def uniforms(seed: int, count: int) -> Tensor:
    """Return the random numbers of a request, float64 (count,) in [0, 1), from a generator of its own.

    They are drawn on the CPU whatever the device, so that a seed means the same everywhere.
    """
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check(params: SamplingParams) -> None:
    """Raise InvalidInput for a temperature, top_k or top_p outside its range."""
    low, high = TEMPERATURES
    if params.temperature != 0 and not low <= params.temperature <= high:
        raise InvalidInput(f"The temperature is {params.temperature}; it must be 0 (greedy) or {low} to {high}.")
    if params.top_k < 0:
        raise InvalidInput(f"top_k is {params.top_k}; it must be 0 (off) or more.")
    if not 0 < params.top_p <= 1:
        raise InvalidInput(f"top_p is {params.top_p}; it must be above 0 and at most 1 (off).")


@dataclass(frozen=True, eq=False)
class Choice:
    """What may be drawn at a place: the rows of the head, as (D, n), and the ids int64 (n,) they stand for."""

    weight: Tensor
    ids: Tensor


class SpeechHead:
    """The rows of the head that can be legal: a slice for each kind of place in the cycle.

    A group is [2 linguistic, 3 semantic]. The end is legal only where a group would begin, and never before the
    first: a prompt always gets at least 120 ms of sound.
    """

    def __init__(self, weight: Tensor, vocabulary: SpeechVocabulary) -> None:
        """weight (V, D): that of lm_head. Raises WeightsError when it is too small for the vocabulary."""
        most = max(vocabulary.linguistic.stop, vocabulary.semantic.stop, vocabulary.end + 1)
        if most > weight.shape[0]:
            raise WeightsError(f"The tokenizer has {most} ids or more, the language model only {weight.shape[0]}.")
        self._vocabulary = vocabulary
        linguistic, semantic = (self._slice(weight, ids) for ids in (vocabulary.linguistic, vocabulary.semantic))
        end = torch.tensor([vocabulary.end], device=weight.device)
        boundary = Choice(torch.cat([linguistic.weight.t(), weight[end]]).t(), torch.cat([linguistic.ids, end]))
        self.choices = (linguistic, semantic, boundary)

    def choice(self, drawn: int) -> int:
        """Return which of ``choices`` is legal after ``drawn`` new ids."""
        phase = drawn % GROUP
        if phase == 0 and drawn:
            return 2
        return 0 if self._vocabulary.legal_ids(phase) == self._vocabulary.linguistic else 1

    @staticmethod
    def _slice(weight: Tensor, ids: range) -> Choice:
        return Choice(
            weight[ids.start : ids.stop].detach().t(), torch.arange(ids.start, ids.stop, device=weight.device)
        )
