"""The parts of the reference implementation's clone, with our kernels: what the product is measured against.

    encoder     the chunk loop, then the other parts one after another; ONNX sessions as upstream opens them
    LLM         one position after another through the modules; keys and values grow by concatenation; logits of the
                whole vocabulary; every id is read back at once
    flow        time embedding and adaLN of every block anew at each step, for both rows of the guidance
    nothing     is kept from one request to the next

It draws from the same random numbers as the product, so that both write the same ids. Where the reference is slower
still, this is not: it builds one row of the score bias for a new position, not all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stepaudio import audio
from stepaudio.bench.chunk_loop import chunk_loop
from stepaudio.encoder.paraformer import LinguisticEncoder
from stepaudio.encoder.reference import CodeEncoder, VectorEncoder
from stepaudio.errors import Cancelled
from stepaudio.features import MelConfig, log_mel
from stepaudio.llm import sampling
from stepaudio.llm.attention import KeyValueCache
from stepaudio.llm.generate import CausalLM, Generation
from stepaudio.tokens import GROUP, SpeechVocabulary, cut_to_groups
from stepaudio.types import (
    EncodedReference,
    FloatArray,
    IntArray,
    PartTime,
    ReferenceEncoding,
    SamplingParams,
    SpeechTokens,
    Stopped,
    Waveform,
)
from stepaudio.vocoder.flow import FlowMatching, Progress, ShouldStop, schedule

Array = TypeVar("Array", bound=npt.NDArray[np.generic])


class LoopedLinguisticEncoder:
    """The linguistic codes by the chunk loop; the same weights and centroids as ``ours``."""

    def __init__(self, ours: LinguisticEncoder) -> None:
        if ours.funasr is None:
            raise ValueError("The chunk loop needs FunASR's own model, which an exported encoder does not have.")
        self._ours, self._funasr = ours, ours.funasr

    def encode(self, samples: FloatArray) -> IntArray:
        """Return the codes, int64 (n,), of 16 kHz ``samples``."""
        frames = chunk_loop(self._funasr.model.get_submodule("encoder"), self._funasr.frontend, samples)
        return self._ours.nearest(frames)


class SerialEncoder:
    """ReferenceEncoder's work, one part after another."""

    def __init__(
        self, *, linguistic: CodeEncoder, semantic: CodeEncoder, speaker: VectorEncoder, mel: MelConfig
    ) -> None:
        self.linguistic, self.semantic, self.speaker, self.mel = linguistic, semantic, speaker, mel

    def encode(self, waveform: Waveform) -> EncodedReference:
        """Return the encoding with what each part took."""
        start = time.perf_counter()
        sound = audio.limit_peak(Waveform(audio.to_mono(waveform.samples), waveform.sample_rate))
        at_16k = audio.resample(sound, audio.CODE_RATE)
        prepared = audio.prepare_for_codes(at_16k)
        edges = [time.perf_counter()]

        def timed(value: Array) -> Array:
            edges.append(time.perf_counter())
            return value

        encoding = ReferenceEncoding(
            linguistic=timed(self.linguistic.encode(prepared)),
            semantic=timed(self.semantic.encode(prepared)),
            mel=timed(log_mel(audio.resample(sound, self.mel.sampling_rate).samples, self.mel)),
            speaker=timed(self.speaker.encode(at_16k.samples)),
        )
        names = ("Linguistic", "Semantic", "Mel", "Speaker")
        parts = (PartTime(*told) for told in zip(names, edges[:-1], edges[1:], strict=True))
        return EncodedReference(encoding, time.perf_counter() - start, tuple(parts))

    def close(self) -> None:
        """Do nothing: there are no threads."""


class GrowingCache(KeyValueCache):
    """Keys and values that are copied into a larger tensor at every position, as transformers' DynamicCache does."""

    def __init__(self, layers: int) -> None:
        super().__init__(torch.zeros(0))
        self._kept: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def write(self, layer: int, positions: Tensor, key: Tensor, value: Tensor, keys: int) -> tuple[Tensor, Tensor]:
        """Append key and value (B, G, T, d), and return all so far."""
        new = key.to(torch.float32), value.to(torch.float32)
        before = self._kept[layer]
        if before is not None:
            new = torch.cat((before[0], new[0]), dim=2), torch.cat((before[1], new[1]), dim=2)
        self._kept[layer] = new
        return new


class PlainLM:
    """What Pipeline asks of a language model, done plainly."""

    def __init__(self, model: CausalLM, vocabulary: SpeechVocabulary) -> None:
        self._decoder, self._head = model.model, model.lm_head
        self._choices = sampling.SpeechHead(model.lm_head.weight, vocabulary)
        self._vocabulary = vocabulary
        self.device = self._decoder.device

    @torch.inference_mode()
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
        """Return what SpeechLM.generate() does; nothing is shared, whatever ``shared`` says."""
        start = time.perf_counter()
        cache = GrowingCache(self._decoder.size.layers)
        ids = torch.tensor([list(prompt_ids)], device=self.device)
        hidden = self._decoder(ids, cache=cache)[:, -1]
        uniforms = sampling.uniforms(seed, max_tokens + 1).to(self.device)
        drawers = [sampling.Drawer(choice.ids, 1, params) for choice in self._choices.choices]
        new: list[int] = []
        stopped: Stopped = "length"
        prefilled = self._now()
        while len(new) < max_tokens:
            number = self._choices.choice(len(new))
            logits = F.linear(hidden, self._head.weight).to(torch.float32)  # (1, V)
            drawer, legal = drawers[number], self._choices.choices[number].ids
            drawer.logits.copy_(logits[:, legal])
            newest = ids[:, -sampling.REPETITION_WINDOW :]
            drawer.recent.fill_(sampling.UNKNOWN_ID)[:, -newest.shape[1] :] = newest
            if params.repetition_rule:
                drawer.ban_repetition()
            drawer.uniform.copy_(uniforms[len(new)].view(1, 1))
            drawn = torch.empty(1, dtype=torch.int64, device=self.device)
            drawer.draw(drawn)
            if int(drawn) == self._vocabulary.end:
                stopped = "end"
                break
            new.append(int(drawn))
            ids = torch.cat((ids, drawn[None]), dim=1)
            if should_stop is not None and should_stop():
                raise Cancelled("The request was stopped while the language model was speaking.")
            if progress is not None:
                progress(len(new), max_tokens)
            if on_numbers is not None:
                on_numbers(self._vocabulary.numbers(new[-1:]))
            if len(new) < max_tokens:
                hidden = self._decoder(ids[:, -1:], cache=cache, start=ids.shape[1] - 1)[:, -1]
        whole = cut_to_groups(self._vocabulary.numbers(new))
        assert len(whole) >= GROUP
        return Generation(
            tokens=SpeechTokens(whole),
            new_ids=len(new) + (stopped == "end"),
            stopped=stopped,
            prefill_seconds=prefilled - start,
            decode_seconds=self._now() - prefilled,
        )

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
    ) -> list[Generation]:
        """Return generate() of each prompt, one after another: the reference knows no other way."""
        return [
            self.generate(prompt, params, seed=seed, max_tokens=most, progress=progress, should_stop=should_stop)
            for prompt, seed, most in zip(prompts, seeds, max_tokens, strict=True)
        ]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class PlainSolver(nn.Module):
    """FlowMatching without anything computed ahead; a drop-in for its forward()."""

    def __init__(self, ours: FlowMatching) -> None:
        super().__init__()
        self.guidance, self.estimator = ours.guidance, ours.estimator

    def forward(
        self,
        noise: Tensor,
        conditions: Tensor,
        *,
        steps: int,
        present: Tensor | None = None,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Tensor:
        """Return mel (1, T, M) from noise (1, T, M) and conditions (1, T, 3M), by ``steps`` Euler steps."""
        if len(noise) > 1 or present is not None:
            raise ValueError("The original's solver takes one sound at a time.")
        times, sizes = schedule(steps)
        # Without guidance the product saves the second row. So does this: it is a trait of some weights, no switch.
        rows = conditions if self.guidance == 0 else torch.cat((conditions, torch.zeros_like(conditions)))
        x = noise
        for number, size in enumerate(sizes):
            if should_stop is not None and should_stop():
                raise Cancelled("The synthesis was stopped.")
            modulation = self.estimator.modulation(times[number].to(noise.device).expand(len(rows)))
            guided, *free = self.estimator(x, self.estimator.project(rows), modulation, 0).split(1)
            if free:
                guided = (1 + self.guidance) * guided - self.guidance * free[0]
            x = x + size * guided
            if progress is not None:
                progress((number + 1) / len(sizes))
        return x
