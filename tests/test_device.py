"""Device, precision and threads: chosen once, with a reason; the GPU's side tried with a stand-in for torch.cuda."""

from __future__ import annotations

import pytest
import torch

from stepaudio import device


@pytest.fixture
def gpu(monkeypatch):
    """A torch.cuda that tells of one GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: "NVIDIA Test")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (8, 9))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)


def test_the_cpu_is_taken_when_asked_for_even_beside_a_gpu(gpu):
    runtime = device.choose("cpu", threads=3)
    assert (runtime.device.type, runtime.dtype, runtime.tf32, runtime.threads) == ("cpu", torch.float32, False, 3)
    assert not runtime.on_gpu


def test_a_gpu_is_taken_by_itself_with_bfloat16_and_tf32(gpu):
    runtime = device.choose()
    assert runtime.on_gpu
    assert runtime.dtype == torch.bfloat16
    assert runtime.tf32
    assert runtime.reason == "NVIDIA Test (compute capability 8.9)"


def test_precision_and_tf32_are_settings(gpu):
    runtime = device.choose("cuda", "float32", tf32=False)
    assert runtime.dtype == torch.float32
    assert not runtime.tf32
    assert device.choose("cpu", "bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize(("build", "expected"), [(None, "CPU build"), ("13.0", "driver is")])
def test_without_a_usable_gpu_the_reason_is_told(monkeypatch, build, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", build)
    runtime = device.choose("cuda")
    assert runtime.device.type == "cpu"
    assert expected in runtime.reason


def test_applying_sets_threads_and_tf32(monkeypatch):
    before = (torch.get_num_threads(), torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
    try:
        device.apply(device.Runtime(torch.device("cpu"), torch.float32, True, 1, "test"))
        assert torch.get_num_threads() == 1
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        device.apply(device.Runtime(torch.device("cpu"), torch.float32, False, 1, "test"))
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before[1:]


def test_a_gpu_is_waited_for_and_a_cpu_is_not(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", calls.append)
    device.Runtime(torch.device("cpu"), torch.float32, False, 1, "").synchronize()
    assert calls == []
    device.Runtime(torch.device("cuda", 0), torch.float32, False, 1, "").synchronize()
    assert calls == [torch.device("cuda", 0)]


def test_tf32_is_kept_away_from_what_must_not_round_on_a_gpu_and_comes_back():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        with device.without_tf32(torch.device("cpu")):
            assert matmul.allow_tf32  # nothing to keep away on a CPU
        with device.without_tf32(torch.device("cuda")):
            assert not matmul.allow_tf32
            assert not cudnn.allow_tf32
        assert matmul.allow_tf32
        assert cudnn.allow_tf32
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19", "the driver is 535.104, and 580"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  595.12  Release", "595.12, but no GPU can be used"),
        ("something else", "unknown"),
        (None, "missing or older"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_explained_by_its_driver(monkeypatch, tmp_path, told, words):
    if told is not None:
        (tmp_path / "version").write_text(told)
    monkeypatch.setattr(device, "DRIVER_VERSION", tmp_path / "version")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert words in device.choose("auto").reason
