"""Decoding as one would write it down: the decoder's modules, one position at a time, and new tensors for everything.

Not part of the product: what its step (stepaudio/llm/step.py) is measured against, and compared with id by id.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stepaudio.llm.attention import KeyValueCache, score_bias
from stepaudio.llm.network import Decoder
from stepaudio.llm.sampling import REPETITION_WINDOW, SpeechHead
from stepaudio.types import SamplingParams


class PlainDecoding:
    """One sequence being continued, ids int64 (1, n) in ``ids``."""

    def __init__(
        self, decoder: Decoder, head: SpeechHead, prompt: list[int], most: int, params: SamplingParams, seed: int
    ) -> None:
        self.decoder, self.head, self.params = decoder, head, params
        self.generator = torch.Generator().manual_seed(seed)
        self.slope = decoder.slopes()
        self.cache = decoder.new_cache(len(prompt) + most)
        self.ids = torch.tensor([prompt])
        self.hidden = decoder(self.ids, cache=self.cache)[:, -1]  # (1, D)
        self.drawn = 0

    def draw(self) -> int:
        """Return the next id."""
        choice = self.head.choices[self.head.choice(self.drawn)]
        logits = F.linear(self.hidden, choice.weight.t()).to(torch.float32)
        if self.params.repetition_rule:
            logits = _without_repetition(logits, choice.ids, self.ids)
        ident = choice.ids[_column(logits, self.params, self.generator)]
        self.ids = torch.cat([self.ids, ident], dim=1)
        self.drawn += 1
        return int(ident)

    def advance(self) -> None:
        """Compute the state of the newest id."""
        length = self.ids.shape[1]
        position = torch.arange(length - 1, length)
        keys = min(KeyValueCache.rounded(length), self.cache.capacity)
        bias = score_bias(self.slope, position, keys)
        hidden = self.decoder.embed_tokens(self.ids[:, -1:])
        for number, layer in enumerate(self.decoder.layers):
            hidden = layer(hidden, bias, self.cache, number, position)
        self.hidden = self.decoder.norm(hidden)[:, -1]


def _without_repetition(logits: Tensor, ids: Tensor, so_far: Tensor) -> Tensor:
    window = so_far[:, -REPETITION_WINDOW:]
    repeated = (window == window[:, -1:]).sum(-1, keepdim=True) > 1
    return logits.masked_fill(repeated & (ids == window[:, -1:]), float("-inf"))


def _column(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> Tensor:
    """Return the column (1, 1) that is drawn: the winner of an exponential race."""
    if params.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    warped = logits / params.temperature
    if 0 < params.top_k < warped.shape[-1]:
        least = warped.topk(params.top_k, dim=-1).values[:, -1:]
        warped = warped.masked_fill(warped < least, float("-inf"))
    probabilities = warped.softmax(-1)
    race = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / race.clamp_(min=torch.finfo(race.dtype).tiny)).argmax(-1, keepdim=True)
