"""What the fault table shares: a service that can be broken, the sound that it must give all the same, a record."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

from stepaudio.audiofile import encode_wav
from stepaudio.bench.conditions import commit
from stepaudio.service import CloneRequest, Service
from stepaudio.settings import Settings
from stepaudio.types import SamplingParams
from tests.conftest import ROOT, voice

VOICES = {"a": encode_wav(voice(2.0, pitch=110.0)), "b": encode_wav(voice(2.0, pitch=190.0, seed=1))}
SEED = 7
RECORD = "PROOF_RECORD"
"""The variable of the environment that names the file in which facts are put down."""


def request(name: str, **fields) -> CloneRequest:
    """Return a request in the voice of that name, whose sound depends on nothing but the voice."""
    sampling = SamplingParams(seed=SEED)
    given = {"transcript": "the words", "text": "Hello there.", "max_seconds": 0.6, "flow_steps": 2, **fields}
    return CloneRequest(audio=VOICES[name], sampling=sampling, **given)


def speak(service: Service, name: str) -> tuple[np.ndarray, bool]:
    """Return the sound of a voice, and whether the cache was hit."""
    synthesis = service.submit_clone(request(name)).result(120).synthesis
    return synthesis.waveform.samples, synthesis.cache_hit


@contextmanager
def serving(weights: Path, cache: Path, **settings) -> Iterator[Service]:
    """Run a service on weights and a cache folder, and close it."""
    from stepaudio import device
    from stepaudio.loading import load_engine
    from stepaudio.weights import choose_weights

    chosen = Settings(weights=str(weights), cache_dir=cache, **settings)
    service = Service(chosen, lambda: load_engine(choose_weights(chosen), chosen, device.choose("cpu", "float32")))
    service.start()
    try:
        service.wait_until_decided(300)
        yield service
    finally:
        service.close()


def run_child(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the tests in a process of its own, and return how it ended."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def post(url: str, audio: bytes, timeout: float = 120, **fields: str) -> httpx.Response:
    """Ask a server for a clone."""
    data = {"transcript": "the words", "text": "Hello.", "max_seconds": "0.3", "flow_steps": "1", **fields}
    return httpx.post(f"{url}/stream", data=data, files={"audio": ("voice.wav", audio)}, timeout=timeout)


def resident_megabytes(process: int) -> float:
    """Return the memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def put_down(row: str, **facts: object) -> None:
    """Add a row's facts to the record, where one is wanted; called when all that the row asserts has held."""
    target = os.environ.get(RECORD)
    if not target:
        return
    path = Path(target)
    record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    record.update(
        command="scripts/proof tests/test_faults.py tests/test_faults_server.py",
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        python=platform.python_version(),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )
    record.setdefault("rows", {})[row] = {"commit": commit(), **facts}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
