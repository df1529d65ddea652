"""A weights folder becomes a Pipeline: which part is made of which of its files, and where it runs.

A part that is given a folder knows the names in it itself: see prompts.py, vocoder and encoder/funasr_folder.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from stepaudio import device
from stepaudio.asr import Transcriber, load_transcriber
from stepaudio.cache import EncodingCache
from stepaudio.device import Runtime
from stepaudio.encoder import funasr_folder
from stepaudio.encoder.engines import TORCH, LinguisticChoice, engine_words, load_chosen
from stepaudio.encoder.fingerprint import encoder_fingerprint, file_states, preprocessing_constants
from stepaudio.encoder.paraformer import LinguisticEncoder
from stepaudio.encoder.reference import ReferenceEncoder
from stepaudio.encoder.s3 import SemanticEncoder
from stepaudio.encoder.speaker import SpeakerEncoder
from stepaudio.errors import WeightsError
from stepaudio.features import MelConfig
from stepaudio.llm.bnb import Kind, pack_projections
from stepaudio.llm.generate import SpeechLM
from stepaudio.llm.loading import is_packed, load_step1
from stepaudio.orders import Limits
from stepaudio.pipeline import Pipeline
from stepaudio.prompts import TOKENIZER_FILE, PromptBuilder, SpeechTokenizer, layout_of
from stepaudio.settings import Settings
from stepaudio.verbalise import verbaliser
from stepaudio.vocoder.config import read_config
from stepaudio.vocoder.vocoder import load_vocoder
from stepaudio.weights import BNB_INT8, BNB_NF4, WeightsFolder, choose_weights

log = logging.getLogger(__name__)

CENTROIDS, S3_ONNX, CAMPPLUS = "linguistic_tokenizer.npy", "speech_tokenizer_v1.onnx", "campplus.onnx"
FUNASR_FILES = (funasr_folder.CONFIG, funasr_folder.WEIGHTS, funasr_folder.CMVN)
ENCODINGS = "encodings"
BNB_KINDS: dict[str, Kind] = {BNB_INT8: "int8", BNB_NF4: "nf4"}


@dataclass(frozen=True, eq=False)
class Engine:
    """The loaded pipeline with what it was made from; ``summary`` is one sentence for page and log.

    precision: what the language model computes with, in a few words.
    """

    pipeline: Pipeline
    encoder: ReferenceEncoder
    weights: WeightsFolder
    runtime: Runtime
    summary: str
    transcriber: Transcriber
    precision: str

    def close(self) -> None:
        """Release threads and the cache."""
        self.pipeline.close()


def choose(settings: Settings) -> tuple[WeightsFolder, Runtime]:
    """Return the weights and the device that the settings choose, made ready and told in the log.

    Raises WeightsError when there is no usable weights folder.
    """
    runtime = device.choose(settings.device, settings.dtype, tf32=settings.tf32, threads=settings.threads or None)
    device.apply(runtime)
    log.info("Running on %s, %d threads.", runtime.reason, runtime.threads)
    weights = choose_weights(settings)
    log.info("Weights: %s in %s (%s), variant %s.", weights.card.title, weights.path, weights.reason, weights.variant)
    if "en" in weights.card.notice:
        log.warning("%s", weights.card.notice["en"])
    return weights, runtime


def load_engine(weights: WeightsFolder, settings: Settings, runtime: Runtime) -> Engine:
    """Return the engine of a weights folder; raises WeightsError naming what is missing or damaged."""
    choice = linguistic_choice(settings)
    encoder, identity = _load_identified(weights, runtime, choice)
    prompts, lm = load_language_model(weights, settings, runtime)
    vocoder = load_vocoder(weights.cosyvoice, runtime.device)
    cache = EncodingCache(
        settings.cache_dir / ENCODINGS,
        identity,
        size_limit=settings.cache_megabytes * 2**20,
        enabled=settings.cache_enabled,
    )
    longest = min(settings.max_output_seconds, weights.card.max_output_seconds or float("inf"))
    pipeline = Pipeline(
        encoder=encoder,
        cache=cache,
        prompts=prompts,
        lm=lm,
        vocoder=vocoder,
        limits=Limits(
            settings.max_text_characters,
            settings.max_transcript_characters,
            longest,
            settings.passage_seconds,
            settings.decode_rows,
        ),
        verbalise=verbaliser(weights.card.verbalise),
        flow_steps=settings.flow_steps or weights.card.flow_steps,
        synchronize=runtime.synchronize,
    )
    words = precision(weights, runtime)
    summary = _summary(f"{words}{steps(lm)}", runtime, encoder, choice)
    transcriber = load_transcriber(
        getattr(encoder.linguistic, "funasr", None),
        whisper_dir=settings.whisper_dir,
        trained=weights.card.speaks,
        device=runtime.device,
    )
    return Engine(pipeline, encoder, weights, runtime, summary, transcriber, words)


def linguistic_choice(settings: Settings) -> LinguisticChoice:
    """Return what the settings say about the linguistic encoder's engine."""
    folder = settings.linguistic_onnx_dir
    return LinguisticChoice(settings.linguistic_engine, Path(folder) if folder else None)


def load_encoder(weights: WeightsFolder, runtime: Runtime, choice: LinguisticChoice = TORCH) -> ReferenceEncoder:
    """Return the four encoders of a reference, side by side."""
    # Four parts run beside each other, so each gets fewer threads than there are cores; torch's are for all of them.
    device, threads = runtime.device, max(1, runtime.threads // 2)
    return ReferenceEncoder(
        linguistic=load_linguistic_encoder(weights, runtime, choice),
        semantic=SemanticEncoder(weights.tokenizer / S3_ONNX, device=device, threads=threads),
        # CAM++ is small: on the CPU it runs beside the others without waiting for the GPU.
        speaker=SpeakerEncoder(weights.cosyvoice / CAMPPLUS, device=torch.device("cpu"), threads=threads),
        mel=mel_config(weights),
        threads=runtime.threads,
    )


def load_linguistic_encoder(weights: WeightsFolder, runtime: Runtime, choice: LinguisticChoice) -> LinguisticEncoder:
    """Return the linguistic encoder run by the engine that is chosen."""
    return load_chosen(
        choice, weights.funasr, weights.tokenizer / CENTROIDS, device=runtime.device, threads=runtime.threads
    )


def load_language_model(weights: WeightsFolder, settings: Settings, runtime: Runtime) -> tuple[PromptBuilder, SpeechLM]:
    """Return the prompt builder and the language model, which share one tokenizer."""
    tokenizer = SpeechTokenizer.load(weights.editx / TOKENIZER_FILE)
    prompts = PromptBuilder(tokenizer, layout_of(weights.editx), markers=settings.prompt_markers)
    kind = BNB_KINDS.get(weights.variant)
    # What bitsandbytes packs is read into the CPU's memory, so that a GPU needs room for the packed weights alone.
    model = load_step1(weights.editx, torch.device("cpu") if kind else runtime.device, runtime.dtype)
    if kind:
        pack_projections(model.model, kind, runtime.device)
        model.to(runtime.device)
    lm = SpeechLM(
        model,
        tokenizer.vocabulary,
        prefix_bytes=settings.prefix_megabytes * 2**20,
        # bitsandbytes promises nothing about capturing its kernels.
        cuda_graphs=settings.cuda_graphs and not kind,
        fused_kernels=settings.fused_kernels,
    )
    return prompts, lm


def mel_config(weights: WeightsFolder) -> MelConfig:
    """Return the mel settings that the vocoder was trained with."""
    return MelConfig(**read_config(weights.cosyvoice).mel)


def fingerprint(weights: WeightsFolder, mel: MelConfig, choice: LinguisticChoice) -> str:
    """Return what the cache's keys carry of the encoder: its files' contents, its preprocessing and its engine."""
    constants = {**preprocessing_constants(mel), "linguistic_engine": choice.engine}
    return encoder_fingerprint(_encoder_files(weights, choice), constants)


def _encoder_files(weights: WeightsFolder, choice: LinguisticChoice) -> list[Path]:
    files = [weights.tokenizer / CENTROIDS, weights.tokenizer / S3_ONNX, weights.cosyvoice / CAMPPLUS]
    files += [weights.funasr / name for name in FUNASR_FILES]
    exported = choice.export_in(weights.funasr)
    return files if exported is None else [*files, exported]


def _load_identified(
    weights: WeightsFolder, runtime: Runtime, choice: LinguisticChoice
) -> tuple[ReferenceEncoder, str]:
    """Return the encoders and their fingerprint: the hash of the very files that were loaded.

    Raises WeightsError where these changed meanwhile: what one encoder makes would be kept as another's, for good.
    """
    files = _encoder_files(weights, choice)
    before = file_states(files)
    encoder = load_encoder(weights, runtime, choice)
    found = fingerprint(weights, encoder.mel, choice)
    if file_states(files) != before:
        encoder.close()
        raise WeightsError(f"The weights in {weights.path} were changed while they were loaded; please start again.")
    return encoder, found


def part_loaders(weights: WeightsFolder, settings: Settings, runtime: Runtime) -> dict[str, Callable[[], str]]:
    """Return for each part a function that loads it and says in a few words what runs (for doctor)."""

    def linguistic() -> str:
        choice = linguistic_choice(settings)
        return f"{weights.funasr.name}: {engine_words(load_linguistic_encoder(weights, runtime, choice), choice)}"

    def semantic() -> str:
        encoder = SemanticEncoder(weights.tokenizer / S3_ONNX, device=runtime.device, threads=runtime.threads)
        return f"{S3_ONNX}, {encoder.provider}"

    def speaker() -> str:
        path = weights.cosyvoice / CAMPPLUS
        return f"{CAMPPLUS}, {SpeakerEncoder(path, device=torch.device('cpu'), threads=runtime.threads).provider}"

    def language_model() -> str:
        _, lm = load_language_model(weights, settings, runtime)
        return f"{weights.editx.name} on {runtime.device.type}, {precision(weights, runtime)}{steps(lm)}"

    def vocoder() -> str:
        load_vocoder(weights.cosyvoice, runtime.device)
        tf32 = " with TF32" if runtime.tf32 else ""
        return f"{weights.cosyvoice.name} on {runtime.device.type}, float32{tf32}"

    return {
        "FunASR encoder": linguistic,
        "Semantic tokenizer": semantic,
        "Speaker encoder": speaker,
        "Language model": language_model,
        "Flow and HiFT": vocoder,
    }


def precision(weights: WeightsFolder, runtime: Runtime) -> str:
    """Return in a few words what the language model computes with."""
    kept = {BNB_INT8: "8 bits (bitsandbytes int8)", BNB_NF4: "4 bits (bitsandbytes NF4)"}.get(weights.variant)
    if kept is None and is_packed(weights.editx):
        kept = "4 bits (AWQ)"
    name = _name(runtime.dtype) + (" with TF32" if runtime.tf32 and runtime.dtype == torch.float32 else "")
    if kept is not None and weights.variant != BNB_NF4 and not runtime.on_gpu:  # see Packed.product
        return f"{kept}, multiplied in bfloat16, prompts in {name}"
    return name if kept is None else f"{kept}, unpacked to {name} for each product"


def steps(lm: SpeechLM) -> str:
    """Return in brackets how the steps of ``lm`` are computed."""
    if lm.device.type == "cpu":
        return " (compiled steps)" if lm.fused else " (plain layers)"
    return f" ({'fused kernels' if lm.fused else 'plain layers'}, {'with' if lm.graphs else 'without'} CUDA graphs)"


def _summary(precision: str, runtime: Runtime, encoder: ReferenceEncoder, choice: LinguisticChoice) -> str:
    # Where rounding would decide between two codes, TF32 is kept away: see device.without_tf32.
    rest = "flow and vocoder in float32 with TF32, the encoder in float32" if runtime.tf32 else "the rest in float32"
    provider = getattr(encoder.semantic, "provider", "unknown")
    engine = "" if choice.engine == "torch" else f"; linguistic codes by {choice.engine}"
    return f"language model in {precision}, {rest}, on {runtime.reason}; ONNX with {provider}{engine}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
