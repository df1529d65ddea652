"""The product and the baseline on the same weights, side by side: every part, and the pipelines made of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from stepaudio.bench.baseline import LoopedLinguisticEncoder, PlainLM, PlainSolver, SerialEncoder
from stepaudio.cache import EncodingCache
from stepaudio.device import Runtime
from stepaudio.encoder.paraformer import LinguisticEncoder
from stepaudio.encoder.reference import ReferenceEncoder
from stepaudio.encoder.s3 import SemanticEncoder
from stepaudio.encoder.speaker import SpeakerEncoder
from stepaudio.llm.generate import SpeechLM
from stepaudio.llm.loading import load_step1
from stepaudio.loading import CAMPPLUS, S3_ONNX, load_engine
from stepaudio.pipeline import Pipeline
from stepaudio.prompts import TOKENIZER_FILE, PromptBuilder, SpeechTokenizer, layout_of
from stepaudio.settings import Settings
from stepaudio.tiny.encoder import synthetic_sound
from stepaudio.tokens import SpeechVocabulary, interleave
from stepaudio.types import Reference, ReferenceEncoding, SamplingParams, SpeechTokens, Waveform
from stepaudio.vocoder.vocoder import Vocoder, load_vocoder
from stepaudio.weights import WeightsFolder

SOUND_RATE = 24000
CACHE_BYTES = 2**28
PREFIX_BYTES = 2**30
TRANSCRIPT = "The words that are spoken in the recording number {number:03d}."
TEXT = (
    "This sentence is long enough that no voice has come to its end before the measurement is over, because it goes "
    "on and on, one clause after another, until it stops"
)
"""Shorter than what the pipeline would divide into passages."""


@dataclass(frozen=True)
class Case:
    """What is cloned in every run: a reference and a sound of these lengths, with so many Euler steps."""

    reference_seconds: float
    sound_seconds: float
    flow_steps: int
    seed: int = 7

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(seed=self.seed)

    def reference(self, number: int = 0, voice: int = 1) -> Reference:
        """Return reference ``voice`` with a transcript of its own for each number, of the same length for all."""
        samples = synthetic_sound(self.reference_seconds * SOUND_RATE / 16000 + 1, voice)
        sound = samples[: int(self.reference_seconds * SOUND_RATE)].astype(np.float32)
        return Reference(Waveform(sound, SOUND_RATE), TRANSCRIPT.format(number=number))


class Workbench:
    """All parts, loaded once. Whatever is measured runs on the same weights, threads and device."""

    def __init__(self, weights: WeightsFolder, settings: Settings, runtime: Runtime, folder: Path) -> None:
        """folder: where caches may be written."""
        self.weights, self.settings, self.runtime, self.folder = weights, settings, runtime, folder
        self.engine = load_engine(weights, settings, runtime)
        self.tokenizer = SpeechTokenizer.load(weights.editx / TOKENIZER_FILE)
        self.prompts = PromptBuilder(self.tokenizer, layout_of(weights.editx), markers=settings.prompt_markers)
        self.model = load_step1(weights.editx, runtime.device, runtime.dtype)
        self.torch_lm, self.step_lm, self.keeping_lm = (
            SpeechLM(
                self.model,
                self.vocabulary,
                prefix_bytes=kept,
                cuda_graphs=settings.cuda_graphs,
                fused_kernels=kernels,
            )
            for kernels, kept in ((False, 0), (settings.fused_kernels, 0), (settings.fused_kernels, PREFIX_BYTES))
        )
        self.plain_lm = PlainLM(self.model, self.vocabulary)
        self.vocoder = load_vocoder(weights.cosyvoice, runtime.device)
        self.plain_vocoder = _plain(load_vocoder(weights.cosyvoice, runtime.device))
        self._caches = 0

    @property
    def vocabulary(self) -> SpeechVocabulary:
        return self.tokenizer.vocabulary

    @property
    def ours(self) -> Pipeline:
        """The product itself."""
        return self.engine.pipeline

    @property
    def encoder(self) -> ReferenceEncoder:
        return self.engine.encoder

    @property
    def linguistic(self) -> LinguisticEncoder:
        linguistic = self.engine.encoder.linguistic
        if not isinstance(linguistic, LinguisticEncoder):
            raise TypeError("The engine's linguistic encoder is of another kind.")
        return linguistic

    @cached_property
    def looped(self) -> LoopedLinguisticEncoder:
        return LoopedLinguisticEncoder(self.linguistic)

    def baseline_encoder(self, *, tuned_onnx: bool) -> SerialEncoder:
        """Return the reference's encoder; tuned_onnx: its ONNX sessions with all threads, one after the other."""
        # Upstream opens both with one thread wherever they run on the CPU.
        threads = self.runtime.threads if tuned_onnx else 1
        semantic = SemanticEncoder(self.weights.tokenizer / S3_ONNX, device=self.runtime.device, threads=threads)
        path = self.weights.cosyvoice / CAMPPLUS
        speaker = SpeakerEncoder(path, device=torch.device("cpu"), threads=threads)
        return SerialEncoder(linguistic=self.looped, semantic=semantic, speaker=speaker, mel=self.encoder.mel)

    def baseline(self, encoder: SerialEncoder, cache: EncodingCache) -> Pipeline:
        """Return the pipeline of the reference's semantics with this encoder and cache."""
        return Pipeline(
            encoder=encoder,  # type: ignore[arg-type]  # does what Pipeline asks for
            cache=cache,
            prompts=self.prompts,
            lm=self.plain_lm,  # type: ignore[arg-type]
            vocoder=self.plain_vocoder,
            limits=self.ours.limits,
            flow_steps=self.ours.flow_steps,
            synchronize=self.runtime.synchronize,
        )

    def new_cache(self, *, enabled: bool = True) -> EncodingCache:
        """Return an empty cache in a folder of its own."""
        self._caches += 1
        folder = self.folder / f"cache-{self._caches}"
        return EncodingCache(folder, "bench", size_limit=CACHE_BYTES, enabled=enabled)

    def prompt(self, case: Case, encoding: ReferenceEncoding, text: str = TEXT) -> tuple[list[int], SpeechTokens]:
        """Return the ids that the language model reads for a clone, and the speech in them."""
        tokens = interleave(encoding.linguistic, encoding.semantic)
        reference = case.reference()
        return self.prompts.clone(reference.text, tokens, text, reference.waveform), tokens

    def __enter__(self) -> Workbench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()


def _plain(vocoder: Vocoder) -> Vocoder:
    """Return the vocoder with its solver exchanged for the plain one."""
    flow = vocoder._flow
    flow.decoder = PlainSolver(flow.decoder)  # type: ignore[assignment]
    return vocoder
