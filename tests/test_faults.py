"""The fault table: whatever breaks, nothing is lost, no wrong voice comes out, and the next request works.

A few rows run with the fast tests; the whole table is marked ``proof`` and run by scripts/proof, which puts down
what was found in benchmarks/faults.json.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import struct
import subprocess
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stepaudio.errors import OutOfMemory, StepAudioError
from tests.fault_kit import VOICES, put_down, request, run_child, serving, speak

pytestmark = pytest.mark.faults
proof = pytest.mark.proof
STAGES = ["Get engine", "Decode audio", "FunASR", "Cache write", "LLM", "Flow", "Vocoder", "Post-process"]

CHILD = """
    import os, signal, sys
    from pathlib import Path
    from stepaudio.cache import store
    from stepaudio.pipeline import Pipeline
    from stepaudio.timing import StageTimer
    from tests.fault_kit import request, serving, speak

    weights, cache, stage = sys.argv[1:]

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    with serving(Path(weights), Path(cache)) as service:
        speak(service, "a")
        real = StageTimer.stage
        StageTimer.stage = lambda self, name: die() if name == stage else real(self, name)
        if stage == "Cache write":
            put = store.Store.set  # within a transaction, which is not ended any more
            store.Store.set = lambda *given, **named: (put(*given, **named), die())
        service.submit_clone(request("b")).result(120)
    print("it was not killed")
"""


@pytest.fixture(scope="module")
def undisturbed(tiny_weights, tmp_path_factory):
    """What each voice sounds like where nothing is broken."""
    with serving(tiny_weights, tmp_path_factory.mktemp("undisturbed")) as service:
        sounds = {name: speak(service, name)[0] for name in VOICES}
    assert not np.array_equal(sounds["a"], sounds["b"])
    return sounds


def assert_right(service, undisturbed, name: str, *, hit: bool | None = None) -> None:
    """Ask for a voice: it must be that voice, to the last sample."""
    sound, was_hit = speak(service, name)
    np.testing.assert_array_equal(sound, undisturbed[name])
    assert hit is None or was_hit is hit


@pytest.mark.parametrize("stage", [name if name == "FunASR" else pytest.param(name, marks=proof) for name in STAGES])
def test_kill_9_in_every_stage(stage, tiny_weights, tmp_path, undisturbed):
    killed = run_child(CHILD, str(tiny_weights), str(tmp_path / "cache"), stage)
    assert killed.returncode == -9, killed.stderr[-2000:]
    assert "it was not killed" not in killed.stdout
    start = time.monotonic()
    with serving(tiny_weights, tmp_path / "cache") as service:
        # What was encoded before the kill is there; what was being done is done anew, or was done already.
        assert_right(service, undisturbed, "a", hit=True)
        assert_right(service, undisturbed, "b", hit=stage in ("LLM", "Flow", "Vocoder", "Post-process"))
        assert_right(service, undisturbed, "b", hit=True)
    put_down(f"kill -9 in {stage}", seconds_until_served_again=round(time.monotonic() - start, 1), voices="right")


# The cache.


def database(folder: Path) -> list[Path]:
    """Return the database and its journal, not cache.db-shm: that is memory which SQLite shares between processes,
    and whoever cuts it off ends all of them (SIGBUS), which no program can prevent."""
    return [path for path in folder.rglob("cache.db*") if not path.name.endswith("-shm")]


def corrupted(folder: Path) -> None:
    for path in database(folder):
        data = bytearray(path.read_bytes())
        data[100 : len(data) - 100 : 7] = random.Random(1).randbytes(len(data[100 : len(data) - 100 : 7]))
        path.write_bytes(bytes(data))


def emptied(folder: Path) -> None:
    for path in database(folder):
        path.write_bytes(b"")


def deleted(folder: Path) -> None:
    shutil.rmtree(folder)


def truncated(folder: Path) -> None:
    for path in database(folder):
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize(
    "damage", [corrupted, *(pytest.param(damage, marks=proof) for damage in (emptied, deleted, truncated))]
)
def test_the_cache_is_damaged_while_it_runs(damage, tiny_weights, tmp_path, undisturbed):
    with serving(tiny_weights, tmp_path / "cache") as service:
        for name in VOICES:
            assert_right(service, undisturbed, name)
        damage(tmp_path / "cache" / "encodings")
        for name in (*VOICES, *VOICES):
            assert_right(service, undisturbed, name)
    with serving(tiny_weights, tmp_path / "cache") as service:
        for name in VOICES:
            assert_right(service, undisturbed, name)
        assert_right(service, undisturbed, "a", hit=True)  # it has healed
    put_down(f"cache {damage.__name__} while running", voices="right", healed=True)


@proof
def test_the_cache_is_locked_by_another_program(tiny_weights, tmp_path, undisturbed):
    with serving(tiny_weights, tmp_path / "cache") as service:
        assert_right(service, undisturbed, "a")
        (database,) = (tmp_path / "cache" / "encodings").rglob("cache.db")
        with closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            start = time.monotonic()
            for name in (*VOICES, *VOICES):
                assert_right(service, undisturbed, name)
            seconds = time.monotonic() - start
            other.execute("ROLLBACK")
        deadline = time.monotonic() + 120
        while not speak(service, "b")[1]:
            assert time.monotonic() < deadline, "the cache did not come back"
            time.sleep(1)
        assert_right(service, undisturbed, "a", hit=True)
    assert seconds < 120
    put_down("cache locked", seconds_of_four_requests=round(seconds, 1), voices="right", healed=True)


@contextmanager
def small_disk(folder: Path, megabytes: int):
    """A file system of its own; needs root."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system, and not everywhere")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write until there is no room left."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(path.parent).free < 4096


@proof
def test_the_disk_is_full(tiny_weights, tmp_path, undisturbed):
    with small_disk(tmp_path / "disk", 4), serving(tiny_weights, tmp_path / "disk" / "cache") as service:
        assert_right(service, undisturbed, "a")
        filler = tmp_path / "disk" / "filler"
        fill(filler)
        for name in ("b", "b", "a"):
            assert_right(service, undisturbed, name)
        filler.unlink()
        deadline = time.monotonic() + 120
        while not speak(service, "b")[1]:
            assert time.monotonic() < deadline, "the cache did not come back"
            time.sleep(1)
        assert_right(service, undisturbed, "b", hit=True)
    put_down("disk full", voices="right", healed=True)


@proof
@pytest.mark.parametrize("days", [-400, 400])
def test_the_clock_jumps(days, tiny_weights, tmp_path, undisturbed, monkeypatch):
    real = time.time
    with serving(tiny_weights, tmp_path / "cache") as service:
        assert_right(service, undisturbed, "a", hit=False)
        monkeypatch.setattr(time, "time", lambda: real() + days * 86400)
        assert_right(service, undisturbed, "a", hit=True)
        assert_right(service, undisturbed, "b", hit=False)
        assert_right(service, undisturbed, "b", hit=True)
        timings = service.submit_clone(request("a")).result(120).synthesis.timings
        assert 0 < timings.total < 120
    put_down(f"clock jumps by {days} days", voices="right", hits="as before")


# Weights.


def checkpoint(folder: Path) -> Path:
    return next((folder / "Step-Audio-EditX").glob("*.safetensors"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def cut_checkpoint(folder: Path) -> str:
    cut(checkpoint(folder))
    return checkpoint(folder).name


def cut_flow(folder: Path) -> str:
    cut(folder / "Step-Audio-EditX" / "CosyVoice-300M-25Hz" / "flow.pt")
    return "flow.pt"


def cut_paraformer(folder: Path) -> str:
    cut(next((folder / "Step-Audio-Tokenizer").rglob("model.pt")))
    return "model.pt"


def cut_onnx(folder: Path) -> str:
    cut(folder / "Step-Audio-Tokenizer" / "speech_tokenizer_v1.onnx")
    return "speech_tokenizer_v1.onnx"


def wrong_dtype(folder: Path) -> str:
    """The language model's numbers as integers."""
    tensors = {name: tensor.to(torch.int32) for name, tensor in load_file(checkpoint(folder)).items()}
    save_file(tensors, checkpoint(folder), metadata={"format": "pt"})
    return checkpoint(folder).name


def no_numbers(folder: Path) -> str:
    """Numbers that are none: caught when the first sound is made."""
    tensors = {name: torch.full_like(tensor, float("nan")) for name, tensor in load_file(checkpoint(folder)).items()}
    save_file(tensors, checkpoint(folder), metadata={"format": "pt"})
    return "language model"


def missing_key(folder: Path) -> str:
    tensors = load_file(checkpoint(folder))
    del tensors[sorted(tensors)[0]]
    save_file(tensors, checkpoint(folder), metadata={"format": "pt"})
    return checkpoint(folder).name


def long_header(folder: Path) -> str:
    """A header that claims four gigabytes."""
    path = checkpoint(folder)
    path.write_bytes(struct.pack("<Q", 2**32) + path.read_bytes()[8:])
    return path.name


def swapped_onnx(folder: Path) -> str:
    first = folder / "Step-Audio-Tokenizer" / "speech_tokenizer_v1.onnx"
    second = folder / "Step-Audio-EditX" / "CosyVoice-300M-25Hz" / "campplus.onnx"
    aside = folder / "aside"
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    return ".onnx"


WEIGHT_FAULTS = [
    *(cut_checkpoint, cut_flow, cut_paraformer, cut_onnx, wrong_dtype, no_numbers, missing_key, long_header),
    swapped_onnx,
]


@pytest.mark.parametrize(
    "fault",
    [fault if fault in (missing_key, swapped_onnx) else pytest.param(fault, marks=proof) for fault in WEIGHT_FAULTS],
)
def test_weights_that_are_not_right(fault, tiny_weights, tmp_path):
    """The server stays up and says which file it is; no request gets a sound."""
    folder = shutil.copytree(tiny_weights, tmp_path / "weights")
    named = fault(folder)
    with serving(folder, tmp_path / "cache") as service:
        assert service.state == "failed"
        assert named in service.problem
        assert "\n" not in service.problem
        with pytest.raises(StepAudioError) as refused:
            service.submit_clone(request("a")).result(60)
        assert str(refused.value) == service.problem
    put_down(f"weights: {fault.__name__}", answer=service.problem.replace(str(folder), "the weights folder"))


# Memory.


@proof
def test_memory_ends_in_each_part(tiny_weights, tmp_path, undisturbed, monkeypatch):
    """Once each: tried again with less. For good: one sentence. Afterwards: as if nothing had been."""
    tried = []
    with serving(tiny_weights, tmp_path / "cache") as service:
        pipeline = service.engine.pipeline
        for owner, name in ((pipeline._encoder, "encode"), (pipeline._lm, "_generate"), (pipeline._vocoder, "sound")):
            for failures in (1, 99):
                left = [failures]
                real = getattr(owner, name)

                def method(*given, left=left, real=real, **named):
                    left[0] -= 1
                    if left[0] >= 0:
                        torch.empty(2**60, dtype=torch.uint8)
                    return real(*given, **named)

                pipeline.cache.clear()
                with monkeypatch.context() as patch:
                    patch.setattr(owner, name, method)
                    job = service.submit_clone(request("a"))
                    if failures == 1 or name == "sound":  # in pieces the sound is made another way
                        assert len(job.result(120).synthesis.waveform.samples) == len(undisturbed["a"])
                        tried.append(f"{name}: made the second time")
                    else:
                        with pytest.raises(OutOfMemory, match="not enough memory for this request"):
                            job.result(120)
                        tried.append(f"{name}: one sentence")
                for voice in VOICES:
                    assert_right(service, undisturbed, voice)
    put_down("out of memory", **{f"case {number}": words for number, words in enumerate(tried, 1)})
