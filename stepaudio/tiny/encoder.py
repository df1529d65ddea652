"""Tiny random encoders in the real layout: Paraformer folder, centroids, S3 tokenizer, CAM++.

The front ends and the signatures are the real ones, the networks small and random, seeded and the same to the byte
for the same seed (a cache fingerprint hashes these files).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml

from stepaudio.encoder import funasr_folder
from stepaudio.encoder.paraformer import LinguisticEncoder, StackedFbank, window_encoder
from stepaudio.encoder.speaker import SPEAKER_SIZE
from stepaudio.features import FBANK_BINS, WHISPER_MELS
from stepaudio.tokens import LINGUISTIC_CODES, SEMANTIC_CODES
from stepaudio.types import FloatArray

FUNASR_FOLDER = "dengcunqin/speech_paraformer-large_asr_nat-zh-cantonese-en-16k-vocab8501-online"
SIZE, HEADS, BLOCKS = 64, 4, 4
TOKENS = ["<blank>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", *(f"@{i}" for i in range(10)), "<unk>"]

Port = tuple[str, int, Sequence[object]]
"""Name, type and shape of a model's input or output."""

_CPU = torch.device("cpu")
_BANDS, _STACK = 80, 7
_HIDDEN = 32
_BITS = SEMANTIC_CODES.bit_length() - 1
_POOLED = 64


def paraformer_config(size: int = SIZE, heads: int = HEADS, linear_units: int = 128, blocks: int = BLOCKS) -> Any:
    """Return config.yaml of a streaming Paraformer with the real front end and an encoder of the given size."""
    return {
        "model": "ParaformerStreaming",
        "model_conf": {"ctc_weight": 0.0, "predictor_weight": 1.0, "predictor_bias": 1, "sampling_ratio": 0.75},
        "encoder": "SANMEncoderChunkOpt",
        "encoder_conf": {
            "output_size": size,
            "attention_heads": heads,
            "linear_units": linear_units,
            "num_blocks": blocks,
            "dropout_rate": 0.1,
            "attention_dropout_rate": 0.1,
            "input_layer": "pe_online",
            "normalize_before": True,
            "kernel_size": 11,
            "sanm_shfit": 0,
            "selfattention_layer_type": "sanm",
            "chunk_size": [12, 15],
            "stride": [8, 10],
            "pad_left": [0, 0],
            "encoder_att_look_back_factor": [4, 4],
            "decoder_att_look_back_factor": [1, 1],
        },
        "decoder": "ParaformerSANMDecoder",
        "decoder_conf": {
            "attention_heads": heads,
            "linear_units": linear_units,
            "num_blocks": 2,
            "att_layer_num": 2,
            "kernel_size": 11,
            "sanm_shfit": 5,
        },
        "predictor": "CifPredictorV2",
        "predictor_conf": {"idim": size, "threshold": 1.0, "l_order": 1, "r_order": 1, "tail_threshold": 0.45},
        "frontend": "WavFrontendOnline",
        "frontend_conf": {
            "fs": 16000,
            "window": "hamming",
            "n_mels": _BANDS,
            "frame_length": 25,
            "frame_shift": 10,
            "lfr_m": _STACK,
            "lfr_n": 6,
        },
        "tokenizer": "CharTokenizer",
        "tokenizer_conf": {"unk_symbol": "<unk>", "split_with_space": True},
        "normalize": None,
    }


def write_encoder(folder: Path, seed: int, **sizes: int) -> None:
    """Write the folder ``Step-Audio-Tokenizer``: centroids, S3 tokenizer and FunASR folder.

    sizes: those of paraformer_config(), tiny where they are not given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_paraformer(folder / FUNASR_FOLDER, seed, **sizes)
    np.save(folder / "linguistic_tokenizer.npy", _centroids(folder / FUNASR_FOLDER, seed))
    write_s3(folder / "speech_tokenizer_v1.onnx", seed)


def write_paraformer(folder: Path, seed: int, **sizes: int) -> None:
    """Write a FunASR folder that funasr and :func:`stepaudio.encoder.paraformer.load_linguistic` load."""
    folder.mkdir(parents=True, exist_ok=True)
    config = paraformer_config(**sizes)
    (folder / funasr_folder.CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    (folder / "configuration.json").write_text(json.dumps(_configuration(), indent=1) + "\n", encoding="utf-8")
    (folder / funasr_folder.TOKENS).write_text(json.dumps(TOKENS), encoding="utf-8")
    (folder / "tokens.txt").write_text("".join(f"{token}\n" for token in TOKENS), encoding="utf-8")
    (folder / funasr_folder.SEG_DICT).write_text("hello h e l l o\nworld w o r l d\n", encoding="utf-8")
    (folder / funasr_folder.CMVN).write_text(_cmvn(_BANDS * _STACK), encoding="utf-8")
    model, _ = funasr_folder.build_funasr(config, folder, _CPU)
    generator = torch.Generator().manual_seed(seed)
    state = {name: _random(name, tensor, generator) for name, tensor in sorted(model.state_dict().items())}
    torch.save(state, folder / funasr_folder.WEIGHTS)


def _random(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a random value for a parameter: norms near one, biases near zero, the rest by fan-in."""
    noise = torch.randn(tensor.shape, generator=generator)
    if tensor.ndim > 1:
        return noise / tensor[0].numel() ** 0.5
    return 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise


def _cmvn(size: int) -> str:
    """Return am.mvn in Kaldi's text: shifts and scales that suit the log filterbank of ordinary speech."""
    lines = ["<Nnet>", f"<Splice> {size} {size}", "[ 0 ]"]
    for tag, value in (("AddShift", "-12.0"), ("Rescale", "0.25")):
        lines += [f"<{tag}> {size} {size}", f"<LearnRateCoef> 0 [ {' '.join([value] * size)} ]"]
    return "\n".join([*lines, "</Nnet>", ""])


def _configuration() -> dict[str, object]:
    """Return configuration.json, by which funasr's own loader finds the files."""
    return {
        "framework": "pytorch",
        "task": "auto-speech-recognition",
        "model": {"type": "funasr"},
        "pipeline": {"type": "funasr-pipeline"},
        "file_path_metas": {
            "init_param": funasr_folder.WEIGHTS,
            "config": funasr_folder.CONFIG,
            "tokenizer_conf": {"token_list": funasr_folder.TOKENS, "seg_dict": funasr_folder.SEG_DICT},
            "frontend_conf": {"cmvn_file": funasr_folder.CMVN},
        },
    }


def synthetic_sound(seconds: float, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return 16 kHz sound, a random mix of gliding harmonics and noise every quarter second."""
    rng = np.random.default_rng(seed)
    pieces, length = int(seconds * 4), 4000
    t = np.arange(length) / 16000
    pitch = rng.uniform(60, 400, (pieces, 1)) * (1 + rng.uniform(-0.5, 0.5, (pieces, 1)) * t)
    phase = 2 * np.pi * np.cumsum(pitch, axis=1) / 16000
    tilt = rng.uniform(0.3, 1.5, (pieces, 1))
    tone = sum(np.sin(k * phase) * rng.uniform(0, 1, (pieces, 1)) / k**tilt for k in range(1, 16))
    noise = rng.standard_normal((pieces, length))
    mixed = tone * rng.uniform(0, 0.2, (pieces, 1)) + noise * 10 ** rng.uniform(-4, -1, (pieces, 1))
    return np.asarray(mixed).reshape(-1)


def _centroids(folder: Path, seed: int) -> FloatArray:
    """Return 1024 output frames of the tiny encoder, float32 (1024, its width): so the codes of any sound are spread.

    Computed in float64 and rounded, which keeps the bytes the same however the sums are split over threads.
    """
    funasr = funasr_folder.load_funasr(folder, _CPU)
    network = window_encoder(funasr.model.get_submodule("encoder"), folder)
    encoder = LinguisticEncoder(
        StackedFbank.of(funasr.frontend),
        network,
        np.zeros((1, network.config.size), np.float32),
        device=_CPU,
        dtype=torch.float64,
    )
    sound = cast(FloatArray, synthetic_sound(LINGUISTIC_CODES * 0.06 + 1, seed))
    frames = encoder.frames(sound)[-LINGUISTIC_CODES:]
    rounded: FloatArray = (np.round(frames * 1024) / 1024).astype(np.float32)
    return rounded


def write_s3(path: Path, seed: int) -> None:
    """Write the S3 tokenizer: two strided convolutions to twelve numbers whose signs are the bits of a code."""
    from onnx import TensorProto, helper

    rng = np.random.default_rng(seed)
    weights = {
        "w1": _zero_mean(rng.standard_normal((_HIDDEN, WHISPER_MELS, 3))) * 0.3,
        "w2": _zero_mean(rng.standard_normal((_BITS, _HIDDEN, 3))),
        "powers": 2.0 ** np.arange(_BITS)[:, None],
        "zero": np.zeros(()),
    }
    indices = {"i0": np.array(0), "i1": np.array(1), "i2": np.array(2), "axes": np.array([2])}
    node = helper.make_node
    nodes = [
        node("Shape", ["feats"], ["shape"]),
        node("Gather", ["shape", "i2"], ["frames"], axis=0),
        node("Range", ["i0", "frames", "i1"], ["places"]),
        node("Cast", ["feats_length"], ["length"], to=TensorProto.INT64),
        node("Less", ["places", "length"], ["real"]),
        node("Cast", ["real"], ["mask"], to=TensorProto.FLOAT),
        node("Mul", ["feats", "mask"], ["x0"]),
        node("Conv", ["x0", "w1"], ["x1"], kernel_shape=[3], strides=[2], pads=[1, 1]),
        node("Tanh", ["x1"], ["x2"]),
        node("Conv", ["x2", "w2"], ["x3"], kernel_shape=[3], strides=[2], pads=[1, 1]),
        node("Transpose", ["x3"], ["x4"], perm=[0, 2, 1]),
        node("Greater", ["x4", "zero"], ["bits"]),
        node("Cast", ["bits"], ["ones"], to=TensorProto.FLOAT),
        node("MatMul", ["ones", "powers"], ["number"]),
        node("Squeeze", ["number", "axes"], ["flat"]),
        node("Cast", ["flat"], ["codes"], to=TensorProto.INT64),
    ]
    inputs: list[Port] = [
        ("feats", TensorProto.FLOAT, [1, WHISPER_MELS, "T"]),
        ("feats_length", TensorProto.INT32, [1]),
    ]
    _save(path, "tiny_s3", nodes, inputs, ("codes", TensorProto.INT64, [1, "L"]), weights, indices)


def _zero_mean(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return convolution weights that answer a constant with zero, so that signs depend on the sound's shape."""
    centred: np.ndarray[Any, Any] = weight - weight.mean(axis=(1, 2), keepdims=True)
    return centred


def write_campplus(path: Path, seed: int) -> None:
    """Write a CAM++ stand-in: a layer, mean and deviation over time, a projection to 192 numbers."""
    from onnx import TensorProto, helper

    rng = np.random.default_rng(seed)
    weights = {
        "w1": rng.standard_normal((FBANK_BINS, _POOLED)) / FBANK_BINS**0.5,
        "w2": rng.standard_normal((2 * _POOLED, SPEAKER_SIZE)) / _POOLED**0.5,
        "eps": np.array(1e-5),
    }
    node = helper.make_node
    nodes = [
        node("MatMul", ["input", "w1"], ["x1"]),
        node("Relu", ["x1"], ["x2"]),
        node("ReduceMean", ["x2"], ["mean"], axes=[1], keepdims=1),
        node("Sub", ["x2", "mean"], ["centred"]),
        node("Mul", ["centred", "centred"], ["squares"]),
        node("ReduceMean", ["squares"], ["variance"], axes=[1], keepdims=0),
        node("Add", ["variance", "eps"], ["positive"]),
        node("Sqrt", ["positive"], ["deviation"]),
        node("ReduceMean", ["x2"], ["average"], axes=[1], keepdims=0),
        node("Concat", ["average", "deviation"], ["pooled"], axis=1),
        node("MatMul", ["pooled", "w2"], ["output"]),
    ]
    inputs: list[Port] = [("input", TensorProto.FLOAT, ["B", "T", FBANK_BINS])]
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(path, "tiny_campplus", nodes, inputs, ("output", TensorProto.FLOAT, ["B", SPEAKER_SIZE]), weights, {})


def _save(
    path: Path,
    name: str,
    nodes: list[Any],
    inputs: Sequence[Port],
    output: Port,
    weights: dict[str, np.ndarray[Any, Any]],
    indices: dict[str, np.ndarray[Any, Any]],
) -> None:
    """Write a graph as an ONNX file of IR 8, opset 13, which every ONNX Runtime of the last years reads."""
    import onnx
    from onnx import helper, numpy_helper

    values = {key: value.astype(np.float32) for key, value in weights.items()}
    values.update({key: value.astype(np.int64) for key, value in indices.items()})
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(*port) for port in inputs],
        [helper.make_tensor_value_info(*output)],
        [numpy_helper.from_array(value, key) for key, value in values.items()],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
