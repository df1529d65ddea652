"""llm/fused.py where its kernels cannot run: the plain layers do, and one warning says why.

What the kernels compute is proved on a GPU: tests/proofs/test_cuda.py.
"""

from __future__ import annotations

import logging
import subprocess
from types import SimpleNamespace

import pytest
import torch

from stepaudio.llm import fused
from stepaudio.llm.layers import PlainLayers
from stepaudio.llm.network import Decoder, Dimensions
from stepaudio.llm.step import StepWeights

ELSEWHERE = torch.device("meta")
"""Stands in for a GPU."""


def weights(heads: int = 4) -> StepWeights:
    size = Dimensions(
        vocabulary=20, hidden=64, intermediate=32, layers=1, heads=heads, groups=2, norm_eps=1e-5, max_length=64
    )
    with torch.inference_mode(mode=False):
        return StepWeights(Decoder(size).requires_grad_(False))


class TritonError(Exception):
    pass


@pytest.fixture
def broken(monkeypatch):
    """Triton as it is where no kernel can be built: it raises what it is given."""

    def break_with(error: Exception) -> None:
        class Kernel:
            def __getitem__(self, grid):
                def launch(*args, **kwargs):
                    raise error

                return launch

        monkeypatch.setattr(fused, "triton", SimpleNamespace(TritonError=TritonError))
        monkeypatch.setattr(fused, "_norm_kernel", Kernel())

    return break_with


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler."),
        subprocess.CalledProcessError(1, ["gcc"]),
        ImportError("cuda_utils.so: failed to map segment from shared object"),
        AssertionError("libcuda.so cannot found!"),
        PermissionError("Read-only file system"),
        TritonError("out of resources"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_where_no_kernel_can_be_built_the_plain_layers_run_and_one_warning_says_why(broken, caplog, error):
    broken(error)
    with caplog.at_level(logging.WARNING):
        assert fused.layers_for(weights(), ELSEWHERE, wanted=True) is PlainLayers
    (record,) = caplog.records
    assert "without fused kernels" in record.getMessage()
    assert str(error) in record.getMessage()


def test_where_triton_is_missing_it_is_said(monkeypatch, caplog):
    monkeypatch.setattr(fused, "triton", None)
    with caplog.at_level(logging.WARNING):
        assert fused.layers_for(weights(), ELSEWHERE, wanted=True) is PlainLayers
    assert "Triton is not installed" in caplog.text


def test_what_is_not_wanted_or_does_not_fit_is_no_reason_to_warn(broken, caplog):
    broken(RuntimeError("must not be tried"))
    for device, wanted, heads in ((ELSEWHERE, False, 4), (torch.device("cpu"), True, 4), (ELSEWHERE, True, 8)):
        assert fused.layers_for(weights(heads), device, wanted=wanted) is PlainLayers
    assert not caplog.records
