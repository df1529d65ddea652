"""What the vocoder's tests share: the recordings of the reference implementation, the tolerance, example tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from stepaudio.tokens import LINGUISTIC_CODES, SEMANTIC_CODES, interleave
from stepaudio.types import SpeechTokens
from stepaudio.vocoder.config import DitConfig, EncoderConfig, FlowConfig, HiftConfig, read_config
from stepaudio.vocoder.flow import Flow
from stepaudio.vocoder.hift import HarmonicSource, HiFT
from stepaudio.vocoder.weights import FLOW_NAME, HIFT_NAME, fill, hift_names, read_state

STAGE, MEL, SOUND = 1e-4, 1e-3, 1e-4
"""The tolerances that the recordings come with, relative to the largest value."""

_DILATIONS = ((1, 3, 5),) * 3
REAL_FLOW = FlowConfig(
    input_size=512,
    mel_channels=80,
    speaker_size=192,
    vocabulary=5121,
    guidance=0.7,
    encoder=EncoderConfig(
        512, 512, lookahead=3, blocks=6, up_blocks=4, up_stride=2, up_factor=2, heads=8, linear_units=2048
    ),
    dit=DitConfig(320, 80, mlp_ratio=4.0, depth=16, heads=8, head_dim=64, hidden=512),
)
REAL_HIFT = HiftConfig(
    mel_channels=80,
    base_channels=512,
    harmonics=8,
    sample_rate=24000,
    sine_level=0.1,
    noise_level=0.003,
    voiced_threshold=10.0,
    upsample_rates=(8, 5, 3),
    upsample_kernels=(16, 11, 7),
    n_fft=16,
    hop=4,
    resblock_kernels=(3, 7, 11),
    resblock_dilations=_DILATIONS,
    source_kernels=(7, 7, 11),
    source_dilations=_DILATIONS,
    slope=0.1,
    limit=0.99,
    f0_channels=512,
)
"""The sizes of the real networks."""


class Recordings:
    """The recorded tensors and the two networks that hold the recorded weights."""

    def __init__(self, conformance: Path) -> None:
        folder = conformance / "vocoder"
        weights = folder / "CosyVoice-300M-25Hz"
        self.tensors: dict[str, Tensor] = load_file(folder / "vectors.safetensors")
        config = read_config(weights)
        self.flow, self.hift = Flow(config.flow), HiFT(config.hift)
        fill(self.flow, read_state(weights / FLOW_NAME), weights / FLOW_NAME)
        fill(self.hift, hift_names(read_state(weights / HIFT_NAME)), weights / HIFT_NAME)

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def rows(self) -> Tensor:
        """The prompt's rows, then those to be spoken: int64 (1, 66, 2)."""
        return torch.cat((self["out.prompt_token_reshaped"], self["out.token_reshaped"]))[None]

    @property
    def prompt_rows(self) -> int:
        return len(self["out.prompt_token_reshaped"])

    def conditions(self) -> Tensor:
        prompt = self.flow.prompt(self["in.prompt_feat"], self.prompt_rows, self.rows.shape[1])
        return self.flow.conditions(self.rows, prompt, self["in.embedding"])

    def noise(self) -> Tensor:
        """The recorded noise of all frames, (1, 132, 80)."""
        return self["noise.flow_z"][:, :, : 2 * self.rows.shape[1]].transpose(1, 2)

    def source_noise(self) -> Tensor:
        """The recorded noises of the harmonics as the one that the source takes, (1, N, 1)."""
        return one_noise(self.hift.m_source, self["noise.source_noise"])


def one_noise(source: HarmonicSource, noises: Tensor) -> Tensor:
    """Return (B, N, 1), the noise that does to the source what a noise for each harmonic (B, N, H) does."""
    weight = source.l_linear.weight
    return F.linear(noises, weight) / weight.norm()


@contextmanager
def first_outputs(**modules: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Give a dict that receives, by name, what each module returns when it is called for the first time."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs.setdefault(name, output)

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Fail unless the shapes are equal and no value is off by more than ``tolerance`` of the largest one."""
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= tolerance, f"off by {error:.2e} of the largest value"


def speech(groups: int, seed: int = 0) -> SpeechTokens:
    """Return random audio tokens."""
    rng = np.random.default_rng(seed)
    return interleave(rng.integers(0, LINGUISTIC_CODES, 2 * groups), rng.integers(0, SEMANTIC_CODES, 3 * groups))


def voice_of(seed: int = 0, frames: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return a random prompt mel (frames, 80) and speaker embedding (192,)."""
    rng = np.random.default_rng(seed)
    mel = 2 * rng.standard_normal((frames, 80)) - 5
    return mel.astype(np.float32), rng.standard_normal(192).astype(np.float32)
