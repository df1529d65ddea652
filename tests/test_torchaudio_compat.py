"""torchaudio works beside the torch that is installed, whoever imports it first."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch


def run(code: str) -> str:
    """Return what a fresh interpreter writes when it runs ``code``."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_resampling_and_kaldi_work_in_a_fresh_process() -> None:
    code = """
import torch
from stepaudio import torchaudio_compat
functional, kaldi = torchaudio_compat.functional(), torchaudio_compat.kaldi()
print(tuple(functional.resample(torch.zeros(1, 441), 44100, 16000).shape))
print(tuple(kaldi.fbank(torch.randn(1, 800)).shape))
"""
    assert run(code) == "(1, 160)\n(3, 23)"


def test_importing_the_module_imports_no_torchaudio_and_leaves_no_stub() -> None:
    code = "import sys, stepaudio.torchaudio_compat; print([m for m in sys.modules if m.startswith('torchaudio')])"
    assert run(code) == "[]"


@pytest.mark.skipif(torch.version.cuda is not None, reason="the stub belongs to CPU builds of torch")
def test_installing_twice_keeps_the_first_stub() -> None:
    code = """
import sys
from stepaudio.torchaudio_compat import install
install(); first = sys.modules["torchaudio._extension"]; install()
print(sys.modules["torchaudio._extension"] is first)
"""
    assert run(code) == "True"


@pytest.mark.skipif(torch.version.cuda is not None, reason="the stub belongs to CPU builds of torch")
def test_what_the_stub_lacks_says_so_when_it_is_called() -> None:
    code = """
from stepaudio import torchaudio_compat
import torch
try:
    torchaudio_compat.functional().forced_align(torch.zeros(1, 4, 3), torch.ones(1, 2, dtype=torch.int32))
except RuntimeError as error:
    print(error)
"""
    assert "forced alignment" in run(code)


def test_a_cuda_build_of_torch_gets_no_stub() -> None:
    code = """
import sys, torch
torch.version.cuda = "13.0"
from stepaudio.torchaudio_compat import install
install()
print("torchaudio._extension" in sys.modules)
"""
    assert run(code) == "False"
