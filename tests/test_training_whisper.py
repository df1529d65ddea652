"""Whisper out of a CTranslate2 file: it is read, and it is what transformers has."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stepaudio import torchaudio_compat
from training.acoustic import MELS
from training.whisper import (
    FORMAT,
    TYPES,
    Decoder,
    DecoderLayer,
    Encoder,
    Layer,
    decoder_of,
    encoder_of,
    read_variables,
)

WIDTH, LAYERS, HEADS, LONGEST = 32, 4, 2, 200
TOKENS, LONGEST_TEXT = 120, 60


def model_file(variables: dict[str, np.ndarray], version: int = FORMAT) -> bytes:
    """What CTranslate2 writes of a model."""

    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", version), text("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for name, value in variables.items():
        parts += [text(name), struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)]
        parts += [struct.pack("<BI", TYPES.index(value.dtype.type), value.nbytes), value.tobytes()]
    return b"".join([*parts, struct.pack("<I", 0)])


def whisper(seed: int = 0) -> dict[str, np.ndarray]:
    """A small Whisper's variables, at random, by the names that CTranslate2 gives them."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float16)

    def norm() -> dict[str, np.ndarray]:
        return {"gamma": (1 + draw(WIDTH)).astype(np.float16), "beta": draw(WIDTH)}

    def linear(after: int, before: int) -> dict[str, np.ndarray]:
        return {"weight": draw(after, before), "bias": draw(after)}

    def inside(side: str, number: int) -> dict[str, dict[str, np.ndarray]]:
        return {
            f"{side}/layer_{number}/self_attention/layer_norm": norm(),
            f"{side}/layer_{number}/self_attention/linear_0": linear(3 * WIDTH, WIDTH),
            f"{side}/layer_{number}/self_attention/linear_1": linear(WIDTH, WIDTH),
            f"{side}/layer_{number}/ffn/layer_norm": norm(),
            f"{side}/layer_{number}/ffn/linear_0": linear(4 * WIDTH, WIDTH),
            f"{side}/layer_{number}/ffn/linear_1": linear(WIDTH, 4 * WIDTH),
        }

    parts = {
        "encoder/conv1": {"weight": draw(WIDTH, MELS, 3), "bias": draw(WIDTH)},
        "encoder/conv2": {"weight": draw(WIDTH, WIDTH, 3), "bias": draw(WIDTH)},
        "encoder/layer_norm": norm(),
    }
    for number in range(LAYERS):
        parts |= inside("encoder", number)
    tables = {"encoder/position_encodings/encodings": draw(LONGEST, WIDTH)}
    parts["decoder/layer_norm"] = norm()
    for number in range(LAYERS):
        parts |= inside("decoder", number) | {
            f"decoder/layer_{number}/attention/layer_norm": norm(),
            f"decoder/layer_{number}/attention/linear_0": linear(WIDTH, WIDTH),
            f"decoder/layer_{number}/attention/linear_1": linear(2 * WIDTH, WIDTH),
            f"decoder/layer_{number}/attention/linear_2": linear(WIDTH, WIDTH),
        }
    tables["decoder/position_encodings/encodings"] = draw(LONGEST_TEXT, WIDTH)
    tables["decoder/embeddings/weight"] = draw(TOKENS, WIDTH)
    heads = {f"{side}/num_heads": np.asarray(HEADS, np.int16) for side in ("encoder", "decoder")}
    return (
        {f"{part}/{key}": value for part, content in parts.items() for key, value in content.items()} | tables | heads
    )


def test_every_variable_of_a_file_comes_back() -> None:
    written = whisper()
    found = read_variables(model_file(written))
    assert found.keys() == written.keys()
    for name, value in written.items():
        assert found[name].dtype == value.dtype, name
        assert np.array_equal(found[name], value), name


def test_a_file_of_another_version_is_refused() -> None:
    with pytest.raises(ValueError, match="version 5"):
        read_variables(model_file({}, version=5))


NAMES = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm", "up": "fc1", "down": "fc2"}


def named_as_transformers_does(model: Encoder | Decoder) -> dict[str, torch.Tensor]:
    """The weights of all layers, the positions and the last norm."""
    state = {"embed_positions.weight": model.positions, "layer_norm.weight": model.norm.weight}
    state["layer_norm.bias"] = model.norm.bias
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        place = f"layers.{number}"
        for one, other in NAMES.items():
            state |= {f"{place}.{other}.{key}": value for key, value in getattr(layer, one).named_parameters()}
        state |= projections(f"{place}.self_attn", layer.qkv, ("q_proj", "k_proj", "v_proj"))
        state |= {f"{place}.self_attn.out_proj.{key}": value for key, value in layer.out.named_parameters()}
    return state


def projections(place: str, whole: nn.Linear, kinds: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """The parts of one layer that projects to all of ``kinds``.

    A key's bias adds the same to all scores of a row, so that theirs has none.
    """
    state = {}
    for part, kind in enumerate(kinds):
        state[f"{place}.{kind}.weight"] = whole.weight.chunk(len(kinds))[part]
        if kind != "k_proj":
            state[f"{place}.{kind}.bias"] = whole.bias.chunk(len(kinds))[part]
    return state


def configuration() -> Any:
    """What transformers makes of our size."""
    torchaudio_compat.install()  # or transformers does not find what it needs
    from transformers import WhisperConfig

    return WhisperConfig(
        vocab_size=TOKENS,
        num_mel_bins=MELS,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
        max_source_positions=LONGEST,
        max_target_positions=LONGEST_TEXT,
        pad_token_id=0,
    )


def test_the_encoder_is_that_of_transformers() -> None:
    ours = encoder_of(whisper()).eval()
    assert len(ours.layers) == LAYERS
    config = configuration()
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    theirs = WhisperEncoder(config).eval()
    state = named_as_transformers_does(ours)
    state |= {
        f"{name}.{key}": value for name in ("conv1", "conv2") for key, value in getattr(ours, name).named_parameters()
    }
    theirs.load_state_dict(state)
    heard = torch.from_numpy(np.random.default_rng(3).standard_normal((2, MELS, 2 * LONGEST)).astype(np.float32))
    with torch.inference_mode():
        seen = ours(heard)
        torch.testing.assert_close(seen[-1], theirs(heard).last_hidden_state, atol=2e-4, rtol=1e-3)
    assert len(seen) == LAYERS


def test_the_decoder_is_that_of_transformers() -> None:
    ours = decoder_of(whisper()).eval()
    assert len(ours.layers) == LAYERS
    config = configuration()
    from transformers.models.whisper.modeling_whisper import WhisperDecoder

    theirs = WhisperDecoder(config).eval()
    state = named_as_transformers_does(ours) | {"embed_tokens.weight": ours.embeddings}
    for number, layer in enumerate(ours.layers):
        assert isinstance(layer, DecoderLayer)
        place = f"layers.{number}.encoder_attn"
        state |= {f"{place}_layer_norm.{key}": value for key, value in layer.norm_across.named_parameters()}
        state |= projections(place, layer.query, ("q_proj",))
        state |= projections(place, layer.key_value, ("k_proj", "v_proj"))
        state |= {f"{place}.out_proj.{key}": value for key, value in layer.across.named_parameters()}
    theirs.load_state_dict(state)
    rng = np.random.default_rng(4)
    sound = torch.from_numpy(rng.standard_normal((2, 50, WIDTH)).astype(np.float32))
    tokens = torch.from_numpy(rng.integers(TOKENS, size=(2, 9)))
    with torch.inference_mode():
        states = theirs(tokens, encoder_hidden_states=sound).last_hidden_state
        wanted = states @ ours.embeddings.T
        torch.testing.assert_close(ours.logits(ours(tokens, sound)), wanted, atol=2e-4, rtol=1e-3)
