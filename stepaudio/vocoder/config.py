"""Reads ``cosyvoice.yaml``, which says how the flow and the sound generator of a weights folder are built.

The yaml names Python classes after ``!new:``. They are never looked up: the tag only tells which of the
known architectures is meant, and every number goes into a frozen dataclass.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import yaml

from stepaudio.errors import WeightsError

log = logging.getLogger(__name__)

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
class VocoderConfig:
    """All of ``cosyvoice.yaml``. ``mel`` holds ``mel_conf``: how prompt mels are computed."""

    flow: FlowConfig
    hift: HiftConfig
    mel: dict[str, int]


@dataclass(frozen=True)
class _Tagged:
    """A mapping under a ``!new:`` tag, as parsed: the last part of the tag and the values."""

    name: str
    values: dict[str, object]


class _Section:
    """One mapping of the yaml. Every read takes its key away, so that what is left at the end is unknown."""

    def __init__(self, path: Path, where: str, values: dict[str, object]) -> None:
        self._path, self._where, self._left = path, where, dict(values)
        self._names = (path.name, path.parent)

    def refuse(self, problem: str) -> NoReturn:
        raise WeightsError(f"{self._path.name} in {self._path.parent} cannot be used: {problem}.")

    def take(self, key: str) -> object:
        if key not in self._left:
            self.refuse(f"'{self._where}{key}' is missing")
        return self._left.pop(key)

    def integer(self, key: str, least: int = 1) -> int:
        value = self.take(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            self.refuse(f"'{self._where}{key}' must be a whole number of at least {least}, not {value!r}")
        return value

    def number(self, key: str) -> float:
        value = self.take(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            self.refuse(f"'{self._where}{key}' must be a number, not {value!r}")
        return float(value)

    def integers(self, key: str) -> tuple[int, ...]:
        return self._as_integers(key, self.take(key))

    def table(self, key: str) -> tuple[tuple[int, ...], ...]:
        value = self.take(key)
        if not isinstance(value, list) or not value:
            self.refuse(f"'{self._where}{key}' must be a list of lists, not {value!r}")
        return tuple(self._as_integers(key, row) for row in value)

    def _as_integers(self, key: str, value: object) -> tuple[int, ...]:
        if not isinstance(value, list) or not value or not all(type(n) is int and n > 0 for n in value):
            self.refuse(f"'{self._where}{key}' must be a list of positive whole numbers, not {value!r}")
        return tuple(value)

    def fixed(self, key: str, only: object) -> None:
        """Take a key of which one value alone is built."""
        value = self.take(key)
        if value != only:
            self.refuse(f"'{self._where}{key}' is {value!r}, but only {only!r} is supported")

    def skip(self, *keys: str) -> None:
        """Take keys that mean nothing at inference, if they are there."""
        for key in keys:
            self._left.pop(key, None)

    def mapping(self, key: str) -> _Section:
        value = self.take(key)
        if not isinstance(value, dict):
            self.refuse(f"'{self._where}{key}' must be a mapping, not {value!r}")
        return _Section(self._path, f"{self._where}{key}.", value)

    def tagged(self, key: str, name: str) -> _Section:
        """Take a mapping under ``!new:``, whose class must be ``name``."""
        value = self.take(key)
        if not isinstance(value, _Tagged):
            self.refuse(f"'{self._where}{key}' must be a mapping under a !new: tag")
        if "bigvgan" in value.name.lower():
            self.refuse(
                f"its sound generator is {value.name}, and only HiFTGenerator is supported so far; "
                "use a weights folder whose cosyvoice.yaml names HiFTGenerator"
            )
        if value.name != name:
            self.refuse(f"'{self._where}{key}' names {value.name}, but only {name} is supported")
        return _Section(self._path, f"{self._where}{key}.", value.values)

    def require(self, holds: bool, problem: str) -> None:
        if not holds:
            self.refuse(problem)

    def finish(self) -> None:
        """Tell of keys that nothing here reads. Not an error: a release may note things that change no network."""
        for key in self._left:
            log.warning("%s in %s: '%s%s' is not known and is ignored.", *self._names, self._where, key)


def read_config(folder: Path) -> VocoderConfig:
    """Return what ``cosyvoice.yaml`` in ``folder`` says.

    Unknown keys within ``mel_conf``, ``flow`` and ``hift`` are refused, for they would change a network;
    other top-level entries concern other programs. Raises WeightsError for a file that is missing, is not
    such a yaml, contradicts itself, or names an architecture that is not built here.
    """
    path = folder / YAML_NAME
    top = _Section(path, "", _parse(path))
    mel = _mel(top.mapping("mel_conf"))
    # The generator goes first: a yaml of another flavour is then refused for its flavour.
    hift = _hift(top.tagged("hift", "HiFTGenerator"))
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


def _parse(path: Path) -> dict[str, object]:
    class Loader(yaml.SafeLoader):
        """SafeLoader that keeps the name after ``!new:`` beside the mapping."""

    def tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> _Tagged:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "!new: stands before no mapping", node.start_mark)
        return _Tagged(suffix.rpartition(".")[2], loader.construct_mapping(node, deep=True))

    Loader.add_multi_constructor("!new:", tagged)
    try:
        text = path.read_text(encoding="utf-8")
        # Loader is a SafeLoader: it builds plain values and _Tagged, nothing that the file could name.
        values = yaml.load(text, Loader=Loader)
    except FileNotFoundError as error:
        raise WeightsError(f"{path.name} is missing in {path.parent}.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WeightsError(f"{path.name} in {path.parent} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path.name} in {path.parent} cannot be used: it holds no mapping.")
    return values


def _mel(section: _Section) -> dict[str, int]:
    sizes = {key: section.integer(key) for key in ("num_mels", "n_fft", "hop_size", "win_size", "sampling_rate")}
    mel = {**sizes, "fmin": section.integer("fmin", least=0), "fmax": section.integer("fmax")}
    section.finish()
    return mel


def _flow(section: _Section) -> FlowConfig:
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


def _encoder(section: _Section) -> EncoderConfig:
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


def _dit(section: _Section) -> DitConfig:
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


def _hift(section: _Section) -> HiftConfig:
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
