"""Reads ``cosyvoice.yaml``, which says how the flow and the sound generator of a weights folder are built.

The yaml names Python classes after ``!new:``. They are never looked up: the tag only tells which of the
known architectures is meant, and every number goes into a frozen dataclass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from stepaudio.vocoder.section import Section, read_section

YAML_NAME = "cosyvoice.yaml"


@dataclass(frozen=True)
class EncoderConfig:
    """The upsampling conformer encoder of the flow."""

    input_size: int
    output_size: int
    lookahead: int
    blocks: int
    up_blocks: int
    up_stride: int
    up_factor: int
    heads: int
    linear_units: int


@dataclass(frozen=True)
class DitConfig:
    """The diffusion transformer that estimates the velocity."""

    in_channels: int
    out_channels: int
    mlp_ratio: float
    depth: int
    heads: int
    head_dim: int
    hidden: int


@dataclass(frozen=True)
class FlowConfig:
    """The flow: rows of audio tokens to mel. ``guidance`` is the classifier-free guidance rate."""

    input_size: int
    mel_channels: int
    speaker_size: int
    vocabulary: int
    guidance: float
    encoder: EncoderConfig
    dit: DitConfig


@dataclass(frozen=True)
class HiftConfig:
    """The HiFT sound generator: mel to samples. Levels are amplitudes, ``voiced_threshold`` is in Hz."""

    kind: ClassVar[str] = "HiFTGenerator"
    mel_channels: int
    base_channels: int
    harmonics: int
    sample_rate: int
    sine_level: float
    noise_level: float
    voiced_threshold: float
    upsample_rates: tuple[int, ...]
    upsample_kernels: tuple[int, ...]
    n_fft: int
    hop: int
    resblock_kernels: tuple[int, ...]
    resblock_dilations: tuple[tuple[int, ...], ...]
    source_kernels: tuple[int, ...]
    source_dilations: tuple[tuple[int, ...], ...]
    slope: float
    limit: float
    f0_channels: int

    @property
    def frame_samples(self) -> int:
        """Samples of sound that one mel frame becomes."""
        return math.prod(self.upsample_rates) * self.hop


@dataclass(frozen=True)
class BigvganConfig:
    """The BigVGAN sound generator: mel to samples."""

    kind: ClassVar[str] = "BigVGAN"
    mel_channels: int
    base_channels: int
    sample_rate: int
    upsample_rates: tuple[int, ...]
    upsample_kernels: tuple[int, ...]
    resblock_kernels: tuple[int, ...]
    resblock_dilations: tuple[tuple[int, ...], ...]

    @property
    def frame_samples(self) -> int:
        """Samples of sound that one mel frame becomes."""
        return math.prod(self.upsample_rates)


@dataclass(frozen=True)
class VocoderConfig:
    """All of ``cosyvoice.yaml``.

    ``hift`` is the sound generator, whichever of the two it is: the yaml and the file of its weights call it so.
    ``mel`` holds ``mel_conf``: how prompt mels are computed.
    """

    flow: FlowConfig
    hift: HiftConfig | BigvganConfig
    mel: dict[str, int]


def read_config(folder: Path) -> VocoderConfig:
    """Return what ``cosyvoice.yaml`` in ``folder`` says.

    Unknown keys within ``mel_conf``, ``flow`` and ``hift`` are told in the log and ignored; other top-level
    entries concern other programs. Raises WeightsError for a file that is missing, is not
    such a yaml, contradicts itself, or names an architecture that is not built here.
    """
    path = folder / YAML_NAME
    top = read_section(path)
    mel = _mel(top.mapping("mel_conf"))
    hift = _generator(top, mel)
    flow = _flow(top.tagged("flow", "CausalMaskedDiffWithXvec"))
    top.require(
        mel["num_mels"] == flow.mel_channels == hift.mel_channels,
        f"mel_conf, flow and hift name {mel['num_mels']}, {flow.mel_channels} and {hift.mel_channels} mel channels",
    )
    top.require(
        mel["hop_size"] == hift.frame_samples,
        f"a mel frame is {mel['hop_size']} samples in mel_conf, but {hift.frame_samples} in hift",
    )
    top.require(
        mel["sampling_rate"] == hift.sample_rate,
        f"the rate is {mel['sampling_rate']} Hz in mel_conf, but {hift.sample_rate} Hz in hift",
    )
    return VocoderConfig(flow, hift, mel)


def _mel(section: Section) -> dict[str, int]:
    sizes = {key: section.integer(key) for key in ("num_mels", "n_fft", "hop_size", "win_size", "sampling_rate")}
    mel = {**sizes, "fmin": section.integer("fmin", least=0), "fmax": section.integer("fmax")}
    section.finish()
    return mel


def _flow(section: Section) -> FlowConfig:
    embedding = section.tagged("input_embedding", "DualCodebookEmbedding")
    encoder = _encoder(section.tagged("encoder", "UpsampleConformerEncoderV2"))
    decoder = section.tagged("decoder", "CausalConditionalCFM")
    flow = FlowConfig(
        input_size=section.integer("input_size"),
        mel_channels=section.integer("output_size"),
        speaker_size=section.integer("spk_embed_dim"),
        vocabulary=section.integer("vocab_size"),
        guidance=decoder.number("inference_cfg_rate"),
        encoder=encoder,
        dit=_dit(decoder.tagged("estimator", "DiT")),
    )
    decoder.finish()
    section.fixed("output_type", "mel")
    embedding.fixed("vocab_size", flow.vocabulary)
    embedding.fixed("input_size", flow.input_size)
    embedding.finish()
    section.finish()
    section.require(flow.input_size % 2 == 0, "'flow.input_size' must be even, for two codebooks share it")
    section.require(encoder.input_size == flow.input_size, "'flow.encoder.input_size' differs from 'flow.input_size'")
    section.require(
        flow.dit.in_channels == 4 * flow.mel_channels and flow.dit.out_channels == flow.mel_channels,
        "the channels of 'flow.decoder.estimator' are not four times in and once out of 'flow.output_size'",
    )
    return flow


def _encoder(section: Section) -> EncoderConfig:
    encoder = EncoderConfig(
        input_size=section.integer("input_size"),
        output_size=section.integer("output_size"),
        lookahead=section.integer("pre_lookahead_len"),
        blocks=section.integer("num_blocks"),
        up_blocks=section.integer("num_up_blocks"),
        up_stride=section.integer("up_stride"),
        up_factor=section.integer("up_scale_factor"),
        heads=section.integer("attention_heads"),
        linear_units=section.integer("linear_units"),
    )
    section.fixed("input_layer", "linear")
    section.fixed("pos_enc_layer_type", "rel_pos_espnet")
    section.fixed("selfattention_layer_type", "rel_selfattn")
    section.fixed("key_bias", True)
    section.fixed("normalize_before", True)
    section.skip("dropout_rate", "positional_dropout_rate", "attention_dropout_rate")
    section.finish()
    section.require(
        encoder.output_size % (2 * encoder.heads) == 0,
        "'flow.encoder.output_size' must be a multiple of twice 'flow.encoder.attention_heads'",
    )
    return encoder


def _dit(section: Section) -> DitConfig:
    dit = DitConfig(
        in_channels=section.integer("in_channels"),
        out_channels=section.integer("out_channels"),
        mlp_ratio=section.number("mlp_ratio"),
        depth=section.integer("depth"),
        heads=section.integer("num_heads"),
        head_dim=section.integer("head_dim"),
        hidden=section.integer("hidden_size"),
    )
    section.finish()
    return dit


def _generator(top: Section, mel: dict[str, int]) -> HiftConfig | BigvganConfig:
    name = top.class_name("hift")
    if BigvganConfig.kind.lower() in name.lower():  # the real tag was never seen: it may be spelled otherwise
        return _bigvgan(top.tagged("hift", name), mel)
    top.require(
        name == HiftConfig.kind,
        f"'hift' names {name}, but only {HiftConfig.kind} and {BigvganConfig.kind} are supported",
    )
    return _hift(top.tagged("hift", name))


def _hift(section: Section) -> HiftConfig:
    istft = section.mapping("istft_params")
    f0 = section.tagged("f0_predictor", "ConvRNNF0Predictor")
    hift = HiftConfig(
        mel_channels=section.integer("in_channels"),
        base_channels=section.integer("base_channels"),
        harmonics=section.integer("nb_harmonics", least=0),
        sample_rate=section.integer("sampling_rate"),
        sine_level=section.number("nsf_alpha"),
        noise_level=section.number("nsf_sigma"),
        voiced_threshold=section.number("nsf_voiced_threshold"),
        upsample_rates=section.integers("upsample_rates"),
        upsample_kernels=section.integers("upsample_kernel_sizes"),
        n_fft=istft.integer("n_fft"),
        hop=istft.integer("hop_len"),
        resblock_kernels=section.integers("resblock_kernel_sizes"),
        resblock_dilations=section.table("resblock_dilation_sizes"),
        source_kernels=section.integers("source_resblock_kernel_sizes"),
        source_dilations=section.table("source_resblock_dilation_sizes"),
        slope=section.number("lrelu_slope"),
        limit=section.number("audio_limit"),
        f0_channels=f0.integer("cond_channels"),
    )
    f0.fixed("num_class", 1)
    f0.fixed("in_channels", hift.mel_channels)
    f0.finish()
    istft.finish()
    section.finish()
    stages = len(hift.upsample_rates)
    section.require(
        len(hift.upsample_kernels) == stages
        and len(hift.source_kernels) == stages
        and len(hift.source_dilations) == stages
        and len(hift.resblock_dilations) == len(hift.resblock_kernels),
        "the lists of 'hift' differ in length",
    )
    section.require(hift.base_channels % 2**stages == 0, f"'hift.base_channels' must be a multiple of {2**stages}")
    section.require(0 < hift.limit <= 1, "'hift.audio_limit' must lie above 0 and be at most 1")
    return hift


def _bigvgan(section: Section, mel: dict[str, int]) -> BigvganConfig:
    if "h" in section:  # the published BigVGAN takes all its hyper-parameters in one mapping of this name
        section.skip("use_cuda_kernel")
        outer, section = section, section.mapping("h", tag_allowed=True)
        outer.finish()
    bigvgan = BigvganConfig(
        # mel_conf says these two as well, so the generator's entry need not.
        mel_channels=section.integer("num_mels") if "num_mels" in section else mel["num_mels"],
        sample_rate=section.integer("sampling_rate") if "sampling_rate" in section else mel["sampling_rate"],
        base_channels=section.integer("upsample_initial_channel"),
        upsample_rates=section.integers("upsample_rates"),
        upsample_kernels=section.integers("upsample_kernel_sizes"),
        resblock_kernels=section.integers("resblock_kernel_sizes"),
        resblock_dilations=section.table("resblock_dilation_sizes"),
    )
    section.fixed("resblock", "1", 1, optional=True)
    section.fixed("activation", "snakebeta", optional=True)
    for key, only in (("snake_logscale", True), ("use_bias_at_final", False), ("use_tanh_at_final", False)):
        section.fixed(key, only, optional=True)
    section.skip("use_cuda_kernel", "n_fft", "hop_size", "win_size", "fmin", "fmax")
    section.finish()
    stages = len(bigvgan.upsample_rates)
    section.require(
        len(bigvgan.upsample_kernels) == stages and len(bigvgan.resblock_dilations) == len(bigvgan.resblock_kernels),
        "the lists of 'hift' differ in length",
    )
    section.require(
        all(k >= u and (k - u) % 2 == 0 for u, k in zip(bigvgan.upsample_rates, bigvgan.upsample_kernels, strict=True)),
        "each of 'hift.upsample_kernel_sizes' must exceed its rate by an even number, or frames would not fit together",
    )
    section.require(all(k % 2 for k in bigvgan.resblock_kernels), "'hift.resblock_kernel_sizes' must be odd")
    section.require(
        bigvgan.base_channels % 2**stages == 0, f"'hift.upsample_initial_channel' must be a multiple of {2**stages}"
    )
    return bigvgan
