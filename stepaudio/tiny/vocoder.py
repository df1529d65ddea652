"""Writes a tiny vocoder: cosyvoice.yaml, flow.pt and hift.pt of small random networks in the real layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from stepaudio.vocoder.config import YAML_NAME, read_config
from stepaudio.vocoder.flow import Flow
from stepaudio.vocoder.vocoder import sound_generator
from stepaudio.vocoder.weights import DIRECTION, FLOW_NAME, HIFT_NAME, LENGTH, weight_lengths

# The real file's tags and fields with small sizes; rates, mel and vocabulary are the real ones.
TINY_YAML = """\
mel_conf:
    num_mels: 80
    n_fft: 1920
    hop_size: 480
    win_size: 1920
    sampling_rate: 24000
    fmin: 0
    fmax: 8000

flow: !new:stepvocoder.cosyvoice2.flow.flow.CausalMaskedDiffWithXvec
    input_size: 32
    output_size: 80
    spk_embed_dim: 192
    output_type: 'mel'
    vocab_size: 5121
    input_embedding: !new:stepvocoder.cosyvoice2.embedding.dual_codebook.DualCodebookEmbedding
        vocab_size: 5121
        input_size: 32
    encoder: !new:stepvocoder.cosyvoice2.transformer.upsample_encoder_v2.UpsampleConformerEncoderV2
        input_size: 32
        output_size: 32
        input_layer: 'linear'
        pre_lookahead_len: 3
        num_blocks: 1
        num_up_blocks: 1
        up_stride: 2
        up_scale_factor: 2
        attention_heads: 2
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'rel_selfattn'
        key_bias: true
        linear_units: 64
        dropout_rate: 0.1
        positional_dropout_rate: 0.1
        attention_dropout_rate: 0.1
        normalize_before: true
    decoder: !new:stepvocoder.cosyvoice2.flow.flow_matching.CausalConditionalCFM
        inference_cfg_rate: 0.7
        estimator: !new:stepvocoder.cosyvoice2.flow.decoder_dit.DiT
            in_channels: 320
            out_channels: 80
            mlp_ratio: 2.0
            depth: 2
            num_heads: 2
            head_dim: 16
            hidden_size: 32

hift: !new:stepvocoder.cosyvoice2.hifigan.generator.HiFTGenerator
    in_channels: 80
    base_channels: 32
    nb_harmonics: 8
    sampling_rate: 24000
    nsf_alpha: 0.1
    nsf_sigma: 0.003
    nsf_voiced_threshold: 10
    upsample_rates: [8, 5, 3]
    upsample_kernel_sizes: [16, 11, 7]
    istft_params:
        n_fft: 16
        hop_len: 4
    resblock_kernel_sizes: [3, 7, 11]
    resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    source_resblock_kernel_sizes: [7, 7, 11]
    source_resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    lrelu_slope: 0.1
    audio_limit: 0.99
    f0_predictor: !new:stepvocoder.cosyvoice2.hifigan.f0_predictor.ConvRNNF0Predictor
        num_class: 1
        in_channels: 80
        cond_channels: 32
"""

# Weights of HiFT that are stored as they are; all its other weights are stored normalised.
PLAIN = re.compile(r"(source_downs\.\d+|m_source\.l_linear|f0_predictor\.classifier)\.weight")
# Norms' weights are stored among the vectors; they and Snake's alpha lie around one.
AROUND_ONE = re.compile(r"(norm\w*|embed\.out\.1|block\.3)\.weight|\.alpha")
F0_HZ, F0_SPREAD = 150.0, 10.0
# At full size, random residual branches and logarithms of magnitudes would swing the level by orders of
# magnitude; calmed, the sound has a few hundredths of full scale for any seed.
CALMED = re.compile(r".*\.convs2\.\d+\.weight|conv_post\.weight")
CALM = 0.5


def write_vocoder(folder: Path, seed: int, yaml: str = TINY_YAML) -> None:
    """Write cosyvoice.yaml, flow.pt and hift.pt into ``folder``; one seed gives the same bytes every time."""
    (folder / YAML_NAME).write_text(yaml, encoding="utf-8")
    config = read_config(folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        flow, hift = Flow(config.flow), sound_generator(config.hift)
    torch.save(_draw(flow, generator), folder / FLOW_NAME)
    weights = _draw(hift, generator)
    weights["f0_predictor.classifier.weight"] *= F0_SPREAD
    weights["f0_predictor.classifier.bias"] += F0_HZ
    for key in filter(CALMED.fullmatch, weights):
        weights[key] *= CALM
    torch.save(as_stored(weights), folder / HIFT_NAME)


def _draw(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Return random weights that keep the size of what passes through them about the same."""
    weights = {}
    for key, shape in ((key, value.shape) for key, value in module.state_dict().items()):
        noise = torch.randn(shape, generator=generator)
        if AROUND_ONE.search(key):
            weights[key] = 1 + 0.1 * noise
        elif noise.dim() == 1:
            weights[key] = 0.05 * noise
        elif "embedding" in key or "pos_bias" in key:
            weights[key] = 0.3 * noise
        else:
            weights[key] = noise / noise[0].numel() ** 0.5
    return weights


def as_stored(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return HiFT's weights as hift.pt holds them: a length and a direction for each that is normalised."""
    stored = {}
    for key, value in weights.items():
        if key.endswith(".weight") and not PLAIN.fullmatch(key):
            stem = key.removesuffix(".weight")
            stored[stem + LENGTH], stored[stem + DIRECTION] = weight_lengths(value), value
        else:
            stored[key] = value
    return stored
