"""Memory: told before it is short, given back when it ends, tried again, and one sentence at last."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stepaudio import device, memory
from stepaudio.errors import OutOfMemory, WeightsError
from stepaudio.feed import SoundFeed
from stepaudio.orders import MAX_SEED
from stepaudio.settings import Settings
from stepaudio.types import SamplingParams, Task, Waveform
from stepaudio.weights import choose_weights
from tests.conftest import voice
from tests.test_service import clone, edit

GIGABYTE = 10**9


@pytest.fixture
def weights(tiny_weights):
    return choose_weights(Settings(weights=str(tiny_weights)))


def on_cpu(dtype: str = "float32") -> device.Runtime:
    return device.choose("cpu", dtype)


# Before.


def test_sizes_are_read_from_the_header_alone_and_packed_weights_stay_packed(tmp_path):
    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.zeros(3, 5, dtype=torch.bfloat16), "b": torch.zeros(7), "c": torch.zeros(9, dtype=torch.int8)}
    save_file(tensors, path, metadata={"of": "a test"})
    assert memory.loaded_bytes(path, torch.float32) == 22 * 4 + 9
    assert memory.loaded_bytes(path, torch.bfloat16) == 22 * 2 + 9


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x04" + bytes(7) + b"null"])
def test_a_damaged_header_is_named(tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        memory.loaded_bytes(tmp_path / "model.safetensors", torch.float32)


def test_bfloat16_halves_the_language_model_and_nothing_else(weights):
    model = sum(memory.loaded_bytes(path, torch.bfloat16) for path in weights.editx.glob("*.safetensors"))
    assert model > 2000
    whole, half = memory.needed(weights, torch.float32), memory.needed(weights, torch.bfloat16)
    assert whole - half == model
    assert half > memory.WORKING_BYTES + model + (weights.cosyvoice / "flow.pt").stat().st_size


def test_the_estimate_of_the_weights_is_what_the_parts_take(weights):
    """The language model's own numbers, counted in memory."""
    from stepaudio.llm.loading import load_step1

    model = load_step1(weights.editx, torch.device("cpu"), torch.float32)
    estimated = sum(memory.loaded_bytes(path, torch.float32) for path in weights.editx.glob("*.safetensors"))
    assert sum(parameter.nbytes for parameter in model.parameters()) == estimated


def test_what_fits_is_not_spoken_of(weights):
    assert list(memory.advice(weights, on_cpu())) == []


@pytest.mark.parametrize(
    ("dtype", "words"), [("float32", "STEPAUDIO_DTYPE=bfloat16"), ("bfloat16", "choose smaller weights")]
)
def test_what_does_not_fit_comes_with_advice(weights, monkeypatch, dtype, words):
    monkeypatch.setattr(memory, "available", lambda runtime: GIGABYTE // 2)
    (sentence,) = memory.advice(weights, on_cpu(dtype))
    assert words in sentence
    assert "0.5 GB are free" in sentence


def test_damaged_weights_are_left_to_the_loading(weights, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "needed", lambda *given: (_ for _ in ()).throw(WeightsError("damaged")))
    assert list(memory.advice(weights, on_cpu())) == []


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def limited(root: Path, group: str, most: str, current: int, stat: str = "anon 5\ninactive_file 500000\n") -> None:
    write(root, f"sys/fs/cgroup/{group}/memory.max", f"{most}\n")
    write(root, f"sys/fs/cgroup/{group}/memory.current", f"{current}\n")
    write(root, f"sys/fs/cgroup/{group}/memory.stat", stat)


def test_the_limit_of_the_container_counts(tmp_path):
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    limited(tmp_path, ".", "3000000", 2_000_000)
    assert memory.available(on_cpu(), tmp_path) == 1_500_000


@pytest.mark.parametrize("limited_at", ["system.slice/voice.service", "system.slice"])
def test_the_limit_of_a_service_counts_and_that_of_a_group_around_it(tmp_path, limited_at):
    write(tmp_path, "proc/self/cgroup", "0::/system.slice/voice.service\n")
    write(tmp_path, "proc/meminfo", "MemAvailable:      4000000 kB\n")
    for group in ("system.slice/voice.service", "system.slice"):
        limited(tmp_path, group, "max", 2_000_000)
    limited(tmp_path, limited_at, "3000000", 2_000_000)
    assert memory.available(on_cpu(), tmp_path) == 1_500_000


def test_the_first_version_of_control_groups_limits_memory_as_well(tmp_path):
    write(tmp_path, "proc/self/cgroup", "5:cpu:/other\n4:memory:/docker/5ca1ab1e\n")
    for name, text in (
        ("limit_in_bytes", "3000000"),
        ("usage_in_bytes", "2000000"),
        ("stat", "inactive_file 1\ntotal_inactive_file 500000"),
    ):
        write(tmp_path, f"sys/fs/cgroup/memory/memory.{name}", text)
    assert memory.available(on_cpu(), tmp_path) == 1_500_000


def test_without_a_limit_the_machine_counts(tmp_path):
    write(tmp_path, "proc/self/cgroup", "0::/\n")
    limited(tmp_path, ".", "max", 2_000_000)
    assert memory.available(on_cpu(), tmp_path) is None
    write(tmp_path, "proc/meminfo", "MemTotal: 9 kB\nMemAvailable:      4000 kB\n\n")
    assert memory.available(on_cpu(), tmp_path) == 4_096_000


# When it ends.


def caused_by(cause: BaseException) -> WeightsError:
    error = WeightsError("The model failed.")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory: you tried"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (caused_by(MemoryError()), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("out of memory"), False),
        (caused_by(OSError("no such file")), False),
    ],
    ids=repr,
)
def test_running_out_of_memory_is_recognised(error, answer):
    assert memory.is_out_of_memory(error) is answer


def test_what_torch_really_raises_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.is_out_of_memory(caught.value)
    with pytest.raises(MemoryError):
        np.empty(2**60, np.uint8)


class Short:
    """Stands in for one method of the pipeline, which fails for want of memory some times, then works."""

    def __init__(self, monkeypatch, owner: object, name: str, failures: int) -> None:
        self.calls = 0
        real = getattr(owner, name)

        def method(*given, **named):
            self.calls += 1
            if self.calls <= failures:
                torch.empty(2**60, dtype=torch.uint8)
            return real(*given, **named)

        monkeypatch.setattr(owner, name, method)


@pytest.fixture
def sound() -> bytes:
    from stepaudio.audiofile import encode_wav

    return encode_wav(voice(1.0))


def test_a_clone_without_memory_is_tried_once_more_in_pieces(service, sound, monkeypatch, caplog):
    pipeline = service.engine.pipeline
    whole = service.submit_clone(clone(sound)).result(60).synthesis
    flow = Short(monkeypatch, pipeline._vocoder, "flow_many", failures=99)
    forgotten = Short(monkeypatch, pipeline, "forget", failures=0)
    with caplog.at_level(logging.INFO, "stepaudio"):
        result = service.submit_clone(clone(sound)).result(60)
    assert flow.calls == 1
    assert forgotten.calls == 1
    # The same words: only flow and vocoder worked otherwise.
    np.testing.assert_array_equal(result.synthesis.tokens.numbers, whole.tokens.numbers)
    assert len(result.synthesis.waveform.samples) == len(whole.waveform.samples)
    assert any(record.message.startswith("Out of memory: ") for record in caplog.records)
    assert any("Total time" in record.message for record in caplog.records)


@pytest.mark.parametrize("first", [3, MAX_SEED - 1])
def test_takes_without_memory_have_the_seeds_and_words_that_they_have_otherwise(service, sound, monkeypatch, first):
    asked = clone(sound, takes=3, sampling=SamplingParams(seed=first))
    whole = [take.synthesis for take in service.submit_clone(asked).result(60).takes]
    flow = Short(monkeypatch, service.engine.pipeline._vocoder, "flow_many", failures=99)
    pieces = [take.synthesis for take in service.submit_clone(asked).result(60).takes]
    assert flow.calls == 1
    assert [take.seed for take in pieces] == [first, first + 1, (first + 2) % (MAX_SEED + 1)]
    for one, other in zip(pieces, whole, strict=True):
        assert one.seed == other.seed
        np.testing.assert_array_equal(one.tokens.numbers, other.tokens.numbers)


def test_an_edit_without_memory_is_tried_once_more(service, sound, monkeypatch):
    model = Short(monkeypatch, service.engine.pipeline._lm, "_generate", failures=1)
    assert service.submit_edit(edit(sound, task=Task("denoise"))).result(60).wav[:4] == b"RIFF"
    assert model.calls == 2


def test_what_never_fits_ends_with_one_sentence_and_the_next_request_works(service, sound, monkeypatch):
    with monkeypatch.context() as patch:
        model = Short(patch, service.engine.pipeline._lm, "_generate", failures=99)
        with pytest.raises(OutOfMemory, match="not enough memory for this request") as caught:
            service.submit_clone(clone(sound)).result(60)
        assert model.calls == 2
        # What is kept of the error must not keep the memory that ran out.
        assert caught.value.__context__ is None
    assert service.submit_clone(clone(sound)).result(60).wav[:4] == b"RIFF"


def test_what_has_been_heard_is_not_begun_again(sound):
    feed = SoundFeed()
    asked = clone(sound, feed=feed)
    assert asked.smaller() is asked
    feed.put(Waveform(np.zeros(10, np.float32), 24000))
    assert asked.smaller() is None


def test_other_errors_are_not_tried_again(service, sound, monkeypatch):
    calls = []

    def generate(*given, **named):
        calls.append(1)
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(service.engine.pipeline._lm, "_generate", generate)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        service.submit_clone(clone(sound)).result(60)
    assert len(calls) == 1


def test_forgetting_gives_the_beginnings_of_prompts_back(service, sound):
    model = service.engine.pipeline._lm
    first = service.submit_clone(clone(sound)).result(60).synthesis
    assert model._prefixes._kept
    assert model._workspaces._free
    service.engine.pipeline.forget()
    assert not model._prefixes._kept
    assert not model._workspaces._free
    again = service.submit_clone(clone(sound)).result(60).synthesis
    np.testing.assert_array_equal(first.waveform.samples, again.waveform.samples)
