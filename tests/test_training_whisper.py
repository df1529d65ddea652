"""Whisper's encoder out of a CTranslate2 file: it is read, and it is what transformers has."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

from stepaudio import torchaudio_compat
from training.acoustic import MELS
from training.whisper import FORMAT, TYPES, encoder_of, read_variables

WIDTH, LAYERS, HEADS, LONGEST = 32, 4, 2, 200


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

    parts = {
        "conv1": {"weight": draw(WIDTH, MELS, 3), "bias": draw(WIDTH)},
        "conv2": {"weight": draw(WIDTH, WIDTH, 3), "bias": draw(WIDTH)},
        "layer_norm": norm(),
    }
    for number in range(LAYERS):
        parts |= {
            f"layer_{number}/self_attention/layer_norm": norm(),
            f"layer_{number}/self_attention/linear_0": linear(3 * WIDTH, WIDTH),
            f"layer_{number}/self_attention/linear_1": linear(WIDTH, WIDTH),
            f"layer_{number}/ffn/layer_norm": norm(),
            f"layer_{number}/ffn/linear_0": linear(4 * WIDTH, WIDTH),
            f"layer_{number}/ffn/linear_1": linear(WIDTH, 4 * WIDTH),
        }
    found = {f"encoder/{part}/{key}": value for part, inside in parts.items() for key, value in inside.items()}
    found["encoder/num_heads"] = np.asarray(HEADS, np.int16)
    found["encoder/position_encodings/encodings"] = draw(LONGEST, WIDTH)
    found["decoder/layer_0/self_attention/linear_0/weight"] = draw(3 * WIDTH, WIDTH)  # and is not looked at
    return found


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


def test_the_encoder_is_that_of_transformers() -> None:
    torchaudio_compat.install()  # or transformers does not find what it needs
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    variables = whisper()
    ours = encoder_of(variables).eval()
    assert len(ours.layers) == LAYERS
    config = WhisperConfig(
        num_mel_bins=MELS,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * WIDTH,
        max_source_positions=LONGEST,
    )
    theirs = WhisperEncoder(config).eval()
    state = {"embed_positions.weight": ours.positions, "layer_norm.weight": ours.norm.weight}
    state["layer_norm.bias"] = ours.norm.bias
    state |= {
        f"{name}.{key}": value for name in ("conv1", "conv2") for key, value in getattr(ours, name).named_parameters()
    }
    names = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm", "up": "fc1", "down": "fc2"}
    for number, layer in enumerate(ours.layers):
        place = f"layers.{number}"
        for one, other in names.items():
            state |= {f"{place}.{other}.{key}": value for key, value in getattr(layer, one).named_parameters()}
        for part, kind in enumerate(("q_proj", "k_proj", "v_proj")):
            state[f"{place}.self_attn.{kind}.weight"] = layer.qkv.weight.chunk(3)[part]
            if kind != "k_proj":
                state[f"{place}.self_attn.{kind}.bias"] = layer.qkv.bias.chunk(3)[part]
        state |= {f"{place}.self_attn.out_proj.{key}": value for key, value in layer.out.named_parameters()}
    theirs.load_state_dict(state)
    heard = torch.from_numpy(np.random.default_rng(3).standard_normal((2, MELS, 2 * LONGEST)).astype(np.float32))
    with torch.inference_mode():
        seen = ours(heard)
        # A key's bias adds the same to all scores of a row, so that theirs has none.
        torch.testing.assert_close(seen[-1], theirs(heard).last_hidden_state, atol=2e-4, rtol=1e-3)
    assert len(seen) == LAYERS
