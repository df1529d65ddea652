"""What the tests of the cache share: an encoder that counts, sound, and other processes."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from stepaudio.types import EncodedReference, ReferenceEncoding, Waveform

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 50 * 2**20


def noise(seed: int, seconds: float = 0.1, sample_rate: int = 24000) -> Waveform:
    """Return a sound that is another one for each seed."""
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * sample_rate))
    return Waveform(samples.astype(np.float32), sample_rate)


def encoding_of(waveform: Waveform, frames: int = 100) -> ReferenceEncoding:
    """Return an encoding that depends on the samples, ``frames`` mel frames long."""
    rng = np.random.default_rng(abs(int(waveform.samples[:8].sum() * 2**24)))
    return ReferenceEncoding(
        linguistic=rng.integers(0, 1024, frames // 3),
        semantic=rng.integers(0, 4096, frames // 2),
        mel=rng.standard_normal((frames, 80)).astype(np.float32),
        speaker=rng.standard_normal(192).astype(np.float32),
    )


class CountingEncoder:
    """Counts its calls; says that each took ``seconds``, and really takes ``pause``."""

    def __init__(self, seconds: float = 1.5, pause: float = 0.0, frames: int = 100) -> None:
        self.calls = 0
        self.begun = threading.Event()
        self._seconds, self._pause, self._frames = seconds, pause, frames

    def __call__(self, waveform: Waveform) -> EncodedReference:
        self.calls += 1
        self.begun.set()
        time.sleep(self._pause)
        return EncodedReference(encoding_of(waveform, self._frames), self._seconds)


def assert_same(one: ReferenceEncoding, other: ReferenceEncoding) -> None:
    for name in ("linguistic", "semantic", "mel", "speaker"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=name)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as a warning or worse."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def bytes_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def start_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start another process that runs the code, with the arguments as sys.argv[1:]."""
    prelude = """
        import logging, sys, time
        from pathlib import Path
        from stepaudio.cache import EncodingCache
        from tests.cache_kit import *
        logging.basicConfig(level=logging.WARNING)
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
