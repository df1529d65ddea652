"""ONNX sessions: faults are named, and the provider that really runs is said."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

from stepaudio.encoder import onnx_session
from stepaudio.encoder.onnx_session import CPU, CUDA, Port, check_inputs, create_session, running_provider
from stepaudio.errors import WeightsError
from stepaudio.tiny.encoder import write_campplus
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "campplus.onnx"
    write_campplus(path, 1)
    return path


class FakeRuntime:
    """onnxruntime.InferenceSession as it would be on another machine: records what it was asked for."""

    def __init__(self, provider: str) -> None:
        self.provider = provider
        self.asked: list = []

    def __call__(self, path: str, options: onnxruntime.SessionOptions, providers: list) -> FakeRuntime:
        self.asked, self.threads = providers, options.intra_op_num_threads
        return self

    def get_providers(self) -> list[str]:
        return [self.provider, CPU]


def test_a_session_on_the_cpu_asks_for_the_cpu_only_and_has_the_threads_it_was_given(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeRuntime(CPU)
    monkeypatch.setattr(onnxruntime, "InferenceSession", fake)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: pytest.fail("no CUDA library is needed"))
    with caplog.at_level(logging.INFO):
        create_session(model, torch.device("cpu"), 3)
    assert fake.asked == [CPU]
    assert fake.threads == 3
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("INFO", f"campplus.onnx runs with {CPU}.")]


def test_a_session_on_a_gpu_loads_the_libraries_and_asks_for_that_gpu(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake, loaded = FakeRuntime(CUDA), []
    monkeypatch.setattr(onnxruntime, "InferenceSession", fake)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append(True))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    with caplog.at_level(logging.INFO):
        create_session(model, torch.device("cuda", 1), 1)
    assert loaded == [True]
    (name, options), fallback = fake.asked
    assert (name, options["device_id"], fallback) == (CUDA, "1", CPU)
    assert [r.levelname for r in caplog.records] == ["INFO"]


def test_a_silent_fall_back_to_the_cpu_is_said_as_a_warning(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeRuntime(CPU))
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    with caplog.at_level(logging.INFO):
        create_session(model, torch.device("cuda", 0), 1)
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "campplus.onnx runs on the CPU" in caplog.text


def test_the_provider_that_runs_is_known(model: Path) -> None:
    assert running_provider(create_session(model, torch.device("cpu"), 1)) == CPU


def test_a_missing_file_is_named_with_its_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"^The file campplus\.onnx is missing in {tmp_path}\.$"):
        create_session(tmp_path / "campplus.onnx", torch.device("cpu"), 1)


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_a_damaged_file_is_named_with_its_folder(content: bytes | None, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "campplus.onnx"
    path.write_bytes(model.read_bytes()[:20000] if content is None else content)
    with pytest.raises(WeightsError, match=rf"campplus\.onnx in {tmp_path} is damaged"):
        create_session(path, torch.device("cpu"), 1)


def test_inputs_of_another_type_rank_or_size_do_not_fit(model: Path) -> None:
    session = create_session(model, torch.device("cpu"), 1)
    assert check_inputs(session, model, [Port("float", (None, None, 80))], "x") == ["input"]
    for port in (Port("int64", (None, None, 80)), Port("float", (None, 80)), Port("float", (None, None, 128))):
        with pytest.raises(WeightsError, match=r"campplus\.onnx in .* is not a clock: its inputs are tensor\(float\)"):
            check_inputs(session, model, [port], "a clock")
    with pytest.raises(WeightsError):
        check_inputs(session, model, [], "a clock")


def test_every_exception_of_the_runtime_that_is_translated_exists() -> None:
    assert all(issubclass(error, Exception) for error in onnx_session.runtime_errors())


def test_loading_the_weights_reports_to_nobody(tmp_path: Path) -> None:
    """Otherwise ONNX Runtime keeps in the user's home what it reports, and a number that it knows the machine by."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STEPAUDIO_", "XDG_")) and name != "ORT_DISABLE_TELEMETRY"
    }
    environment |= {
        "HOME": str(home),
        "STEPAUDIO_WEIGHTS": str(ROOT / "models" / "mini"),
        "STEPAUDIO_CACHE_DIR": str(tmp_path / "cache"),
        "STEPAUDIO_DEVICE": "cpu",
        "STEPAUDIO_FUSED_KERNELS": "false",  # Numba's cache may lie in the home, too
    }
    script = "from stepaudio import load_pipeline; load_pipeline().close()"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=True, timeout=300)
    assert list(home.iterdir()) == []
