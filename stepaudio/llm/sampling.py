"""How the next id is drawn: the legal part of the head, repetition rule, temperature, top_k, top_p.

The order is: repetition rule, then what is legal at this phase of the 2:3 cycle, then temperature, top_k, top_p.
The legal ids lie together in the vocabulary, so only their rows of the head are ever multiplied; that equals
computing all logits and setting the others to -inf.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stepaudio.errors import InvalidInput, WeightsError
from stepaudio.tokens import GROUP, SpeechVocabulary
from stepaudio.types import SamplingParams

REPETITION_WINDOW = 10
TEMPERATURES = (0.01, 10.0)
"""Below, logits divided by it overflow; above, nothing but noise comes out."""

_NOT_LEGAL = float("-inf")


def ban_repetition(logits: Tensor, ids: Tensor, recent: Tensor) -> Tensor:
    """Return logits (B, V) without the newest id, if that stands at least twice among the last ten.

    ids int64 (V,): the id of each column. recent int64 (B, n): the newest ids, prompt included, newest last; with
    fewer than ten nothing is banned. It only ever bans the id that has just been drawn: a loop of two passes.
    """
    if recent.shape[-1] < REPETITION_WINDOW:
        return logits
    window = recent[:, -REPETITION_WINDOW:]
    newest = window[:, -1:]  # (B, 1)
    repeated = (window == newest).sum(-1, keepdim=True) > 1
    return logits.masked_fill(repeated & (ids == newest), _NOT_LEGAL)


def warp(logits: Tensor, params: SamplingParams) -> Tensor:
    """Return float32 logits (B, V) after temperature, top_k (ties with the k-th stay) and top_p."""
    warped = logits.to(torch.float32) / params.temperature
    if 0 < params.top_k < warped.shape[-1]:
        least = warped.topk(params.top_k, dim=-1).values[:, -1:]
        warped = warped.masked_fill(warped < least, _NOT_LEGAL)
    if params.top_p < 1.0:
        ordered, places = warped.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1)
        # An id stays while those before it have not filled top_p; so the first one always stays.
        drop = mass.cumsum(-1) - mass >= params.top_p
        drop[:, 0] = False
        warped = warped.masked_fill(drop.scatter(-1, places, drop), _NOT_LEGAL)
    return warped


def draw(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> Tensor:
    """Return the column (B, 1) drawn from logits (B, V); temperature 0 takes the largest and draws nothing.

    The exponential race (argmax of p / e with e ~ Exp(1)) draws exactly from p and, unlike multinomial, never
    waits for the device.
    """
    if params.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    probabilities = warp(logits, params).softmax(-1)
    race = torch.empty_like(probabilities).exponential_(generator=generator)
    race.clamp_(min=torch.finfo(race.dtype).tiny)  # a drawn 0 would make 0 / 0 of what must not be drawn
    return (probabilities / race).argmax(-1, keepdim=True)


def check(params: SamplingParams) -> None:
    """Raise InvalidInput for a temperature, top_k or top_p outside its range."""
    low, high = TEMPERATURES
    if params.temperature != 0 and not low <= params.temperature <= high:
        raise InvalidInput(f"The temperature is {params.temperature}; it must be 0 (greedy) or {low} to {high}.")
    if params.top_k < 0:
        raise InvalidInput(f"top_k is {params.top_k}; it must be 0 (off) or more.")
    if not 0 < params.top_p <= 1:
        raise InvalidInput(f"top_p is {params.top_p}; it must be above 0 and at most 1 (off).")


class SpeechHead:
    """The rows of the head that can be legal, one slice per phase of the cycle.

    A group is [2 linguistic, 3 semantic]. The end is legal only where a group would begin, and never before the
    first: a prompt always gets at least 120 ms of sound.
    """

    def __init__(self, weight: Tensor, vocabulary: SpeechVocabulary) -> None:
        """weight (V, hidden): that of lm_head. Raises WeightsError when it is too small for the vocabulary."""
        most = max(vocabulary.linguistic.stop, vocabulary.semantic.stop, vocabulary.end + 1)
        if most > weight.shape[0]:
            raise WeightsError(f"The tokenizer has {most} ids or more, the language model only {weight.shape[0]}.")
        phases = [vocabulary.legal_ids(phase) for phase in range(GROUP)]
        self._slices = [(weight[ids.start : ids.stop], _ids(ids, weight.device)) for ids in phases]
        rows, ids = self._slices[0]
        end = torch.tensor([vocabulary.end], device=weight.device)
        self._boundary = (torch.cat([rows, weight[end]]), torch.cat([ids, end]))

    def logits(self, hidden: Tensor, drawn: int) -> tuple[Tensor, Tensor]:
        """Return (logits (B, n) float32, ids int64 (n,)) of what may follow after ``drawn`` new ids.

        hidden (B, D): the normalised state of the last position.
        """
        phase = drawn % GROUP
        weight, ids = self._boundary if phase == 0 and drawn else self._slices[phase]
        return F.linear(hidden, weight).to(torch.float32), ids


def _ids(ids: range, device: torch.device) -> Tensor:
    return torch.arange(ids.start, ids.stop, device=device)
