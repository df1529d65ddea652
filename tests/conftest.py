"""Shared fixtures: where the vectors lie, a tiny weights folder, synthetic sound."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stepaudio.settings import report_to_nobody
from stepaudio.types import Waveform

report_to_nobody()  # Some tests import ONNX Runtime themselves.

ROOT = Path(__file__).resolve().parent.parent


def shared_folder(variable: str, name: str) -> Path:
    """Return a folder of material that is not part of the repository, or skip; in CI its absence fails."""
    folder = Path(os.environ.get(variable) or ROOT.parent / "shared" / name)
    if not folder.is_dir():
        reason = f"{folder} is not there; set {variable} to the folder"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def conformance() -> Path:
    """The test vectors recorded from the reference implementation."""
    return shared_folder("CONFORMANCE_DIR", "conformance")


@pytest.fixture(scope="session")
def small_files() -> Path:
    """Small files of the public checkpoints: tokenizer, configs, key lists."""
    return shared_folder("SMALL_FILES_DIR", "small-files")


def voice(seconds: float = 3.0, sample_rate: int = 24000, pitch: float = 120.0, seed: int = 0) -> Waveform:
    """Return synthetic, speech-like sound: gliding harmonics under a syllable envelope, a little noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * sample_rate)) / sample_rate
    f0 = pitch * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * t))
    phase = 2 * np.pi * np.cumsum(f0) / sample_rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 20) if k * pitch * 1.1 < sample_rate / 2)
    envelope = 0.15 + 0.85 * np.clip(np.sin(2 * np.pi * 3.0 * t), 0, 1)
    samples = 0.2 * tone * envelope + 0.003 * rng.standard_normal(len(t))
    return Waveform(samples.astype(np.float32), sample_rate)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """A complete weights folder of tiny random networks."""
    from stepaudio.tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("weights") / "tiny")


@pytest.fixture
def three_threads() -> Iterator[None]:
    """torch computes with three threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_engine(tiny_weights, tmp_path):
    """Load tiny weights with settings of the test's own; everything is closed afterwards."""
    from stepaudio import device
    from stepaudio.loading import load_engine
    from stepaudio.settings import Settings
    from stepaudio.weights import choose_weights

    engines = []

    def make(**settings):
        chosen = Settings(**{"weights": str(tiny_weights), "cache_dir": tmp_path / "cache", **settings})
        engine = load_engine(choose_weights(chosen), chosen, device.choose("cpu", chosen.dtype))
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def service(make_engine, tmp_path):
    """A service whose tiny models are loaded."""
    from stepaudio.service import Service
    from stepaudio.settings import Settings

    engine = make_engine()
    running = Service(Settings(cache_dir=tmp_path / "cache"), lambda: engine)
    running.start()
    assert running.wait_until_decided(120) == "ready"
    yield running
    running.close()
